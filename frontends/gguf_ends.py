"""The tokens that end a generation in a GGUF vocabulary: what its keys name, and what is known by its text.

As llama.cpp (src/llama-vocab.cpp, 2026-11) judges: `llama_vocab_is_eog`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NAMES = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
)  # fmt: skip
"""Texts that end a generation wherever a vocabulary has them."""

FILL = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
"""Texts of the marks between files of code, of which a vocabulary has at most one of each kind: they end it, too."""

_KEYS = ("eos", "eot", "eom", *FILL)
_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
"""Control tokens of gpt-oss that are a part of what a model says."""


def ends(ids: Mapping[str, int], named: Mapping[str, int]) -> tuple[int, ...]:
    """Every id that ends a generation, that of `eos` first. ids: of all tokens; named: those that keys point to."""
    found = [named[k] for k in _KEYS if k in named]
    found += [ids[t] for t in NAMES if t in ids]
    for kind, texts in FILL.items():
        if kind not in named:
            found += [ids[t] for t in texts if t in ids][:1]
    gone = {ids[text] for text in _going_on(ids)}
    return tuple(i for i in dict.fromkeys(found) if i not in gone)


def control(ids: Mapping[str, int], found: Sequence[int]) -> list[str]:
    """Texts of `found` that are known as ends: they are control tokens, whatever type the file gives them."""
    known = (*NAMES, *(t for texts in FILL.values() for t in texts))
    return [t for t in known if ids.get(t) in found]


def shown(ids: Mapping[str, int], found: Sequence[int]) -> list[str]:
    """Control tokens that are text all the same, in a vocabulary in which `found` end a generation."""
    return [t for t in (*_SHOWN, *_going_on(ids)) if t in ids and ids[t] not in found]


def _going_on(ids: Mapping[str, int]) -> list[str]:
    """Texts that end nothing in a vocabulary that has certain others: messages of harmony and of solar-open end in
    <|end|> and go on; </s> is an ordinary token where tools answer."""
    call = "<|call|>" in ids or "<|calls|>" in ids
    harmony = call and ("<|return|>" in ids or "<|flush|>" in ids)
    texts = (("<|end|>", harmony), ("</s>", "<|tool_response>" in ids))
    return [text for text, gone in texts if gone and text in ids]
