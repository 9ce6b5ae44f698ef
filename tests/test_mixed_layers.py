"""Random stacks of all layers that remember something: pieces of any length give what the whole gives, in f64."""

from __future__ import annotations

from collections.abc import Callable

import monograph as mg
import numpy as np
import pytest
from monograph import Scope, Value, ops
from monograph.frontends.experts import routed
from monograph.frontends.layers import attention
from monograph.frontends.recurrent import compacted, recurrent, spread
from monograph.ir import Graph, interpret
from monograph.ir.types import bool_, f64
from monograph.ir.weights import Weights
from monograph.passes.differential import random_params
from monograph.passes.state import add_state
from test_family_state import first_state, next_state

pytestmark = pytest.mark.slow

ROWS, LENGTH, WIDTH, VOCAB = 3, 11, 8, 13
Layer = Callable[[Scope, Value, Value], Value]


def recurrence(kind: str) -> Layer:
    def layer(m: Scope, x: Value, mask: Value) -> Value:
        order, place, lengths = compacted(mask)
        y, _ = recurrent(m, kind, spread(x, order), WIDTH, 1, lengths)
        return spread(y, place)

    return layer


def convolution(m: Scope, x: Value, mask: Value) -> Value:
    y, _ = ops.causal_conv(x, m.param("w", WIDTH, 3), mask=mask.cast(bool_))
    return ops.silu(y)


def space(m: Scope, x: Value, mask: Value) -> Value:
    batch, length, _ = x.shape
    counts = mask.cast(x.dtype).reshape(batch, length, 1)
    decay = ops.neg(ops.softplus(m.linear("decay", x, 2))) * counts
    b, c = (m.linear(name, x, 3).reshape(batch, length, 1, 3) for name in ("b", "c"))
    y, _ = ops.state_space((x * counts).split_heads(2), decay, b, c)
    return y.merge_heads()


def attended(window: int | None) -> Layer:
    return lambda m, x, mask: attention(m, x, heads=2, causal=True, window=window, mask=mg.key_mask(mask))


def mixture(m: Scope, x: Value, mask: Value) -> Value:
    weights, indices = ops.topk(ops.softmax(m.linear("gate", x, 3)), k=2)
    return routed(m / "experts", x, weights, indices, count=3, width=4, activation="silu")


LAYERS: dict[str, Layer] = {
    **{kind: recurrence(kind) for kind in ("rnn", "lstm", "gru")},
    "convolution": convolution,
    "space": space,
    "attention": attended(None),
    "window": attended(3),
    "experts": mixture,
}


class Stack(mg.Config):
    kinds: str = ""


@mg.model
def stack(m: Scope, c: Stack, input_ids: Value, attention_mask: Value) -> Value:
    x = m.embed("embedding", input_ids, VOCAB, WIDTH)
    for i, kind in enumerate(c.kinds.split()):
        layer = m / f"layer.{i}"
        x = x + LAYERS[kind](layer, layer.rms_norm("norm", x, 1e-6), attention_mask)
    return m.linear("head", x, VOCAB)


def random_mask(rng: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Padding on the left, on the right and between, in each row otherwise."""
    counts = (rng.random((ROWS, LENGTH)) < rng.choice([0.4, 0.8, 1.0], (ROWS, 1))).astype(np.int64)
    ends = rng.integers(0, 4, (ROWS, 2))
    columns = np.arange(LENGTH)
    return counts * (columns >= ends[:, :1]) * (columns < LENGTH - ends[:, 1:])


@pytest.mark.parametrize("seed", range(24))
def test_pieces_give_what_the_whole_gives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kinds = " ".join(rng.choice(list(LAYERS), rng.integers(2, 5)))
    model = stack(kinds=kinds)
    whole: Graph = model.graph(f64)
    graph = whole.copy()
    add_state(graph)
    params, mask = random_params(whole), random_mask(rng)
    every = {"input_ids": rng.integers(0, VOCAB, (ROWS, LENGTH)), "attention_mask": mask}
    wanted = interpret(whole, every, params)["logits"]
    state, made, at = first_state(graph), [], 0
    while at < LENGTH:
        n = int(min(rng.integers(1, 6), LENGTH - at))
        given = {"input_ids": every["input_ids"][:, at : at + n], "attention_mask": mask[:, : at + n]}
        found = interpret(graph, given | state, params)
        state, at = next_state(graph, found), at + n
        made.append(found["logits"])
    got, counts = np.concatenate(made, 1), mask.astype(bool)
    np.testing.assert_allclose(got[counts], wanted[counts], rtol=0, atol=1e-10, err_msg=kinds)


def test_every_kind_of_layer_is_in_some_stack() -> None:
    drawn = set[str]()
    for seed in range(24):
        rng = np.random.default_rng(seed)
        drawn |= set(rng.choice(list(LAYERS), rng.integers(2, 5)))
    assert drawn == set(LAYERS)


@pytest.mark.parametrize(
    "kinds", ["gru convolution window attention", "space experts window", "lstm space convolution"]
)
def test_a_session_composes_them(kinds: str) -> None:
    model = stack(kinds=kinds)
    model.weights = Weights.of(random_params(model.graph()))
    found = mg.verify(model)
    assert {r.backend for r in found.rows} >= {"torch", "onnx", "ort", "ort session"}
    assert found.passed, [str(r) for r in found.rows if not r.passed]
