"""GGUF vocabularies: ends of generation and token ids as llama.cpp gave them (golden/llamacpp_vocabularies.json).

The answers were recorded by `python benchmarks/gguf_ends.py --record FILE`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from monograph.frontends.gguf_tokenizer import gguf_tokenizer
from monograph.ir.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from gguf_vocabularies import ENDS, TEXTS, all_vocabularies, byte_level, scored

VOCABULARIES = all_vocabularies()
RECORDED = json.loads((Path(__file__).parent / "golden" / "llamacpp_vocabularies.json").read_text())


@pytest.mark.parametrize("name", VOCABULARIES)
def test_ends_and_ids_are_those_of_llama_cpp(name: str) -> None:
    want = RECORDED["answers"][RECORDED["names"][name]]
    t = gguf_tokenizer(VOCABULARIES[name])
    assert sorted(t.eos_ids) == want["ends"]
    marks = any("combining marks" in n.why for n in t.notes)
    for text, ids in zip(TEXTS, want["special"], strict=True):
        mine = t.encode(text, add_special=False)
        if not (marks and any(c in text for c in "\u0301\u094d\u064f")):
            assert mine == ids, text
        if name.startswith("split"):
            assert t.decode(mine, skip_special=False) == text


def test_an_end_is_whole_and_silent_whatever_its_type_is() -> None:
    t = gguf_tokenizer(byte_level("gpt-2", ENDS))
    for name in ("<|im_end|>", "[EOS]", "<end_of_turn>", "<|fim_pad|>"):
        ids = t.encode(f"a{name}b", add_special=False)
        assert t.decode(ids) == "ab"
        assert ids[1] in t.eos_ids
    assert t.core.token_to_id("<|im_start|>") not in t.eos_ids
    harmony = gguf_tokenizer(VOCABULARIES["harmony"])
    end = harmony.core.token_to_id("<|end|>")
    assert end not in harmony.eos_ids
    assert harmony.decode([end]) == "<|end|>"


def test_ids_that_a_scored_vocabulary_does_not_name_are_those_of_llama_cpp() -> None:
    t = gguf_tokenizer(scored())
    assert (t.bos_id, t.eos_id, t.encode("hello")[0]) == (1, 2, 1)
    named = gguf_tokenizer(scored(**{"tokenizer.ggml.eos_token_id": 259}))
    assert named.eos_ids == (259, 2)  # </s> ends a text wherever it is


def test_every_key_is_used_noted_or_refused() -> None:
    more: dict[str, Any] = {
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.add_sep_token": False,
        "tokenizer.ggml.fim_pre_token_id": 3,
        "tokenizer.huggingface.json": "{}",
        "tokenizer.ggml.mystery": 1,
    }
    t = gguf_tokenizer(byte_level("gpt-2", **more), "m.gguf")
    assert {n.key for n in t.notes} == set(more)
    for key in ("add_sep_token", "suppress_tokens"):
        with pytest.raises(ConfigError, match=f"key 'tokenizer.ggml.{key}' = .*it is not supported"):
            gguf_tokenizer(byte_level("gpt-2", **{f"tokenizer.ggml.{key}": [1]}), "m.gguf")


def test_templates_have_names() -> None:
    templates = {
        "tokenizer.chat_template": "default",
        "tokenizer.chat_template.tool_use": "tools",
        "tokenizer.chat_templates": ["tool_use"],
    }
    t = gguf_tokenizer(byte_level("gpt-2", **templates))
    assert (t.chat([]), t.chat([], template="tool_use")) == ("default", "tools")
    with pytest.raises(ConfigError, match=r"chat_template is \{'default': 5\}, expected a text"):
        gguf_tokenizer(byte_level("gpt-2", **{"tokenizer.chat_template": 5}))


@pytest.mark.parametrize("pre", ["kimi-k2", "superbpe", "afmoe", "gemma4", "chameleon", "laguna", "tiny_aya"])
def test_rules_that_are_not_read_are_refused_by_name(pre: str) -> None:
    with pytest.raises(ConfigError, match=f"splits text by the rule '{pre}'"):
        gguf_tokenizer(byte_level(pre))
