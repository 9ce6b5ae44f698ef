"""Tiny models of transformers, exported by torch.export and to ONNX, are raised whole and compute the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from monograph.frontends.onnx.load import load_onnx
from monograph.frontends.torch_export import from_module
from monograph.ir import interpret, verify
from monograph.ir.ops.attention import Attention
from monograph.passes.raising import raise_graph

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 32, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32,
    "dim": 16, "hidden_dim": 24, "n_heads": 4, "n_layers": 2, "ffn_dim": 24, "word_embed_proj_dim": 16, "head_dim": 4,
    "sliding_window": 3, "pad_token_id": 0, "rotary_dim": 4, "attention_types": [[["global", "local"], 1]],
    "window_size": 3, "num_layers": 2, "num_heads": 4,
}  # fmt: skip
CAUSAL: dict[str, dict[str, int]] = {
    "llama": {"attention": 2, "rope": 4, "rms_norm": 5}, "gemma2": {"attention": 2, "rope": 4, "rms_norm": 9},
    "gpt_neox": {"attention": 2, "rope": 4}, "gpt2": {"attention": 2}, "bloom": {"attention": 2},
}  # fmt: skip
ENCODERS = {"bert": {"attention": 2}, "mpnet": {"attention": 2}}


class Logits(torch.nn.Module):
    """The first output of a model, without a cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.m = model

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        off = {"use_cache": False} if hasattr(self.m.config, "use_cache") else {}
        return self.m(input_ids=input_ids, attention_mask=attention_mask, **off)[0]


def tiny(kind: str, attention: str) -> Logits:
    config = transformers.AutoConfig.for_model(kind)
    for name, value in SIZES.items():
        if hasattr(config, name):
            setattr(config, name, value)
    config._attn_implementation = attention
    torch.manual_seed(0)
    auto = transformers.AutoModelForCausalLM if kind in CAUSAL else transformers.AutoModel
    return Logits(auto.from_config(config)).eval()


def example(mask: str = "left") -> tuple[Any, Any]:
    ids = torch.from_numpy(np.random.default_rng(1).integers(1, 40, (2, 6)))
    kept = torch.ones(2, 6, dtype=torch.long)
    kept[0, {"left": slice(0, 2), "right": slice(4, 6), "hole": slice(2, 3), "ones": slice(0, 0)}[mask]] = 0
    return ids, kept


def exported(module: Logits) -> Any:
    """Through torch.export."""
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", min=2, max=30)}
    shapes = {"input_ids": sizes, "attention_mask": sizes}
    return from_module(module, example(), dynamic_shapes=shapes)


def scripted(module: Logits, folder: Path) -> Any:
    """Through the TorchScript exporter and an ONNX file."""
    path, names = folder / "model.onnx", ["input_ids", "attention_mask"]
    axes = {name: {0: "batch", 1: "tokens"} for name in names}
    torch.onnx.export(
        module, example(), str(path), dynamo=False, opset_version=17, input_names=names, dynamic_axes=axes
    )
    module.eval()
    return load_onnx(path)


def check(model: Any, module: Logits, wanted: dict[str, int], causal: bool) -> None:
    graph = model.graph()
    read: Callable[[str], Any] = model.weights.numpy
    params = {name: read(name) for name in graph.params}
    report = raise_graph(graph, read)
    verify(graph)
    assert not report.left and not report.undone, str(report)
    assert {name: report.counts.get(name, 0) for name in wanted} == wanted, str(report)
    for node in graph:
        if isinstance(node.op, Attention):
            assert node.attributes["causal"] == causal
            assert node.value("mask").shape[1:3] == (1, 1), "what is left of the mask is that of the keys"
    for kind in ("ones", "left", "right", "hole"):
        ids, kept = example(kind)
        names = list(graph.inputs)
        (found, *_) = interpret(graph, {names[0]: ids.numpy(), names[1]: kept.numpy()}, params).values()
        with torch.no_grad():
            expected = module(ids, kept).numpy()
        rows = kept.numpy()[..., None] != 0
        np.testing.assert_allclose(np.where(rows, found, 0), np.where(rows, expected, 0), atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        ("llama", "sdpa"), ("gemma2", "eager"), ("gpt_neox", "eager"), ("bloom", "eager"), ("gpt2", "sdpa"),
        ("bert", "sdpa"), ("mpnet", "eager"),
    ],
)  # fmt: skip
def test_torch_export(kind: str, attention: str) -> None:
    module = tiny(kind, attention)
    check(exported(module), module, {**CAUSAL, **ENCODERS}[kind], kind in CAUSAL)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "attention"), [("llama", "eager"), ("llama", "sdpa"), ("gpt2", "eager"), ("bert", "sdpa")]
)
def test_torchscript(kind: str, attention: str, tmp_path: Path) -> None:
    module = tiny(kind, attention)
    check(scripted(module, tmp_path), module, {**CAUSAL, **ENCODERS}[kind], kind in CAUSAL)
