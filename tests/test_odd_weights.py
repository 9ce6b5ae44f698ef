"""What stands in the weights of old and odd checkpoints: left out with a reason, or refused by name, never dropped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import pytest
import torch
import transformers
from monograph.frontends.dsl import Model
from monograph.ir import interpret
from monograph.ir.errors import WeightsError
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow

State = dict[str, torch.Tensor]
Change = Callable[[State], State]
LLAMA: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 16,
}  # fmt: skip
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
BERT = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
NEOX = {**BERT, "rotary_pct": 0.5}
MADE: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (transformers.LlamaForCausalLM, LLAMA),
    "tied": (transformers.LlamaForCausalLM, {**LLAMA, "tie_word_embeddings": True}),
    "gpt2": (transformers.GPT2LMHeadModel, GPT2),
    "neox": (transformers.GPTNeoXForCausalLM, NEOX),
    "bert": (transformers.BertForMaskedLM, BERT),
    "t5": (transformers.T5ForConditionalGeneration, {"vocab_size": 61, "d_model": 16, "d_kv": 4, "d_ff": 24,
                                                     "num_layers": 1, "num_heads": 4}),
}  # fmt: skip
IDS = torch.tensor([[5, 9, 13, 7, 60, 2, 33]])


def saved(name: str, folder: Path) -> Any:
    cls, settings = MADE[name]
    torch.manual_seed(0)
    net = cls(cls.config_class(**settings)).eval()
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn_like(p)
    net.save_pretrained(folder)
    return net


def changed(folder: Path, change: Change) -> None:
    file = folder / "model.safetensors"
    state = change(dict(load_file(file)))
    save_file({k: v.clone().contiguous() for k, v in state.items()}, file, metadata={"format": "pt"})


def logits(model: Model) -> Any:
    assert model.weights is not None
    given = {s.ids: IDS.numpy() for s in model.task.streams}
    return interpret(model.graph(), model.task.fill(given, model.graph().inputs), model.weights.numpy)["logits"]


def inverse(width: int, theta: float = 10000.0) -> torch.Tensor:
    return 1.0 / theta ** (torch.arange(0, width, 2).float() / width)


def layers(pattern: str, value: torch.Tensor) -> Change:
    return lambda state: state | {pattern.format(i): value for i in range(2)}


def prefixed(old: str, new: str) -> Change:
    return lambda state: {k.replace(old, new, 1) if k.startswith(old) else k: v for k, v in state.items()}


TRIANGLE = torch.tril(torch.ones(16, 16))[None, None]
LEFT: dict[str, tuple[str, Change, str]] = {
    "rotary buffers": ("llama", layers("model.layers.{}.self_attn.rotary_emb.inv_freq", inverse(8)), "frequencies"),
    "in half": ("llama", layers("model.layers.{}.self_attn.rotary_emb.inv_freq", inverse(8).half()), "frequencies"),
    "one for all": ("llama", lambda s: s | {"model.rotary_emb.inv_freq": inverse(8).bfloat16()}, "frequencies"),
    "of a part": ("neox", layers("gpt_neox.layers.{}.attention.rotary_emb.inv_freq", inverse(4)), "frequencies"),
    "tied, stored": ("tied", lambda s: s | {"lm_head.weight": s["model.embed_tokens.weight"]}, "it equals model.embed"),
    "mask": ("gpt2", layers("transformer.h.{}.attn.bias", TRIANGLE), "causal mask"),
    "mask of bytes": ("gpt2", layers("transformer.h.{}.attn.bias", TRIANGLE.to(torch.uint8)), "causal mask"),
    "mask of bools": ("neox", layers("gpt_neox.layers.{}.attention.bias", TRIANGLE.bool()), "causal mask"),
    "masked": ("gpt2", layers("transformer.h.{}.attn.masked_bias", torch.tensor(-1e4)), "score of a masked key"),
    "masked lower": ("neox", layers("gpt_neox.layers.{}.attention.masked_bias", torch.tensor(-1e9)), "score of a"),
    "positions": ("bert", lambda s: s | {"bert.embeddings.position_ids": torch.arange(16)[None]}, "numbers of the"),
    "types": ("bert", lambda s: s | {"bert.embeddings.token_type_ids": torch.zeros(1, 16).long()}, "token types of 0"),
    "in 16 bits": ("bert", lambda s: s | {"bert.embeddings.position_ids": torch.arange(16).short()[None]}, "numbers"),
    "pooler": ("bert", lambda s: s | {"bert.pooler.dense.weight": torch.ones(32, 32)}, "belongs to another head"),
    "sentence pairs": ("bert", lambda s: s | {"cls.seq_relationship.weight": torch.ones(2, 32)}, "another head"),
    "in 8 bits, of another head": (
        "bert", lambda s: s | {"classifier.weight": torch.ones(2, 32).to(torch.float8_e4m3fn)}, "another head"),
    "complex, of another head": ("bert", lambda s: s | {"classifier.bias": torch.ones(2).cfloat()}, "another head"),
    "table three times": ("t5", lambda s: s | {"encoder.embed_tokens.weight": s["shared.weight"]}, "equals shared"),
    "bias that never was": (
        "t5",
        lambda s: s | {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.ones(32, 4)},
        "only self-attention has one"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_follows_from_the_config_is_left_out_with_the_reason(name: str, tmp_path: Path) -> None:
    kind, change, why = LEFT[name]
    saved(kind, tmp_path)
    before = logits(mg.load(tmp_path))
    changed(tmp_path, change)
    model = mg.load(tmp_path)
    np.testing.assert_array_equal(logits(model), before)
    (note,) = [n for n in model.notes if n.place.endswith(".safetensors")]
    assert why in note.why


OTHERS: dict[str, tuple[str, Change]] = {
    "other frequencies": ("llama", layers("model.layers.{}.self_attn.rotary_emb.inv_freq", inverse(8, 5e5))),
    "frequencies of another width": ("llama", lambda s: s | {"model.rotary_emb.inv_freq": inverse(16)}),
    "a window in the mask": ("gpt2", layers("transformer.h.{}.attn.bias", torch.triu(TRIANGLE, -3))),
    "a mask that hides nothing": ("gpt2", layers("transformer.h.{}.attn.masked_bias", torch.tensor(0.0))),
    "positions from 2": ("bert", lambda s: s | {"bert.embeddings.position_ids": torch.arange(2, 18)[None]}),
    "types of 1": ("bert", lambda s: s | {"bert.embeddings.token_type_ids": torch.ones(1, 16).long()}),
    "no values": ("llama", lambda s: s | {"model.rotary_emb.inv_freq": torch.ones(0)}),
    "numbers in 16 bits": ("llama", lambda s: s | {"model.rotary_emb.inv_freq": torch.ones(4).short()}),
    "complex": ("llama", lambda s: s | {"model.rotary_emb.inv_freq": torch.ones(4).cfloat()}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_the_reference_makes_anew_is_left_out_and_said_to_differ(name: str, tmp_path: Path) -> None:
    kind, change = OTHERS[name]
    net = saved(kind, tmp_path)
    changed(tmp_path, change)
    model = mg.load(tmp_path)
    with torch.no_grad():
        want = type(net).from_pretrained(tmp_path)(input_ids=IDS).logits.numpy()
    np.testing.assert_allclose(logits(model), want, atol=1e-5)
    (note,) = [n for n in model.notes if n.place.endswith(".safetensors")]
    assert "which transformers does not read either" in note.why or "and transformers does not read" in note.why


REFUSED: dict[str, tuple[str, Change, str]] = {
    "another table": ("t5", lambda s: s | {"encoder.embed_tokens.weight": s["shared.weight"] + 1}, "differs from"),
    "an adapter": ("llama", layers("model.layers.{}.self_attn.q_proj.lora_A.weight", torch.ones(4, 32)), "unexpected"),
    "a bias": ("llama", layers("model.layers.{}.self_attn.q_proj.bias", torch.ones(32)), "unexpected"),
    "a norm of queries": ("llama", layers("model.layers.{}.self_attn.q_norm.weight", torch.ones(8)), "unexpected"),
    "scales of 8 bits": ("llama", layers("model.layers.{}.mlp.up_proj.weight_scale_inv", torch.ones(1, 1)), "unexp"),
    "weights of 8 bits": (
        "llama", lambda s: {k: v.to(torch.float8_e4m3fn) if "up_proj" in k else v for k, v in s.items()}, "F8_E4M3"),
    "a name of another tool": ("llama", prefixed("model.", "module.model."), "missing: model.embed_tokens"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_follow_from_it_is_refused_with_all_its_names(name: str, tmp_path: Path) -> None:
    kind, change, message = REFUSED[name]
    saved(kind, tmp_path)
    before = set(load_file(tmp_path / "model.safetensors"))
    changed(tmp_path, change)
    with pytest.raises(WeightsError, match=message) as e:
        mg.load(tmp_path)
    added = set(load_file(tmp_path / "model.safetensors")) - before
    assert all(any(k in line for line in e.value.details) for k in added)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox", "bert", "tied"])
@pytest.mark.parametrize("way", ["without", "twice"])
def test_names_without_the_prefix_of_the_model_or_with_it_twice(kind: str, way: str, tmp_path: Path) -> None:
    net = saved(kind, tmp_path)
    before = logits(mg.load(tmp_path))
    prefix = f"{net.base_model_prefix}."
    changed(tmp_path, prefixed(prefix, "") if way == "without" else prefixed(prefix, prefix * 2))
    np.testing.assert_array_equal(logits(mg.load(tmp_path)), before)


def test_a_shard_that_is_gone_and_a_stale_one(tmp_path: Path) -> None:
    net = saved("llama", tmp_path)
    want = logits(mg.load(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    net.save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "consolidated.safetensors").write_bytes(b"of another layout")
    np.testing.assert_array_equal(logits(mg.load(tmp_path)), want)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    lost = index["weight_map"]["model.norm.weight"]
    (tmp_path / lost).unlink()
    with pytest.raises(WeightsError, match=lost):
        mg.load(tmp_path)
