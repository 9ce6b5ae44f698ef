"""Graphs from elsewhere that are built or exported: attention in parts is fused where every row stays what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import monograph as mg
import monograph.raising
import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.export import Dim

FILLS = {
    "no": torch.finfo(torch.float32).min,
    "-inf": -torch.inf,
    "lowest": torch.finfo(torch.float32).min,
    "-1e4": -1e4,
}
SIZES = {0: Dim("rows", min=1, max=64), 1: Dim("length", min=2, max=512)}
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 9, [1, 1, 1, 1, 1, 1, 0, 1, 0]])


class Reader(nn.Module):
    """Attention in parts. fill: of what a causal mask hides ("no": nothing is causal); -1e4 is added."""

    def __init__(self, fill: str) -> None:
        super().__init__()
        self.causal, self.added, self.fill = fill != "no", fill == "-1e4", FILLS[fill]
        self.table, self.norm = nn.Embedding(50, 32), nn.LayerNorm(32)
        self.qkv, self.out, self.head = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 50)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.table(tokens)
        b, s, d = x.shape
        q, k, v = (y.view(b, s, 4, 8).transpose(1, 2) for y in self.qkv(self.norm(x)).chunk(3, -1))
        keep = torch.ones(s, s, dtype=torch.bool)
        keep = keep.tril() if self.causal else keep
        keep = keep if mask is None else keep & mask[:, None, None, :].bool()
        scores = q @ k.transpose(-1, -2) / 8**0.5
        scores = scores + (~keep).float() * self.fill if self.added else scores.masked_fill(~keep, self.fill)
        return self.head(x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, s, d)))


def loaded(fill: str, *, masked: bool) -> tuple[nn.Module, mg.Model, dict[str, torch.Tensor]]:
    """The module, the model, and inputs of other sizes than the traced ones."""
    torch.manual_seed(0)
    module = Reader(fill).eval()
    given = {"tokens": torch.randint(0, 50, (3, 9)), "mask": MASK}
    given = given if masked else {"tokens": given["tokens"]}
    traced = {k: x[:2, :7].contiguous() for k, x in given.items()}
    return module, mg.load(module, traced, dynamic_shapes=dict.fromkeys(given, SIZES)), given


def kinds(file: Path) -> list[str]:
    return [n.op_type for n in onnx.load(file, load_external_data=False).graph.node]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("fill", FILLS)
def test_a_module_is_fused_and_all_its_rows_stay(fill: str, masked: bool, tmp_path: Path) -> None:
    module, model, given = loaded(fill, masked=masked)
    expected = module(**given).detach().numpy()
    with mg.build(model, tmp_path / "built", strict=fill == "no") as engine:
        found = engine.run({k: x.numpy() for k, x in given.items()})["output"]
    assert np.isnan(expected).any() == (fill == "-inf" and masked)
    np.testing.assert_allclose(found[~np.isnan(expected)], expected[~np.isnan(expected)], atol=1e-5)
    assert sum(k.endswith("Attention") for k in kinds(tmp_path / "built" / "model.onnx")) == 1

    mg.export(model, tmp_path / "out")
    assert "Softmax" not in kinds(tmp_path / "out" / "model.onnx")
    with mg.build(mg.load(tmp_path / "out" / "model.onnx")) as engine:
        again = engine.run({k: x.numpy() for k, x in given.items()})["output"]
    np.testing.assert_allclose(again[~np.isnan(expected)], expected[~np.isnan(expected)], atol=1e-5)


def test_what_differs_in_f64_is_not_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    raising: Any = monograph.raising.raise_graph

    def wrong(graph: mg.Graph, *given: Any, **options: Any) -> Any:
        report = raising(graph, *given, **options)
        node = next(n for n in graph if n.op.name == "attention")
        node.attributes = {**node.attributes, "scale": 0.5}
        return report

    monkeypatch.setattr(monograph.raising, "raise_graph", wrong)
    module, model, given = loaded("no", masked=False)
    with mg.build(model, tmp_path / "built") as engine:
        found = engine.run({"tokens": given["tokens"].numpy()})["output"]
        assert "it would change what is computed: in f64" in engine.report.raised
    np.testing.assert_allclose(found, module(**given).detach().numpy(), atol=1e-5)
    assert "Softmax" in kinds(tmp_path / "built" / "model.onnx")


def test_a_key_mask_that_pytorch_spreads_over_heads_is_one_over_keys(tmp_path: Path) -> None:
    """`nn.TransformerEncoder` makes its mask numbers, repeats them for each head, and looks which are all -inf."""

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
            self.embed, self.encoder = nn.Embedding(50, 32, padding_idx=0), nn.TransformerEncoder(layer, 2)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.encoder(self.embed(tokens), src_key_padding_mask=tokens == 0)

    torch.manual_seed(0)
    module, tokens = Tagger().eval(), torch.randint(1, 50, (3, 9))
    tokens[0, :4] = tokens[2, 6:] = 0
    model = mg.load(module, {"tokens": tokens[:2, :7].contiguous()}, dynamic_shapes={"tokens": SIZES})
    with mg.build(model, tmp_path / "built", strict=True) as engine:
        found = engine.run({"tokens": tokens.numpy()})["output"]
    assert kinds(tmp_path / "built" / "model.onnx").count("MultiHeadAttention") == 2
    with torch.no_grad():
        np.testing.assert_allclose(found, module(tokens).numpy(), atol=1e-5)
