"""Random decoders against the interpreter, row by row: every way to read tokens gives the full forward's numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import pytest
from monograph import ops
from monograph.frontends.dsl import Family, Model
from monograph.ir import DType, Graph, interpret
from monograph.ir.errors import PassError, RuntimeInputError
from monograph.ir.interpret import Array
from monograph.ir.weights import Weights
from monograph.passes import pipelines
from monograph.passes.left_padding import why_alone
from test_state_kinds import by_chunks

F32 = DType.f32
VOCAB, WIDTH, LIMIT = 19, 16, 90


class Settings(mg.Config):
    seed: int = 0


class Stack:
    """Layers over tokens, drawn by chance. inputs: those of the model, of which masks and biases are made."""

    def __init__(self, m: mg.Scope, seed: int, ids: Any, mask: Any, positions: Any) -> None:
        self.m, self.chance = m, np.random.default_rng(seed)
        self.ids, self.mask, self.positions = ids, mask, positions
        self.batch, self.length = ids.shape
        self.width = self.one_of(8, 8, 16, 3)
        self.keys: list[tuple[Any, Any]] = []
        self.count = 0

    def one_of(self, *choices: Any) -> Any:
        return choices[int(self.chance.integers(len(choices)))]

    def often(self, share: float) -> bool:
        return bool(self.chance.random() < share)

    def scope(self) -> mg.Scope:
        self.count += 1
        return self.m / f"layer{self.count}"

    def logits(self) -> Any:
        x = self.m.embed("embed", self.ids, VOCAB, WIDTH)
        if self.positions is not None and self.often(0.3):
            x = x + self.m.embed("places", self.positions, LIMIT, WIDTH)
        for _ in range(int(self.chance.integers(1, 4))):
            x = x + self.one_of(self.attention, self.attention, self.attention, self.recurrent, self.moved)(x)
        return self.m.linear("head", self.m.rms_norm("norm", x, 1e-5), VOCAB)

    def column(self) -> Any:
        """A number for each token, f32 [B or 1,S]."""
        made = [ops.iota(start=0, length=self.length).cast(F32).reshape(1, self.length), self.ids.cast(F32) * 0.1]
        if self.mask is not None:
            made += [self.mask.cast(F32), ops.cumsum(self.mask.cast(F32), axis=1)]
        if self.positions is not None:
            made.append(self.positions.cast(F32))
        return self.one_of(*made)

    def ends(self) -> tuple[Any, Any]:
        """A number for each key and one for each query, [..,1,S] and [..,S,1]."""
        c = self.column()
        return c.reshape(c.shape[0], 1, 1, self.length), c.reshape(c.shape[0], 1, self.length, 1)

    def bias(self) -> Any:
        key, query = self.ends()
        steps = ops.minimum(ops.maximum(query - key, _number(0.0)), _number(4.0)).cast(DType.i64)
        buckets = ops.embedding(steps, self.scope().param("buckets", 5, 1)).reshape(*steps.shape)
        return self.one_of(key, key - query, ops.abs(key - query) * -1.0, key * query * 0.05, buckets)

    def keep(self) -> Any:
        """What may be attended to: the key mask, perhaps with something else."""
        key, query = self.ends()
        other = self.one_of(ops.less(query, key + _number(3.0)), ops.less_equal(key, query), ops.equal(key, query))
        if self.mask is None:
            return self.one_of(None, other)
        kept = mg.key_mask(self.mask)
        first = ops.logical_or(kept, ops.less(key, _number(1.0)))
        return self.one_of(kept, kept, kept, None, kept & other, first)

    def attention(self, x: Any) -> Any:
        m, heads, options = self.scope(), self.one_of(1, 2, 4), dict[str, Any]()
        q = m.linear("q", x, heads * self.width).split_heads(heads)
        turned = self.positions is not None and self.width % 2 == 0 and self.often(0.5)
        if self.keys and self.often(0.3):
            k, v = self.one_of(*self.keys)
        else:
            k, v = (m.linear(n, x, self.width).split_heads(1) for n in "kv")
            k = m.rope(k, self.positions, theta=50.0) if turned else k
            k = k + self.shifted(k) if self.often(0.15) else k
            self.keys.append((k, v))
        if self.often(0.4):
            options["bias"] = m.param("slopes", 1, heads, 1, 1) * self.bias()
        if self.often(0.5):
            options["window"] = self.one_of(1, 2, 3, 40)
        q = m.rope(q, self.positions, theta=50.0) if turned else q
        y = ops.attention(q, k, v, mask=self.keep(), causal=True, **options)
        return m.linear("o", y.merge_heads(), WIDTH)

    def recurrent(self, x: Any) -> Any:
        m, mask = self.scope(), None if self.mask is None else self.mask.cast(DType.bool_)
        weights = [m.param(n, 3 * WIDTH, WIDTH) for n in ("ih", "hh")]
        kind = self.one_of("plain", "conv", "kept")
        if kind == "conv":
            return ops.causal_conv(x, m.param("w", WIDTH, 3), mask=mask)[0]
        if kind == "plain" or mask is None:
            return ops.gru(x, *weights)[0]
        order, place, lengths = ops.compact(mask)
        return moved(ops.gru(moved(x, order), *weights, lengths=lengths)[0], place)

    def moved(self, x: Any) -> Any:
        """Tokens that read others outside of attention."""
        kind = self.one_of("shift", "sum", "first", "time first", "two streams")
        if kind == "sum":
            return ops.cumsum(x, axis=1) * 0.1
        if kind == "first":
            return ops.slice_(x, axis=1, start=0, length=1)
        if kind == "time first":
            return self.shifted(x.transpose(1, 0, 2), 0).transpose(1, 0, 2)
        if kind == "two streams":
            shape = (self.batch, self.length, 2, WIDTH // 2)
            y = x.reshape(*shape).transpose(0, 2, 1, 3).reshape(self.batch * 2, self.length, 1, -1)
            y = ops.attention(y, y, y, causal=True).reshape(self.batch, 2, self.length, -1)
            return y.transpose(0, 2, 1, 3).reshape(*x.shape)
        return self.scope().linear("mix", self.shifted(x), WIDTH)

    def shifted(self, x: Any, axis: int = 1) -> Any:
        """x one token later, in one of the ways to write it."""
        shape = tuple(1 if i == axis else d for i, d in enumerate(x.shape))
        zero = ops.expand(_number(0.0).reshape(*[1] * x.rank), shape=shape)
        if self.often(0.5):
            return ops.concat(zero, ops.slice_(x, axis=axis, start=0, length=x.shape[axis] - 1), axis=axis)
        return ops.slice_(ops.concat(zero, x, axis=axis), axis=axis, start=0, length=x.shape[axis])


def _number(x: float) -> Any:
    return ops.constant(value=x, dtype=F32)


def moved(x: Any, index: Any) -> Any:
    """Rows of x [B,S,C] by number [B,S]."""
    return ops.take_along_axis(x, ops.expand(index.reshape(*index.shape, 1), shape=x.shape), axis=1)


@mg.model
def ids_only(m: mg.Scope, c: Settings, input_ids: Any) -> Any:
    return Stack(m, c.seed, input_ids, None, None).logits()


@mg.model
def masked(m: mg.Scope, c: Settings, input_ids: Any, attention_mask: Any) -> Any:
    return Stack(m, c.seed, input_ids, attention_mask, None).logits()


@mg.model
def placed(m: mg.Scope, c: Settings, input_ids: Any, attention_mask: Any, position_ids: Any) -> Any:
    return Stack(m, c.seed, input_ids, attention_mask, position_ids).logits()


class Reference:
    """A random model with weights under which every part matters, and its full forward."""

    def __init__(self, seed: int) -> None:
        family: Family = (placed, masked, placed, ids_only)[seed % 4]
        self.model: Model = family(seed=seed)
        self.graph: Graph = self.model.graph()
        first = Weights.initialize(self.graph, 0)
        self.arrays = {k: first.numpy(k) * (1 if "norm" in k else 15) for k in first}
        self.model.weights = Weights.of(self.arrays)

    def full(self, ids: Array, mask: Array | None = None, places: Array | None = None) -> Array:
        mask = np.ones_like(ids) if mask is None else mask
        places = np.maximum(np.cumsum(mask, axis=1) - 1, 0) if places is None else places
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
        return interpret(self.graph, {k: given[k] for k in self.graph.inputs}, self.arrays)["logits"]


def close(found: Array, wanted: Array, what: object) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4 * max(1.0, np.abs(wanted).max()), err_msg=str(what))


@pytest.mark.parametrize("seed", range(32))
def test_chunks_of_the_serving_graph(seed: int) -> None:
    made = Reference(seed)
    try:
        graph = pipelines.decode(made.graph)
    except PassError as e:
        assert "attention_mask" not in made.graph.inputs and e.hint == "give the model an attention_mask"
        return
    ids = np.random.default_rng(seed).integers(0, VOCAB, (2, 9))
    left = np.ones_like(ids)
    left[0, :3] = 0
    padded = ids.copy()
    padded[0, 3:] = ids[0, :6]
    wanted = made.full(ids)
    for ends in ([4, 5, 6, 9], [1, 7, 8, 9]):
        places = np.tile(np.arange(9), (2, 1))
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": places}
        close(by_chunks(graph, made.arrays, given, ends), wanted, ends)
    if why_alone(graph) or not graph.slots:
        return
    given = {"input_ids": padded, "attention_mask": left, "position_ids": np.maximum(np.cumsum(left, 1) - 1, 0)}
    found = by_chunks(graph, made.arrays, given, [5, 6, 9])
    close(found[0, 3:], wanted[0, :6], "a row padded on the left")
    close(found[1], wanted[1], "beside it")


@pytest.mark.parametrize("seed", [40, 41, 42, 44, 45, 46, 48, 49, 50])
def test_sessions(seed: int, tmp_path: Path) -> None:
    made, chance = Reference(seed), np.random.default_rng(seed)
    session = mg.build(made.model, tmp_path / "built", threads=1, max_positions=LIMIT).session
    ids = chance.integers(0, VOCAB, (3, LIMIT))
    lengths = chance.integers(1, 8, 3)

    def check(logits: Array, what: object) -> None:
        for row, n in enumerate(lengths):
            close(logits[row], made.full(ids[row : row + 1, :n])[0, -1], (what, row, n))

    check(session.prefill(ids[:, :8], lengths), "prefill")
    for step in range(5):
        counts = (np.ones(3, int), chance.integers(1, 6, 3), np.full(3, 70))[min(step, 2) if step < 3 else step % 2]
        counts = np.minimum(counts, LIMIT - lengths)
        rows = [
            np.resize(ids[r, n : n + c], counts.max()) for r, (n, c) in enumerate(zip(lengths, counts, strict=True))
        ]
        lengths = lengths + counts
        check(session.append(np.stack(rows), counts), (step, counts))
    mask = np.ones((3, 7), np.int64)
    if "attention_mask" in made.graph.inputs:
        mask[0, :2] = mask[1, 5:] = mask[2, 3] = 0
        close(session.run({"input_ids": ids[:, :7], "attention_mask": mask})["logits"][0, 2:],
              made.full(ids[:, :7], mask)[0, 2:], "run")  # fmt: skip
    if "position_ids" in made.graph.inputs:
        places = np.arange(7) * 2 + np.array([[0], [3], [9]])
        given = {"input_ids": ids[:, :7], "position_ids": places}
        close(session.run(given)["logits"], made.full(ids[:, :7], places=places), "own positions")


# -- what was found this way, one by one ------------------------------------------------------------------------------


def _built(body: Callable[[mg.Scope, Any, Any, Any], Any]) -> tuple[Model, Callable[[Array], Array]]:
    @mg.model
    def one(m: mg.Scope, c: Settings, input_ids: Any, attention_mask: Any) -> Any:
        x = m.embed("embed", input_ids, VOCAB, WIDTH)
        return m.linear("head", x + body(m, x, input_ids, attention_mask), VOCAB)

    model = one()
    graph = model.graph()
    first = Weights.initialize(graph, 0)
    arrays = {k: first.numpy(k) * 15 for k in first}
    model.weights = Weights.of(arrays)

    def full(ids: Array, mask: Array | None = None) -> Array:
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids) if mask is None else mask}
        return interpret(graph, {k: given[k] for k in graph.inputs}, arrays)["logits"]

    return model, full


def _gru(m: mg.Scope, x: Any, mask: Any, **counts: Any) -> Any:
    order, place, lengths = ops.compact(mask)
    y, _ = ops.gru(moved(x, order), *(m.param(n, 3 * WIDTH, WIDTH) for n in ("ih", "hh")), lengths=lengths)
    return moved(y, place)


def _first_of_what_looks_ahead(m: mg.Scope, x: Any, ids: Any, mask: Any) -> Any:
    y = ops.concat(
        ops.slice_(x, axis=1, start=1, length=x.shape[1] - 1), ops.slice_(x, axis=1, start=0, length=1), axis=1
    )
    return ops.slice_(y, axis=1, start=0, length=1)


def _attention_over_moved_rows(m: mg.Scope, x: Any, ids: Any, mask: Any) -> Any:
    order, place, _ = ops.compact(mask.cast(DType.bool_))
    y = moved(x, order).split_heads(2)
    return moved(ops.attention(y, y, y, causal=True).merge_heads(), place)


def _rows_moved_by_what_they_hold(m: mg.Scope, x: Any, ids: Any, mask: Any) -> Any:
    return _gru(m, x, ops.less(ops.constant(value=3, dtype=DType.i64), ids))


def _recurrent_inside_each_token(m: mg.Scope, x: Any, ids: Any, mask: Any) -> Any:
    rows = x.reshape(x.shape[0] * x.shape[1], 2, -1)
    y, _ = ops.gru(rows, *(m.param(n, 3 * WIDTH // 2, WIDTH // 2) for n in ("ih", "hh")))
    return y.reshape(*x.shape)


@pytest.mark.parametrize(
    ("body", "guilty"),
    [
        (_recurrent_inside_each_token, "reshape"),
        (_first_of_what_looks_ahead, "slice"),
        (_attention_over_moved_rows, "attention"),
        (_rows_moved_by_what_they_hold, "compact"),
    ],
)
def test_refused_by_name(body: Any, guilty: str) -> None:
    with pytest.raises(PassError, match=rf"test_state_fuzz\.py:\d+: {guilty} reads all tokens"):
        pipelines.decode(_built(body)[0].graph())


def test_layers_with_a_state_beside_windows_alone(tmp_path: Path) -> None:
    def body(m: mg.Scope, x: Any, ids: Any, mask: Any) -> Any:
        y = x + _gru(m, x, mask.cast(DType.bool_))
        q, k, v = (m.linear(n, y, WIDTH).split_heads(2) for n in "qkv")
        return y + ops.attention(q, k, v, mask=mg.key_mask(mask), causal=True, window=3).merge_heads()

    model, full = _built(body)
    session = mg.build(model, tmp_path / "built", threads=1, max_positions=200).session
    assert session.contract.lengths
    ids = np.random.default_rng(0).integers(0, VOCAB, (2, 100))
    wanted = full(ids)
    close(session.prefill(ids[:, :5], [5, 5]), wanted[:, 4], "prefill")
    for i in range(5, 100):
        close(session.step(ids[:, i]), wanted[:, i], i)


def test_a_mask_may_number_documents(tmp_path: Path) -> None:
    def body(m: mg.Scope, x: Any, ids: Any, mask: Any) -> Any:
        q, k, v = (m.linear(n, x, WIDTH).split_heads(2) for n in "qkv")
        number, (batch, length) = mask.cast(F32), ids.shape
        same = ops.equal(number.reshape(batch, 1, 1, length), number.reshape(batch, 1, length, 1))
        return ops.attention(q, k, v, mask=mg.key_mask(mask) & same, causal=True).merge_heads()

    model, full = _built(body)
    session = mg.build(model, tmp_path / "built", threads=1).session
    ids = np.random.default_rng(0).integers(0, VOCAB, (1, 6))
    mask = np.array([[1, 1, 2, 2, 2, 3]])
    close(session.run({"input_ids": ids, "attention_mask": mask})["logits"], full(ids, mask), "documents")
    with pytest.raises(RuntimeInputError, match="holds"):
        session.run({"input_ids": ids + VOCAB})
