"""Forms that exporters of several versions write: rotations that change the order of channels, sinks, longer masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from monograph.ir import Graph, Value, building, interpret, ops, tensor, verify
from monograph.ir.ops.attention import Attention
from monograph.ir.ops.position import Rope
from monograph.ir.ops.reduce import Softmax
from monograph.ir.types import Dim, bool_, f32, i64
from monograph.passes.canonicalize import canonicalize
from monograph.passes.raising import RaisingReport, raise_graph
from monograph.passes.raising.check import ORDERS, TRIALS, sizes

B, S, T = Dim.symbol("B"), Dim.symbol("S"), Dim.symbol("T")
H, D, R = 2, 8, 4
Array = np.ndarray[Any, Any]


def number(x: float) -> Value:
    return ops.constant(value=x, dtype=f32)


def raised(g: Graph, given: dict[str, Array], weights: dict[str, Array] | None = None) -> RaisingReport:
    """The report of raising g; its numbers are those of before."""
    before = g.copy()
    report = raise_graph(g)
    verify(g)
    old, new = (interpret(x, given, weights or {})["y"] for x in (before, g))
    np.testing.assert_allclose(new, old, atol=2e-5)
    return report


def normal(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("wrong", [False, True], ids=["right", "sign"])
def test_a_rotation_reads_neighbours_and_writes_halves(flat: bool, wrong: bool) -> None:
    """As DeepSeek turns R of D channels: pairs (0, 1), (2, 3) become (0, 2), (1, 3), behind what is not turned."""
    g = Graph("turned")
    with building(g):
        x, positions = g.input("x", tensor(f32, B, H, S, D)), g.input("position_ids", tensor(i64, B, S))
        frequencies = ops.constant(value=(1.0, 0.1), dtype=f32)
        angles = ops.reshape(positions.cast(f32), shape=(B, 1, S, 1)) * frequencies
        c, s = ops.cos(angles), ops.sin(angles)
        plain = ops.slice_(x, axis=-1, start=0, length=D - R)
        part = ops.slice_(x, axis=-1, start=D - R, length=R)
        even, odd = (ops.gather(part, ops.constant(value=places, dtype=i64), axis=-1) for places in ((0, 2), (1, 3)))
        halves = even * c - odd * s, (odd * c - even * s if wrong else odd * c + even * s)
        y = ops.concat(plain, *halves, axis=-1) if flat else ops.concat(plain, ops.concat(*halves, axis=-1), axis=-1)
        g.output("y", y)
    raised(g, {"x": normal(3, H, 5, D), "position_ids": np.arange(15).reshape(3, 5)})
    assert sum(isinstance(n.op, Rope) for n in g) == (0 if wrong else 1)


def scores_and_values(g: Graph) -> tuple[Value, Value]:
    q, k, v = (g.input(name, tensor(f32, B, H, S, D)) for name in "qkv")
    return ops.matmul(q, ops.transpose(k, permutation=(0, 1, 3, 2))) * 0.25, v


@pytest.mark.parametrize("per", ["row", "score"])
def test_scores_less_the_largest_of_their_row(per: str) -> None:
    """Softmax with a sink, which subtracts the largest first; what differs along a row is a bias."""
    g = Graph("stable")
    with building(g):
        scores, v = scores_and_values(g)
        extra = ops.expand(ops.reshape(g.param("sinks", tensor(f32, H)), shape=(1, H, 1, 1)), shape=(B, H, S, 1))
        joined = ops.concat(scores, extra, axis=-1)
        shift = ops.max(joined, axis=-1) if per == "row" else joined * joined
        weights = ops.softmax(joined - shift)
        g.output("y", ops.matmul(ops.slice_(weights, axis=-1, start=0, length=S), v))
    report = raised(g, {name: normal(3, H, 5, D) for name in "qkv"}, {"sinks": normal(H)})
    (left,) = [n for n in g if isinstance(n.op, (Attention, Softmax))]
    assert isinstance(left.op, Attention) == (per == "row")
    if per == "row":
        assert left["sinks"] is not None
    else:
        assert [x.reason for x in report.left] == ["sub changes the scores after the sinks were added"]


def test_a_mask_may_be_longer_than_the_rows() -> None:
    """Of a mask [B,T] the first S columns are read: T is at least S, and need not be S."""
    g = Graph("longer")
    with building(g):
        scores, v = scores_and_values(g)
        mask = g.input("attention_mask", tensor(bool_, B, T))
        rows = ops.expand(ops.reshape(ops.iota(start=0, length=B), shape=(B, 1, 1)), shape=(B, S, 1))
        columns = ops.expand(ops.reshape(ops.iota(start=0, length=S), shape=(1, S, 1)), shape=(B, S, 1))
        kept = ops.gather_nd(mask, ops.concat(rows, columns, axis=-1))
        masked = ops.where(ops.reshape(kept, shape=(B, 1, 1, S)), scores, number(-1e30))
        g.output("y", ops.matmul(ops.softmax(masked), v))
    given = {name: normal(3, H, 5, D) for name in "qkv"} | {"attention_mask": np.ones((3, 9), np.bool_)}
    given["attention_mask"][1, 2:4] = False
    raised(g, given)
    assert [n.op.name for n in g if isinstance(n.op, (Attention, Softmax))] == ["attention"]


def test_sizes_of_a_check() -> None:
    """Every order gives the inputs sizes of their own, or one; the last makes sizes inside the graph the longest."""
    g = Graph("sizes")
    with building(g):
        x = g.input("x", tensor(f32, B, S, T))
        inside = ops.iota(start=0, length=Dim.symbol("A"))
        g.output("y", x)
    assert inside.producer is not None
    found = [sizes(g, TRIALS[1], [inside.producer], order) for order in ORDERS]
    assert all(f["B"] == 3 for f in found)
    up, down, same, longer = found
    assert up["S"] < up["T"] and down["S"] > down["T"] and same["S"] == same["T"] == same["A"]
    assert longer["A"] >= 2 * max(longer["S"], longer["T"])


@pytest.mark.parametrize("guard", ["same", "not any", "narrower", "other axis"])
def test_a_guard_of_empty_rows_goes_if_it_says_what_attention_says(guard: str) -> None:
    """`where(row has no key, 0, attention)`; one that says more, or of other rows, stays."""
    g = Graph("guarded")
    with building(g):
        scores, v = scores_and_values(g)
        mask = g.input("attention_mask", tensor(bool_, B, S))
        rows, columns = (ops.iota(start=0, length=S).reshape(*shape) for shape in ((S, 1), (1, S)))
        kept = ops.logical_and(ops.less_equal(columns, rows), mask.reshape(B, 1, 1, S))
        masked = ops.where(kept, scores, number(-1e30))
        tested = kept
        if guard == "narrower":
            tested = ops.logical_and(kept, ops.less(columns, ops.constant(value=1, dtype=i64)))
        if guard == "other axis":
            tested = ops.transpose(kept, permutation=(0, 1, 3, 2))
        empty = ~ops.any(tested) if guard == "not any" else ops.less(ops.sum(tested.cast(f32)), number(1.0))
        y = ops.matmul(ops.softmax(masked), v)
        g.output("y", ops.where(empty, number(0.0), y))
    mask_numbers = np.ones((3, 5), np.bool_)
    mask_numbers[0, :2] = mask_numbers[1, 2:] = False
    raised(g, {name: normal(3, H, 5, D) for name in "qkv"} | {"attention_mask": mask_numbers})
    assert sum(isinstance(n.op, Attention) for n in g) == 1
    assert ("where" in [n.op.name for n in g]) == (guard in ("narrower", "other axis"))


@pytest.mark.parametrize("fill", [-3.0e38, -2.0])
@pytest.mark.parametrize("compared", [False, True])
def test_a_bias_of_which_a_mask_hides_a_part(compared: bool, fill: float) -> None:
    """As ALiBi of Falcon: `masked_fill(bias, additive mask < -1, lowest)`. What still counts is no mask."""
    g = Graph("hidden")
    with building(g):
        scores, v = scores_and_values(g)
        bias = g.input("bias", tensor(f32, B, H, 1, S))
        rows, columns = (ops.iota(start=0, length=S).reshape(*shape) for shape in ((1, 1, S, 1), (1, 1, 1, S)))
        hidden = ~ops.less_equal(columns, rows)
        if compared:
            hidden = ops.less(ops.where(~hidden, number(0.0), number(-3.0e38)), number(-1.0))
        added = ops.where(hidden, number(fill), bias)
        g.output("y", ops.matmul(ops.softmax(scores + added), v))
    raised(g, {name: normal(3, H, 5, D) for name in "qkv"} | {"bias": normal(3, H, 1, 5)})
    found = [n for n in g if isinstance(n.op, Attention)]
    assert [n.attributes["causal"] for n in found] == [fill < -10]
    assert (found[0]["bias"] is g.inputs["bias"]) == (fill < -10)


@pytest.mark.parametrize(
    ("a", "b", "c", "left"), [(0.0, -9.0, -1.0, "not"), (-9.0, 0.0, -1.0, "as it is"), (0.0, 1.0, 2.0, "all")]
)
def test_a_choice_between_numbers_that_is_compared_with_one(a: float, b: float, c: float, left: str) -> None:
    g = Graph("compared")
    with building(g):
        condition = g.input("x", tensor(bool_, B, S))
        chosen = ops.where(condition, number(a), number(b))
        g.output("y", ops.less(chosen, number(c)))
        g.output("z", ops.less_equal(number(c), chosen))
    given = {"x": np.array([[True, False, True]])}
    old = interpret(g, given, {})
    canonicalize(g)
    new = interpret(g, given, {})
    assert all(np.array_equal(old[k], new[k]) for k in "yz")
    assert ("less" in [n.op.name for n in g]) == (left == "all")


def times_number(g: Graph, x: Value) -> Value:
    return x * g.param("by", tensor(f32, 1))


def times_heads(g: Graph, x: Value) -> Value:
    return x * g.param("by", tensor(f32, 2, 1, 1))


def times_queries(g: Graph, x: Value) -> Value:
    return x / (ops.exp(g.input("by", tensor(f32, B, 1, S, 1))) + number(1.0))


def times_keys(g: Graph, x: Value) -> Value:
    return g.input("by", tensor(f32, B, 2, 1, S)) * x


def times_minus(g: Graph, x: Value) -> Value:
    return x * -1.0


SCALES = [times_number, times_heads, times_queries, times_keys, times_minus]


@pytest.mark.parametrize("write", SCALES, ids=lambda f: f.__name__)
def test_a_scale_that_is_a_tensor_goes_to_queries_or_keys(write: Callable[[Graph, Value], Value]) -> None:
    g = Graph("scaled")
    with building(g):
        scores, v = scores_and_values(g)
        g.output("y", ops.matmul(ops.softmax(write(g, scores) * 0.5), v))
    given = {n: normal(3, H, 5, D) for n in "qkv"}
    shapes = {"times_queries": (3, 1, 5, 1), "times_keys": (3, 2, 1, 5)}
    given |= {"by": normal(*shapes[write.__name__])} if write.__name__ in shapes else {}
    weights = {n: normal(*(int(d) for d in p.shape)) for n, p in g.params.items()}  # type: ignore[arg-type]
    report = raised(g, given, weights)
    assert report.counts["attention"] == 1 and not report.left


def summed(e: Value) -> Value:
    return ops.sum(e, axis=-1)


SOFTMAXES: dict[str, Callable[[Value, Value, Value], Value]] = {
    "shifted": lambda x, v, _: ops.matmul((e := ops.exp(x - ops.max(x))) / summed(e), v),
    "plain": lambda x, v, _: ops.matmul((e := ops.exp(x)) / summed(e), v),
    "by-reciprocal": lambda x, v, _: ops.matmul((e := ops.exp(x)) * (number(1.0) / summed(e)), v),
    "late": lambda x, v, _: ops.matmul(e := ops.exp(x - ops.max(x)), v) / summed(e),
    "logarithm": lambda x, v, _: ops.matmul(ops.exp(x - ops.log(summed(ops.exp(x)))), v),
    "masked": lambda x, v, m: ops.matmul((e := ops.exp(x) * m) / summed(e), v),
    "masked-late": lambda x, v, m: ops.matmul(e := m * ops.exp(x), v) / summed(e),
    "product-and-sum": lambda x, v, m: ops.matmul(ops.softmax(x * m - (number(1.0) - m) * 1e9), v),
    "column": lambda x, v, _: ops.matmul(
        ops.slice_(ops.softmax(ops.pad(x, widths=((0, 0),) * 3 + ((0, 1),), value=1.5)), axis=-1, start=0, length=S), v
    ),
    "column-first": lambda x, v, _: ops.matmul(
        ops.slice_(ops.softmax(ops.pad(x, widths=((0, 0),) * 3 + ((1, 0),), value=1.5)), axis=-1, start=1, length=S), v
    ),
}


def exponentials(write: Callable[[Value, Value, Value], Value]) -> tuple[Graph, dict[str, Array]]:
    """The graph of a function of scores, values and a mask of numbers, and its inputs but for the mask."""
    g = Graph("exponentials")
    with building(g):
        scores, v = scores_and_values(g)
        mask = ops.cast(g.input("attention_mask", tensor(i64, B, S)), dtype=f32).reshape(B, 1, 1, S)
        g.output("y", write(scores, v, mask))
    return g, {n: normal(3, H, 5, D) for n in "qkv"}


@pytest.mark.parametrize("how", SOFTMAXES)
def test_softmax_by_meaning(how: str) -> None:
    g, given = exponentials(SOFTMAXES[how])
    given["attention_mask"] = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 0, 1, 0, 0]])
    report = raised(g, given)
    assert report.counts["attention"] == 1 and not report.left
    (node,) = [n for n in g if n.op.name == "attention"]
    assert (node["sinks"] is not None) == how.startswith("column")
    assert (node["mask"] is not None) == (how.startswith("masked") or how == "product-and-sum")


OTHERS: dict[str, Callable[[Value, Value, Value], Value]] = {
    "another-axis": lambda x, v, _: ops.matmul((e := ops.exp(x)) / ops.sum(e, axis=-2), v),
    "late-other-axis": lambda x, v, _: ops.matmul(e := ops.exp(x), v) / ops.sum(e, axis=-2).reshape(B, 2, S, 1),
    "another-sum": lambda x, v, m: ops.matmul(ops.exp(x) / summed(ops.exp(x) * m), v),
    "more-in-the-sum": lambda x, v, _: ops.matmul((e := ops.exp(x)) / (summed(e) + number(1.0)), v),
    "column-to-values": lambda x, v, _: ops.matmul(
        ops.slice_(ops.softmax(ops.pad(x, widths=((0, 0),) * 3 + ((0, 1),))), axis=-1, start=1, length=S), v
    ),
}


@pytest.mark.parametrize("how", OTHERS)
def test_what_only_looks_like_softmax(how: str) -> None:
    g, given = exponentials(OTHERS[how])
    given["attention_mask"] = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 0, 1, 0, 0]])
    assert "attention" not in raised(g, given).counts
