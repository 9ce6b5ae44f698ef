"""What is learned of a conversation: answers with a token that ends them, as the template's generation blocks say."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import tokenizers
import transformers
from monograph.data.errors import CorpusError
from monograph.frontends.tokenizer import Tokenizer
from monograph.training.instruct import Instructions, Row, encode_row
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]
PROMPT = "{% if add_generation_prompt %}"
TURNS = "{% for m in messages %}"
TEMPLATES: dict[str, tuple[str, str, list[str]]] = {
    # name: (template, end of text, what is learned)
    "chatml": (
        f"{TURNS}<|im_start|>{{{{ m.role }}}}\n{{{{ m.content }}}}<|im_end|>\n{{% endfor %}}"
        f"{PROMPT}<|im_start|>assistant\n{{% endif %}}",
        "<|im_end|>",
        ["yes<|im_end|>\n", "no<|im_end|>\n"],
    ),
    "zephyr": (
        f"{TURNS}<|{{{{ m.role }}}}|>\n{{{{ m.content + eos_token }}}}\n{{% endfor %}}"
        f"{PROMPT}<|assistant|>\n{{% endif %}}",
        "</s>",
        ["yes</s>\n", "no</s>\n"],
    ),
    "next role ends the turn": (
        f"{TURNS}<|{{{{ m.role }}}}|>{{{{ m.content }}}}{{% endfor %}}{PROMPT}<|assistant|>{{% endif %}}",
        "<|endoftext|>",
        ["yes<|user|>", "no<|endoftext|>"],
    ),
    "no end": (
        f"{TURNS}{{% if m.role == 'user' %}}Q: {{{{ m.content }}}}\n{{% else %}}A: {{{{ m.content }}}}\n{{% endif %}}"
        f"{{% endfor %}}{PROMPT}A: {{% endif %}}",
        "</s>",
        ["yes\n</s>", "no\n</s>"],
    ),
}
CHAT = [
    {"role": "user", "content": "a?"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "b?"},
    {"role": "assistant", "content": "no"},
]


def made(template: str, eos: str, post: str | None = None, ends: tuple[str, ...] = ("<|user|>",)) -> Tokenizer:
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core: Any = tokenizers.Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    if post:
        named = [(t, core.token_to_id(t)) for t in SPECIAL]
        core.post_processor = processors.TemplateProcessing(single=post, pair=f"{post} $B", special_tokens=named)
    settings = {"eos_token": eos, "bos_token": "<s>", "chat_template": template}
    return Tokenizer(core, settings, [SPECIAL.index(t) for t in ends])


def learned(tokenizer: Tokenizer, row: Row) -> list[str]:
    """The text of each run of tokens that count."""
    runs: list[list[int]] = []
    before = False
    for i, said in zip(row.ids, row.said, strict=True):
        if said and not before:
            runs.append([])
        if said:
            runs[-1].append(i)
        before = said
    return [tokenizer.decode(run, skip_special=False) for run in runs]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_answer_ends_in_a_token_that_ends_generation(name: str) -> None:
    template, eos, want = TEMPLATES[name]
    tokenizer = made(template, eos)
    assert learned(tokenizer, encode_row(tokenizer, {"messages": CHAT})) == want


def test_a_row_says_what_was_put_into_it() -> None:
    template, eos, _ = TEMPLATES["no end"]
    rows = [{"messages": CHAT}] * 2
    with pytest.warns(UserWarning, match=r"x\.jsonl: row 1 \(and 1 more rows\): no end of turn follows .* </s> is put"):
        Instructions.of(made(template, eos), rows, place="x.jsonl")
    template, eos, _ = TEMPLATES["chatml"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Instructions.of(made(template, eos), rows)


MARKED = {
    "whole turns": f"{TURNS}<|im_start|>{{% if m.role == 'assistant' %}}{{% generation %}}{{{{ m.content }}}}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}",
    "only the words": f"{TURNS}{{{{ m.role }}}}: {{% if m.role == 'assistant' %}}{{% generation %}}{{{{ m.content }}}}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}",
    "with what is before": f"{TURNS}{{% if m.role == 'assistant' %}}{{% generation %}}<|assistant|>{{{{ m.content }}}}"
    "<|im_end|>\n{% endgeneration %}{% else %}<|user|>{{ m.content }}{% endif %}{% endfor %}",
}


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.parametrize("content", ["yes", "é 日本 x", " a  b\n"])
def test_generation_blocks_are_learned_as_transformers_masks_them(name: str, content: str) -> None:
    tokenizer = made(MARKED[name], "<|im_end|>", ends=())
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.core, eos_token="<|im_end|>")
    chat = [*CHAT, {"role": "user", "content": "c"}, {"role": "assistant", "content": content}]
    want = theirs.apply_chat_template(
        chat, chat_template=MARKED[name], return_assistant_tokens_mask=True, return_dict=True, tokenize=True
    )
    row = encode_row(tokenizer, {"messages": chat})
    assert list(row.ids) == want["input_ids"]
    assert [int(s) for s in row.said] == want["assistant_masks"]
    assert bool(row.note) is (name == "only the words")


@pytest.mark.parametrize("post", [None, "<s> $A", "<s> $A </s>", "$A </s>"])
def test_nothing_ends_between_prompt_and_completion(post: str | None) -> None:
    tokenizer = made("x", "</s>", post, ends=())
    row = encode_row(tokenizer, {"prompt": "Q: a\nA:", "completion": " yes"})
    assert learned(tokenizer, row) == [" yes</s>"]
    assert not any(i in tokenizer.eos_ids for i in row.ids[:-1])
    assert (row.ids[0] == tokenizer.bos_id) is (post is not None and post.startswith("<s>"))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([*CHAT[:1], {"role": "assistant", "content": None}], r"message 2 of 2 \(assistant\) has no content"),
        ([*CHAT[:1], {"role": "assistant"}], r"message 2 of 2 \(assistant\) has no content"),
        ([{"role": "user", "content": None}, CHAT[1]], r"message 1 of 2 \(user\) has no content"),
        ([*CHAT[:1], {"role": "assistant", "content": ["x"]}], "the chat template fails on these messages"),
        ([{"role": "user", "content": "a"}], "none of 1 messages is the assistant's"),
    ],
)
def test_answers_that_are_not_there_name_the_row(messages: Any, message: str) -> None:
    template, eos, _ = TEMPLATES["zephyr"]
    rows = [{"messages": CHAT}, {"messages": messages}]
    with pytest.raises(CorpusError, match=f"rows: row 2: {message}"):
        Instructions.of(made(template, eos), rows)


def test_a_call_of_a_tool_needs_no_content() -> None:
    said = "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% else %}{{ m.content }}{% endif %}"
    template = f"{TURNS}{said}</s>{{% endfor %}}"
    chat = [CHAT[0], {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]
    tokenizer = made(template, "</s>")
    assert learned(tokenizer, encode_row(tokenizer, {"messages": chat})) == ['[{"name": "f"}]</s>']
