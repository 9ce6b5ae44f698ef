"""Whole modules as people write them: raised or left, they compute what PyTorch computes, at sizes of every kind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import monograph as mg
import numpy as np
import pytest
import torch
from monograph.ir import DType, Graph, interpret, verify
from monograph.ir.ops.attention import Attention
from monograph.ir.types import bf16, f16
from monograph.passes.raising import raise_graph
from torch import nn
from torch.export import Dim
from torch.nn import functional
from torch.utils import _pytree as pytree
from torch_zoo import subject

WIDTH, HEADS = 16, 4
ROWS, LENGTH = Dim("rows", min=1, max=16), Dim("length", min=2, max=48)
SIZES = ((3, 5), (1, 9), (4, 4), (2, 16), (1, 2))
"""Rows and tokens; among them as many rows as heads, as many tokens as channels of a head, and one row."""


class Mixer(nn.Module):
    """Projections whose scores are far from 0, as those of a trained model are."""

    def __init__(self, function: Callable[..., Any], kv_heads: int = HEADS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.kv_heads, inner = function, kv_heads, WIDTH // HEADS * kv_heads
        self.q, self.k, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, inner), nn.Linear(WIDTH, inner)
        self.temperature = nn.Parameter(torch.tensor([0.5, 0.51, 0.49, 0.5]).reshape(HEADS, 1, 1))
        with torch.no_grad():
            for layer in (self.q, self.k, self.v):
                layer.weight.mul_(4)

    def forward(self, x: Any) -> Any:
        heads = ((self.q, HEADS), (self.k, self.kv_heads), (self.v, self.kv_heads))
        q, k, v = (y(x).unflatten(-1, (n, -1)).transpose(1, 2) for y, n in heads)
        y = self.function(q, k, v, self.temperature)
        return y.transpose(1, 2).flatten(2)


def _masked(scores: Any, keep: Callable[[Any, Any], Any], fill: float = -torch.inf) -> Any:
    at = torch.arange(scores.shape[-1])
    return scores.masked_fill(~keep(at[:, None], at[None]), fill).softmax(-1)


def einsum(q: Any, k: Any, v: Any, t: Any) -> Any:
    return torch.einsum("bhst,bhtd->bhsd", _masked(torch.einsum("bhsd,bhtd->bhst", q, k) / 2, lambda i, j: j <= i), v)


def by_head(q: Any, k: Any, v: Any, t: Any) -> Any:
    heads = [(q[:, i : i + 1] @ k[:, i : i + 1].mT * 0.5).softmax(-1) @ v[:, i : i + 1] for i in range(HEADS)]
    return torch.cat(heads, 1)


def rows_and_heads(q: Any, k: Any, v: Any, t: Any) -> Any:
    b, h, n, d = q.shape
    q, k, v = (x.reshape(b * h, n, d) for x in (q, k, v))
    weights = torch.baddbmm(torch.zeros(1, n, n, dtype=q.dtype), q, k.mT, beta=0, alpha=0.5).softmax(-1)
    return torch.bmm(weights, v).reshape(b, h, n, d)


def windowed(q: Any, k: Any, v: Any, t: Any) -> Any:
    return _masked(q @ k.mT * 0.5, lambda i, j: (j <= i) & (i - j < 3)) @ v


def repeated(q: Any, k: Any, v: Any, t: Any) -> Any:
    return (q @ k.repeat_interleave(2, 1).mT * 0.5).softmax(-1) @ v.repeat_interleave(2, 1)


def tiled(q: Any, k: Any, v: Any, t: Any) -> Any:
    return (q @ k.repeat(1, 2, 1, 1).mT * 0.5).softmax(-1) @ v.repeat(1, 2, 1, 1)


def repeated_and_tiled(q: Any, k: Any, v: Any, t: Any) -> Any:
    return (q @ k.repeat_interleave(2, 1).mT * 0.5).softmax(-1) @ v.repeat(1, 2, 1, 1)


def other_heads(q: Any, k: Any, v: Any, t: Any) -> Any:
    return (q @ k.roll(1, 1).mT * 0.5).softmax(-1) @ v.flip(1)


def cosine(q: Any, k: Any, v: Any, t: Any) -> Any:
    return (functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).mT * 10).softmax(-1) @ v


def over_channels(q: Any, k: Any, v: Any, t: Any) -> Any:
    return ((q.mT @ k * 0.1).softmax(-1) @ v.mT).mT


def dropped(q: Any, k: Any, v: Any, t: Any) -> Any:
    return functional.dropout((q @ k.mT * 0.5).softmax(-1), 0.3, False) @ v


def later(q: Any, k: Any, v: Any, t: Any) -> Any:
    return _masked(q @ k.mT * 0.5, lambda i, j: j >= i, -1e9) @ v


def earlier(q: Any, k: Any, v: Any, t: Any) -> Any:
    return _masked(q @ k.mT * 0.5, lambda i, j: (j < i) | (j == 0)) @ v


def temperatures(q: Any, k: Any, v: Any, t: Any) -> Any:
    return (q @ k.mT * t).softmax(-1) @ v


def over_queries(q: Any, k: Any, v: Any, t: Any) -> Any:
    return (q @ k.mT * 0.5).softmax(-2) @ v


def lessened(q: Any, k: Any, v: Any, t: Any) -> Any:
    return (q @ k.mT * 0.5).softmax(-1) * 0.99 @ v


def of_two(q: Any, k: Any, v: Any, t: Any) -> Any:
    return ((q @ k.mT * 0.5).softmax(-1) - 0.3 * (q.flip(1) @ k.mT * 0.5).softmax(-1)) @ v


RAISED = [
    einsum, by_head, rows_and_heads, windowed, other_heads, cosine, over_channels, dropped, later, earlier,
    temperatures,
]  # fmt: skip
GROUPED = [repeated, tiled, repeated_and_tiled]
LEFT = [over_queries, lessened, of_two]


def held(module: nn.Module, graph: Graph, model: mg.Model, given: tuple[Any, ...], bound: float = 1e-5) -> None:
    """A graph computes what the module does."""
    assert model.weights is not None
    with torch.no_grad():
        wanted = pytree.tree_leaves(module(*given))
    feeds = {
        k: x.float().numpy().astype(graph.inputs[k].dtype.numpy) if x.is_floating_point() else x.numpy()
        for k, x in zip(graph.inputs, pytree.tree_leaves(given), strict=True)
    }
    found = interpret(graph, feeds, {k: model.weights.numpy(k) for k in graph.params})
    assert len(found) == len(wanted)
    for y, w in zip(found.values(), wanted, strict=True):
        np.testing.assert_allclose(np.asarray(y, np.float64), w.double().numpy(), atol=bound * float(w.abs().max()))


@pytest.mark.parametrize("function", [*RAISED, *GROUPED, *LEFT])
@pytest.mark.parametrize("fixed", [False, True])
def test_a_module(function: Callable[..., Any], fixed: bool) -> None:
    """fixed: rows, tokens, heads and channels of a head are all 4."""
    module = Mixer(function, 2 if function in GROUPED else HEADS).eval()
    shapes = None if fixed else {"x": {0: ROWS, 1: LENGTH}}
    model = mg.load(module, {"x": torch.randn(4, 4, WIDTH)}, dynamic_shapes=shapes)
    graph = model.graph().copy()
    report = raise_graph(graph)
    verify(graph)
    found = sum(isinstance(n.op, Attention) for n in graph)
    assert found == (0 if function in LEFT else HEADS if function is by_head else 1), report
    for rows, tokens in [(4, 4)] if fixed else SIZES:
        held(module, graph, model, (torch.randn(rows, tokens, WIDTH),))


@pytest.mark.parametrize(("torch_dtype", "dtype"), [(torch.bfloat16, bf16), (torch.float16, f16)])
@pytest.mark.parametrize("function", [einsum, windowed, lessened])
def test_half_a_type_hides_no_factor(function: Callable[..., Any], torch_dtype: Any, dtype: DType) -> None:
    """A graph of halves is compared in f32, where 0.99 is no rounding; raised, it is as near to the exact numbers."""
    module = Mixer(function).eval().to(torch_dtype)
    torch.manual_seed(1)
    given = torch.randn(2, 6, WIDTH).to(torch_dtype)
    model = mg.load(module, {"x": given}, dynamic_shapes={"x": {0: ROWS, 1: LENGTH}})
    assert model.weights is not None
    graph = model.graph(dtype).copy()
    report = raise_graph(graph)
    assert report.counts.get("attention", 0) == (function is not lessened), report
    weights = {k: model.weights.numpy(k) for k in graph.params}
    (found,) = interpret(graph, {"x": given.float().numpy().astype(dtype.numpy)}, weights).values()
    with torch.no_grad():
        exact = copy.deepcopy(module).double()
        wanted, bound = exact(given.double()).numpy(), rounded(exact, given.double(), torch.finfo(torch_dtype).eps / 2)
    assert np.abs(np.asarray(found, np.float64) - wanted).max() <= bound


def rounded(module: Mixer, x: Any, unit: float) -> float:
    """How far attention with scale 0.5 may be off if every value is rounded: q, k, their product, the scaled product,
    then the weights, of which the relative error is twice the scores' absolute one, v, and the sum."""
    q, k, v = (y(x).abs().unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in (module.q, module.k, module.v))
    scores = 4 * unit * float((q @ k.mT / 2).max())
    return float(v.max()) * (np.expm1(2 * scores) + 4 * unit)


class Tied(nn.Module):
    """Tied weights, a buffer that is stored and one that is not, nested inputs, outputs of two kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mixer = nn.Embedding(40, WIDTH), Mixer(self.mixed)
        self.head, self.norm = nn.Linear(WIDTH, 40, bias=False), nn.LayerNorm(WIDTH)
        self.head.weight = self.embed.weight
        self.still = nn.Parameter(torch.full((WIDTH,), 3.0), requires_grad=False)
        self.register_buffer("places", torch.randn(64, WIDTH))
        self.register_buffer("triangle", torch.ones(64, 64).tril(), persistent=False)

    def mixed(self, q: Any, k: Any, v: Any, t: Any) -> Any:
        n = q.shape[2]
        return (q @ k.mT * 0.5 + (1 - self.triangle[:n, :n]) * -1e9).softmax(-1) @ v

    def forward(self, batch: dict[str, Any], extra: tuple[Any, Any]) -> Any:
        ids = batch["ids"]
        x = self.norm(self.embed(ids) * self.still + self.places[: ids.shape[1]] + extra[0])
        return {"logits": self.head(self.mixer(x) + extra[1]), "pooled": (x.mean(1), x.amax(-1))}


def nested(rows: int, tokens: int) -> tuple[Any, ...]:
    return {"ids": torch.randint(0, 40, (rows, tokens))}, tuple(torch.randn(2, rows, tokens, WIDTH))


def loaded() -> tuple[nn.Module, mg.Model]:
    module, sizes = Tied().eval(), {0: ROWS, 1: LENGTH}
    return module, mg.load(module, nested(2, 6), dynamic_shapes=({"ids": sizes}, (sizes, sizes)))


def test_a_module_of_many_parts() -> None:
    module, model = loaded()
    graph = model.graph().copy()
    assert model.weights is not None
    assert raise_graph(graph, model.weights.numpy).counts["attention"] == 1
    assert list(graph.outputs) == ["logits", "pooled.0", "pooled.1"]
    for rows, tokens in SIZES:
        held(module, graph, model, nested(rows, tokens))


def test_drawn_anew_it_keeps_what_does_not_train() -> None:
    _, model = loaded()
    again, other = mg.init(model, 3), mg.init(model, 4)
    assert model.weights is not None and again.weights is not None and other.weights is not None
    assert set(again.weights) == set(model.graph().params)
    for kept in ("places", "still"):
        np.testing.assert_array_equal(again.weights.numpy(kept), model.weights.numpy(kept))
    embed = again.weights.numpy("embed.weight")
    assert 0.015 < embed.std() < 0.025
    assert (embed != other.weights.numpy("embed.weight")).any()
    assert (again.weights.numpy("norm.weight") == 1).all() and (again.weights.numpy("norm.bias") == 0).all()
    engine = mg.to_torch(again)
    assert all(torch.isfinite(x).all() for x in engine.parameters())


class Starting(nn.Module):
    """Parameters whose shape does not say what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.lstm = nn.Conv1d(1, 1, 1), nn.Linear(6, 1), nn.LSTM(6, 3, batch_first=True)
        self.heads = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm, self.places = nn.BatchNorm1d(6), nn.Parameter(torch.randn(1, 4, 6))
        self.gain, self.shift = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.randn(6))
        self.token = nn.Parameter(torch.randn(1, 1, 6))

    def forward(self, x: Any) -> Any:
        y = torch.cat(
            [self.conv(x.flatten(0, 1)[:, None])[:, 0].reshape(x.shape), self.token.expand(len(x), -1, -1)], 1
        )
        y = self.norm((y + self.places + self.shift).mT).mT * self.gain
        return self.one(self.lstm(self.heads(y, y, y)[0])[0].repeat(1, 1, 2))


def test_what_reads_a_parameter_says_how_it_starts() -> None:
    model = mg.load(Starting().eval(), torch.randn(2, 3, 6))
    kinds = {k: str(v.init) for k, v in model.graph().params.items()}
    ones, zeros = {"norm.weight", "gain"}, {k for k in kinds if k.endswith("bias") or "bias_" in k} | {"shift"}
    fixed = {"norm.running_mean", "norm.running_var"}
    others = kinds.keys() - ones - zeros - fixed - {"norm.num_batches_tracked"}
    assert {"one.weight", "conv.weight", "places", "token", "heads.in_proj_weight", "lstm.weight_hh_l0"} <= others
    assert {kinds[k] for k in ones} == {"ones"} and {kinds[k] for k in zeros} == {"zeros"}, kinds
    assert {kinds[k] for k in fixed} == {"fixed"} and {kinds[k] for k in others} == {"normal(0.02)"}, kinds


def test_raising_takes_numbers_that_were_reshaped() -> None:
    given = subject("clip_text")
    graph = mg.load(given.module, given.traced, dynamic_shapes=given.varies).graph().copy()
    assert raise_graph(graph).counts["attention"] == 1
    verify(graph)
