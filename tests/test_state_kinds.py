"""Every way to mix tokens: decoding equals the full forward, for each row as if alone, or the node is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import pytest
from monograph import ops
from monograph.frontends.dsl import Model
from monograph.ir import DType, Graph, interpret
from monograph.ir.errors import PassError
from monograph.ir.interpret import Array
from monograph.ir.slots import Growth
from monograph.ir.weights import Weights
from monograph.passes import pipelines
from monograph.passes.differential import newest

F32 = DType.f32
VOCAB, WIDTH = 19, 16


class Settings(mg.Config):
    heads: int = 2
    kind: str = ""


def key_bias(kind: str, ids: Any, mask: Any, positions: Any) -> Any:
    """A bias over keys [.., S or 1, S] before its slopes, written in one of many ways; None for other kinds."""
    batch, length = ids.shape
    columns = ops.iota(start=0, length=length).cast(F32)
    stands = positions.cast(F32)
    kept = mask.cast(F32)
    made = {
        "positions": lambda: stands.reshape(batch, 1, 1, length),
        "distance": lambda: stands.reshape(batch, 1, 1, length) - stands.reshape(batch, 1, length, 1),
        "columns": lambda: columns.reshape(1, 1, 1, length),
        "column distance": lambda: columns.reshape(1, 1, 1, length) - columns.reshape(1, 1, length, 1),
        "mask": lambda: kept.reshape(batch, 1, 1, length) * 3.0,
        "masked columns": lambda: (columns.reshape(1, length) * kept).reshape(batch, 1, 1, length),
        "counted mask": lambda: ops.cumsum(kept, axis=1).reshape(batch, 1, 1, length),
        "first position": lambda: ops.expand(
            ops.slice_(stands, axis=1, start=0, length=1).reshape(batch, 1, 1, 1), shape=(batch, 1, 1, length)
        ),
        "mean of the mask": lambda: ops.mean(kept.reshape(batch, 1, 1, length)) * columns.reshape(1, 1, 1, length),
        "last position": lambda: ops.expand(
            ops.slice_(stands, axis=1, start=length - 1, length=1).reshape(batch, 1, 1, 1), shape=(batch, 1, 1, length)
        ),
    }
    return made[kind]() if kind in made else None


def shifted(x: Any, first: Any) -> Any:
    """x with every token as many places later as `first` has."""
    return ops.slice_(ops.concat(first, x, axis=1), axis=1, start=0, length=x.shape[1])


def mixed(kind: str, m: mg.Scope, x: Any) -> Any:
    """x, where tokens read others outside attention in the way of a kind."""
    batch, length, _ = x.shape
    zero = ops.constant(value=0.0, dtype=F32).reshape(1, 1, 1)
    if kind == "shift":
        return x + m.linear("mix", shifted(x, ops.slice_(x, axis=1, start=0, length=1) * 0.0), WIDTH)
    if kind == "two shifts":
        once = shifted(x, ops.expand(zero, shape=(batch, 1, WIDTH)))
        return x + m.linear("mix", shifted(once, ops.expand(zero, shape=(batch, 2, WIDTH))), WIDTH)
    if kind == "shift behind a layer":
        y = ops.tanh(m.linear("before", shifted(x, ops.expand(zero, shape=(batch, 1, WIDTH))), WIDTH))
        return x + shifted(y, ops.expand(zero, shape=(batch, 3, WIDTH)))
    if kind == "shift of what is left":
        first = ops.expand(zero, shape=(batch, 1, WIDTH))
        before = ops.concat(first, ops.slice_(x, axis=1, start=0, length=length - 1), axis=1)
        return x + m.linear("mix", before, WIDTH)
    if kind == "running sum":
        return x + ops.cumsum(x, axis=1)
    if kind == "ahead":
        return x + ops.concat(
            ops.slice_(x, axis=1, start=1, length=length - 1), ops.expand(zero, shape=(batch, 1, WIDTH)), axis=1
        )
    if kind == "mean":
        return x + ops.mean(x, axis=1, keepdims=True)
    if kind == "product":
        return x + ops.matmul(ops.matmul(x, x.transpose(0, 2, 1)), x)
    if kind == "recurrent":
        order, place, lengths = ops.compact(ops.less(ops.constant(value=-1.0, dtype=F32), _zeros(x)))
        rows = ops.take_along_axis(x, ops.expand(order.reshape(batch, length, 1), shape=x.shape), axis=1)
        weights = [m.param(n, 3 * WIDTH, WIDTH) for n in ("w_ih", "w_hh")]
        y, _ = ops.gru(rows, *weights, lengths=lengths)
        return x + ops.take_along_axis(y, ops.expand(place.reshape(batch, length, 1), shape=x.shape), axis=1)
    return x


def _zeros(x: Any) -> Any:
    return ops.expand(ops.constant(value=0.0, dtype=F32).reshape(1, 1), shape=x.shape[:2])


@mg.model
def kinds(m: mg.Scope, c: Settings, input_ids: Any, attention_mask: Any, position_ids: Any) -> Any:
    x = mixed(c.kind, m, m.embed("embed", input_ids, VOCAB, WIDTH))
    batch = x.shape[0]
    mask = mg.key_mask(attention_mask)
    options: dict[str, Any] = {}
    bias = key_bias(c.kind, input_ids, attention_mask, position_ids)
    if bias is not None:
        options["bias"] = m.param("slopes", 1, c.heads, 1, 1) * bias
    if "window" in c.kind:
        options["window"] = 3
    if c.kind == "masked values":
        x, mask = x * attention_mask.cast(F32).reshape(*x.shape[:2], 1), None
    for layer in (m / "a", m / "b"):
        q, k, v = (layer.linear(n, x, WIDTH).split_heads(c.heads) for n in "qkv")
        if c.kind == "window of turned keys":
            q, k = (layer.rope(y, position_ids, theta=100.0) for y in (q, k))
        if c.kind == "prefix of keys":
            memory = ops.expand(
                layer.param("memory", 1, 2, WIDTH).reshape(1, 2, c.heads, -1),
                shape=(batch, 2, c.heads, WIDTH // c.heads),
            )
            k, v, mask = ops.concat(memory, k, axis=1), ops.concat(memory, v, axis=1), None
        if c.kind == "keys of two tokens":
            k = k + shifted(k, ops.slice_(k, axis=1, start=0, length=1) * 0.0)
        y = ops.attention(q, k, v, mask=mask, causal=c.kind != "both ways", **options)
        x = x + layer.linear("o", y.merge_heads(), WIDTH)
    return m.linear("head", m.rms_norm("norm", x, 1e-5), VOCAB)


RIGHT = [
    "", "positions", "distance", "columns", "column distance", "mask", "masked columns", "counted mask",
    "first position", "window", "window of turned keys", "prefix of keys", "masked values", "shift", "two shifts",
    "shift behind a layer", "shift of what is left", "running sum", "keys of two tokens", "recurrent",
]  # fmt: skip
REFUSED = {
    "mean of the mask": "mean reads all tokens",
    "last position": "slice reads all tokens",
    "ahead": "slice looks 1 tokens ahead",
    "mean": "mean reads all tokens",
    "product": "matmul reads all tokens",
    "both ways": "attention reads all tokens",
}


def ready(kind: str, heads: int = 2) -> tuple[Model, dict[str, Array]]:
    """A model of a kind with weights under which every part matters."""
    model = kinds(heads=heads, kind=kind)
    first = Weights.initialize(model.graph(), 0)
    arrays = {k: first.numpy(k) * (1 if "norm" in k else 20) for k in first}
    model.weights = Weights.of(arrays)
    return model, arrays


def by_chunks(graph: Graph, arrays: dict[str, Array], given: dict[str, Array], ends: list[int]) -> Array:
    """Logits of a serving graph that reads the tokens up to each end in one call."""
    batch = len(given["input_ids"])
    remembered = {
        s.input: np.zeros(
            [n if isinstance(n, int) else batch if str(n) == "B" else 0 for n in s.type.shape], s.type.dtype.numpy
        )
        for s in graph.slots
    }
    parts, start = [], 0
    for end in ends:
        now = {k: v[:, :end] if k == "attention_mask" else v[:, start:end] for k, v in given.items()} | remembered
        found = interpret(graph, {k: now[k] for k in graph.inputs}, arrays)
        remembered = {s.input: newest(found[s.output], s) for s in graph.slots}
        parts.append(found["logits"])
        start = end
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("kind", RIGHT)
def test_chunks_behind_a_past_equal_the_full_forward(kind: str) -> None:
    model, arrays = ready(kind)
    plain = model.graph()
    graph = pipelines.decode(plain)
    assert graph.slots
    ids = np.random.default_rng(0).integers(0, VOCAB, (2, 9))
    left = np.ones_like(ids)
    left[0, :2] = 0
    for mask in (np.ones_like(ids), left):
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": np.maximum(np.cumsum(mask, 1) - 1, 0)}
        wanted = interpret(plain, {k: given[k] for k in plain.inputs}, arrays)["logits"]
        for ends in ([9], [4, 5, 6, 7, 8, 9], [1, 6, 9]):
            found = by_chunks(graph, arrays, given, ends)
            np.testing.assert_allclose(found[mask == 1], wanted[mask == 1], atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_go_on_from_a_past_is_refused_by_name(kind: str) -> None:
    model, _ = ready(kind)
    with pytest.raises(PassError, match=rf"test_state_kinds\.py:\d+.*: {REFUSED[kind]}"):
        pipelines.decode(model.graph())


@pytest.mark.slow
@pytest.mark.parametrize("heads", [2, 4], ids=["buffers", "growing"])
@pytest.mark.parametrize("kind", RIGHT)
def test_each_row_of_a_ragged_batch_gets_what_it_gets_alone(kind: str, heads: int, tmp_path: Path) -> None:
    model, arrays = ready(kind, heads)
    plain = model.graph()
    session = mg.build(model, tmp_path / "built", threads=1).session
    ids = np.random.default_rng(1).integers(0, VOCAB, (3, 24))

    def alone(row: int, length: int) -> Array:
        tokens = ids[row : row + 1, :length]
        given = {
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "position_ids": np.arange(length)[None],
        }
        return interpret(plain, {k: given[k] for k in plain.inputs}, arrays)["logits"][0, -1]

    lengths = np.array([5, 2, 4])

    def check(logits: Array) -> None:
        wanted = np.stack([alone(row, n) for row, n in enumerate(lengths)])
        np.testing.assert_allclose(logits, wanted, atol=1e-4 * np.abs(wanted).max())

    check(session.prefill(ids[:, :5], lengths))
    for counts in ([1, 1, 1], [1, 1, 1], [5, 5, 5], [2, 4, 1], [1, 1, 1]):
        chunk = np.stack(
            [np.resize(ids[r, n : n + c], max(counts)) for r, (n, c) in enumerate(zip(lengths, counts, strict=True))]
        )
        logits = session.append(chunk, counts)
        lengths = lengths + counts
        check(logits)


def test_windows_keep_no_more_than_they_need() -> None:
    graph = pipelines.decode(ready("window")[0].graph())
    assert {s.growth for s in graph.slots} == {Growth.window} and {s.window for s in graph.slots} == {3}
    shifts = pipelines.decode(ready("two shifts")[0].graph())
    assert [s.window for s in shifts.slots if s.growth is Growth.window] == [4]
