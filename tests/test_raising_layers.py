"""Norms, activations, rotary positions, gated blocks and linear layers in many spellings; near misses stay."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from monograph.ir import Graph, Value, building, interpret, ops, tensor, verify
from monograph.ir.types import Dim, DType, f32, i64
from monograph.passes.raising import RaisingReport, raise_graph

B, S = Dim.symbol("B"), Dim.symbol("S")
C, R = 12, 8
f16 = DType.f16
Array = np.ndarray[Any, Any]
Write = Callable[[Graph, Value], Value]


def number(x: float, dtype: DType = f32) -> Value:
    return ops.constant(value=x, dtype=dtype)


def raised(write: Write, dtype: DType = f32, shape: tuple[Any, ...] = (B, S, C)) -> tuple[Graph, RaisingReport]:
    """The graph of `write`, raised; its numbers are those of before."""
    g = Graph("layer")
    with building(g):
        g.output("y", write(g, g.input("x", tensor(dtype, *shape))))
    before = g.copy()
    report = raise_graph(g)
    verify(g)
    for batch, length in ((1, 5), (3, 4)):
        rng = np.random.default_rng(batch)
        given, weights = dict[str, Array](), dict[str, Array]()
        for name, v in before.inputs.items():
            sizes = [d if isinstance(d, int) else batch if str(d) == "B" else length for d in v.shape]
            whole = rng.integers(0, 40, sizes) if not v.dtype.is_float else 2 * rng.standard_normal(sizes)
            given[name] = whole.astype(v.dtype.numpy)
        for name, v in before.params.items():
            weights[name] = rng.standard_normal([int(d) for d in v.shape]).astype(v.dtype.numpy)  # type: ignore[arg-type]
        old, new = (interpret(x, given, weights)["y"].astype(np.float64) for x in (before, g))
        bound = 4e-5 if dtype is f32 else 2e-2
        np.testing.assert_allclose(new, old, atol=bound * max(1.0, np.abs(old).max()))
    return g, report


def weight(g: Graph, name: str = "w", dtype: DType = f32) -> Value:
    return g.param(name, tensor(dtype, C))


def inverse(square: Value, eps: float, how: str) -> Value:
    s = square + eps
    one = number(1.0, s.dtype)
    return {
        "rsqrt": lambda: ops.rsqrt(s), "div": lambda: one / ops.sqrt(s), "pow": lambda: s ** -0.5,
        "pow-half": lambda: one / s**0.5,
    }[how]()  # fmt: skip


INVERSES = ("rsqrt", "div", "pow", "pow-half")
SQUARES: dict[str, Callable[[Value], Value]] = {
    "mul": lambda x: ops.mean(x * x), "pow": lambda x: ops.mean(x**2.0),
    "sum": lambda x: ops.sum(x * x) / number(float(C), x.dtype), "sum-mul": lambda x: ops.sum(x * x) * (1.0 / C),
}  # fmt: skip


@pytest.mark.parametrize("how", INVERSES)
@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("order", ["x*inv*w", "w*(x*inv)", "x*(inv*w)", "w*x*inv", "x/root*w"])
def test_rms_norm(how: str, square: str, order: str) -> None:
    def write(g: Graph, x: Value) -> Value:
        inv = inverse(SQUARES[square](x), 1e-5, how)
        w = weight(g)
        if order == "x/root*w":
            return x / ops.sqrt(SQUARES[square](x) + 1e-5) * w
        orders = {
            "x*inv*w": x * inv * w,
            "w*(x*inv)": w * (x * inv),
            "x*(inv*w)": x * (inv * w),
            "w*x*inv": w * x * inv,
        }
        return orders[order]

    g, report = raised(write)
    assert report.counts == {"rms_norm": 1}, g
    (node,) = [n for n in g if n.op is ops.rms_norm.op]
    assert node.attributes["eps"] == pytest.approx(1e-5, rel=1e-4)


@pytest.mark.parametrize("how", INVERSES)
@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(how: str, square: str, bias: bool) -> None:
    def write(g: Graph, x: Value) -> Value:
        mean = ops.mean(x) if square != "sum" else ops.sum(x) / number(float(C))
        z = x - mean
        y = z * inverse(SQUARES[square](z), 1e-5, how) * weight(g)
        return y + weight(g, "b") if bias else y

    g, report = raised(write)
    assert report.counts == {"layer_norm": 1}, g


def islands(g: Graph, x: Value) -> Value:
    wide = x.cast(f32)
    y = wide * ops.rsqrt(ops.mean(wide * wide) + 1e-6)
    return y.cast(f16) * weight(g, dtype=f16)


def gemma(g: Graph, x: Value) -> Value:
    return x * ops.rsqrt(ops.mean(x * x) + 1e-6) * (weight(g) + 1.0)


def plain(g: Graph, x: Value) -> Value:
    return x * ops.rsqrt(ops.mean(x * x) + 1e-6)


def folded(g: Graph, x: Value) -> Value:
    """As Keras: x * g + (b - mean * g)."""
    mean = ops.mean(x)
    z = x - mean
    scale = ops.rsqrt(ops.mean(z * z) + 1e-3) * weight(g)
    return x * scale + (weight(g, "b") - mean * scale)


def twice(g: Graph, x: Value) -> Value:
    """Two norms that share everything but their weights."""
    y = x * ops.rsqrt(ops.mean(x * x) + 1e-6)
    return y * weight(g) + ops.tanh(y * weight(g, "u"))


@pytest.mark.parametrize(
    ("write", "counts", "dtype"),
    [
        (islands, {"rms_norm": 1}, f16), (gemma, {"rms_norm": 1}, f32), (plain, {"rms_norm": 1}, f32),
        (folded, {"layer_norm": 1}, f32), (twice, {"rms_norm": 2}, f32),
    ],
)  # fmt: skip
def test_norm_of_another_kind(write: Write, counts: dict[str, int], dtype: DType) -> None:
    assert raised(write, dtype)[1].counts == counts


def other_axis(g: Graph, x: Value) -> Value:
    return x * ops.rsqrt(ops.mean(x * x, axis=-2) + 1e-6) * weight(g)


def other_value(g: Graph, x: Value) -> Value:
    return ops.tanh(x) * ops.rsqrt(ops.mean(x * x) + 1e-6) * weight(g)


def unsquared(g: Graph, x: Value) -> Value:
    return x * ops.rsqrt(ops.mean(x * ops.tanh(x)) + 1e-6) * weight(g)


def sum_of_squares(g: Graph, x: Value) -> Value:
    return x * ops.rsqrt(ops.sum(x * x) + 1e-6) * weight(g)


def eps_outside(g: Graph, x: Value) -> Value:
    return x / (ops.sqrt(ops.mean(x * x)) + 1e-1) * weight(g)


def uncentred(g: Graph, x: Value) -> Value:
    z = x - ops.mean(x)
    return x * ops.rsqrt(ops.mean(z * z) + 1e-5) * weight(g)


@pytest.mark.parametrize("write", [other_axis, other_value, unsquared, sum_of_squares, eps_outside, uncentred])
def test_no_norm(write: Write) -> None:
    report = raised(write)[1]
    assert not report.counts
    # What is a root of a mean of squares of the last axis is accounted for.
    assert [x.what for x in report.left] == ["norm"] * (write in (other_value, uncentred))


# -- activations ---------------------------------------------------------------------------------------------------

ROOT, CUBE = math.sqrt(2 / math.pi), 0.044715
GELUS: dict[str, Callable[[Value], Value]] = {
    "half": lambda x: x * 0.5 * (ops.erf(x / number(math.sqrt(2))) + 1.0),
    "last": lambda x: x * (number(1.0) + ops.erf(x * math.sqrt(0.5))) * 0.5,
    "phi": lambda x: x * (ops.erf(x * math.sqrt(0.5)) * 0.5 + 0.5),
    "sum": lambda x: x * 0.5 + x * 0.5 * ops.erf(x * math.sqrt(0.5)),
    "tanh": lambda x: x * 0.5 * (ops.tanh((x + x * x * x * CUBE) * ROOT) + 1.0),
    "tanh-pow": lambda x: (ops.tanh((x + x**3.0 * CUBE) * ROOT) + 1.0) * (x * 0.5),
    "fast": lambda x: x * 0.5 * (ops.tanh(x * ROOT * (x * CUBE * x + 1.0)) + 1.0),
    "tanh-sigmoid": lambda x: x * ops.sigmoid((x + x * x * x * CUBE) * (2 * ROOT)),
}  # fmt: skip
SILUS: dict[str, Callable[[Value], Value]] = {
    "sigmoid": lambda x: x * ops.sigmoid(x), "left": lambda x: ops.sigmoid(x) * x,
    "exp": lambda x: x / (ops.exp(-x) + 1.0), "tanh": lambda x: x * (ops.tanh(x * 0.5) + 1.0) * 0.5,
    "quick": lambda x: x * ops.sigmoid(x * 1.702),
}  # fmt: skip
RELUS: dict[str, Callable[[Value], Value]] = {
    "max": lambda x: ops.maximum(x, number(0.0)), "where": lambda x: ops.where(x > 0.0, x, number(0.0)),
    "other-where": lambda x: ops.where(x < 0.0, number(0.0), x),
}  # fmt: skip
OTHERS: dict[str, Callable[[Value], Value]] = {
    "leaky": lambda x: ops.maximum(x, x * 0.1), "slow": lambda x: x * ops.sigmoid(x * 0.9),
    "two": lambda x: x * 0.5 * (ops.erf(x) + 1.0), "shifted": lambda x: x * (ops.erf(x * math.sqrt(0.5)) + 1.1) * 0.5,
    "tanh": lambda x: ops.tanh(x), "six": lambda x: ops.minimum(ops.maximum(x, number(0.0)), number(1.0)) * 2.0,
}  # fmt: skip


@pytest.mark.parametrize("name", GELUS)
def test_gelu(name: str) -> None:
    g, report = raised(lambda _, x: GELUS[name](x))
    assert report.counts == {"gelu": 1}, g
    (node,) = [n for n in g if n.op is ops.gelu.op]
    assert node.attributes["tanh"] == ("tanh" in name or name == "fast")


@pytest.mark.parametrize("name", SILUS)
def test_silu(name: str) -> None:
    assert raised(lambda _, x: SILUS[name](x))[1].counts == {"silu": 1}


@pytest.mark.parametrize("name", RELUS)
def test_relu(name: str) -> None:
    assert raised(lambda _, x: RELUS[name](x))[1].counts == {"relu": 1}


def test_softplus() -> None:
    assert raised(lambda _, x: ops.log(ops.exp(x) + 1.0))[1].counts == {"softplus": 1}


@pytest.mark.parametrize("name", OTHERS)
def test_no_activation(name: str) -> None:
    assert not raised(lambda _, x: OTHERS[name](x))[1].counts.keys() & {"gelu", "silu", "softplus"}


@pytest.mark.parametrize("most", [100.0, 255.0, 65535.0])
def test_a_clip_is_no_relu(most: float) -> None:
    """What is quantized is clipped far beyond what activations are compared on otherwise."""
    g, _ = raised(lambda _, x: ops.minimum(ops.maximum(x, 0.0), most))
    assert "minimum" in g.counts()
    x = np.array([-1, 0.5, most + 1] * (C // 3 + 1), np.float32)[:C]
    y = interpret(g, {"x": np.broadcast_to(x, (1, 2, C)).copy()})
    np.testing.assert_array_equal(next(iter(y.values()))[0, 0], np.clip(x, 0, most))


@pytest.mark.parametrize("silu", ["sigmoid", "exp"])
@pytest.mark.parametrize("packed", ["apart", "gate-first", "up-first"])
@pytest.mark.parametrize("flattened", [True, False])
def test_gated_feed_forward(silu: str, packed: str, flattened: bool) -> None:
    def write(g: Graph, x: Value) -> Value:
        rows = x.reshape(B * S, C) if flattened else x
        down = ops.transpose(g.param("down", tensor(f32, C, 10)), permutation=(1, 0))
        if packed == "apart":
            gate, up = (rows @ g.param(n, tensor(f32, 10, C)).transpose(1, 0) for n in ("gate", "up"))
        else:
            both = rows @ g.param("both", tensor(f32, 20, C)).transpose(1, 0)
            gate, up = (ops.slice_(both, axis=-1, start=i, length=10) for i in (0, 10))
            gate, up = (gate, up) if packed == "gate-first" else (up, gate)
        return ((SILUS[silu](gate) * up) @ down).reshape(B, S, C)

    g, report = raised(write)
    assert report.counts.get("gated_feed_forward") == 1, g


# -- rotary --------------------------------------------------------------------------------------------------------

RATES = tuple(float(np.float32(1.0 / 100.0 ** (2 * i / R))) for i in range(R // 2))


def angles(g: Graph, how: str) -> Value:
    """position * frequency [B,S,R/2]."""
    places = g.input_of("positions", tensor(i64, B, S))
    rates = ops.constant(value=RATES, dtype=f32)
    if how == "mul":
        return places.reshape(B, S, 1).cast(f32) * rates
    if how == "matmul":  # As Hugging Face: [B,R/2,1] @ [B,1,S].
        left = ops.expand(rates.reshape(1, R // 2, 1), shape=(B, R // 2, 1))
        return (left @ places.reshape(B, 1, S).cast(f32)).transpose(0, 2, 1)
    if how == "param":
        return places.reshape(B, S, 1).cast(f32) * g.param("inv_freq", tensor(f32, R // 2))
    if how == "range":
        row = ops.iota(start=0, length=S).reshape(S, 1).cast(f32) * rates
        return row.reshape(1, S, R // 2)
    return places.reshape(B, S, 1).cast(f32) / ops.constant(value=tuple(1 / r for r in RATES), dtype=f32)


def half_turned(x: Value) -> Value:
    width = int(str(x.shape[-1]))
    a, b = (ops.slice_(x, axis=-1, start=i * width // 2, length=width // 2) for i in (0, 1))
    return ops.concat(-b, a, axis=-1)


def halves(x: Value, a: Value, heads: int, order: str) -> Value:
    """x * cos + rotate_half(x) * sin, with cosines [B,1,S,R] or [B,S,1,R]."""
    both = ops.concat(a, a, axis=-1)
    batch, length = both.shape[0], both.shape[1]
    at = (batch, 1, length, R) if order == "bhsd" else (batch, length, 1, R)
    c, s = ops.cos(both).reshape(*at), ops.sin(both).reshape(*at)
    return x * c + half_turned(x) * s


def parts(x: Value, a: Value, order: str) -> Value:
    """Both halves on their own, joined."""
    batch, length = a.shape[0], a.shape[1]
    at = (batch, 1, length, R // 2) if order == "bhsd" else (batch, length, 1, R // 2)
    c, s = ops.cos(a).reshape(*at), ops.sin(a).reshape(*at)
    p, q = (ops.slice_(x, axis=-1, start=i * R // 2, length=R // 2) for i in (0, 1))
    return ops.concat(p * c - q * s, q * c + p * s, axis=-1)


def pairs(x: Value, a: Value, order: str) -> Value:
    """As complex numbers: pairs of neighbours."""
    batch, length = a.shape[0], a.shape[1]
    at = (batch, 1, length, R // 2, 1) if order == "bhsd" else (batch, length, 1, R // 2, 1)
    c, s = ops.cos(a).reshape(*at), ops.sin(a).reshape(*at)
    z = x.reshape(*x.shape[:-1], R // 2, 2)
    p, q = (ops.slice_(z, axis=-1, start=i, length=1) for i in (0, 1))
    return ops.concat(p * c - q * s, p * s + q * c, axis=-1).reshape(*x.shape)


def every_two(x: Value, a: Value, order: str) -> Value:
    """As GPT-J: cosines that repeat each number twice, and neighbours exchanged."""
    twice = ops.gather(a, ops.constant(value=tuple(i // 2 for i in range(R)), dtype=i64), axis=2)
    batch, length = a.shape[0], a.shape[1]
    at = (batch, 1, length, R) if order == "bhsd" else (batch, length, 1, R)
    c, s = ops.cos(twice).reshape(*at), ops.sin(twice).reshape(*at)
    even, odd = (ops.gather(x, ops.constant(value=tuple(range(i, R, 2)), dtype=i64), axis=3) for i in (0, 1))
    wide = (*even.shape, 1)
    turned = ops.concat((-odd).reshape(*wide), even.reshape(*wide), axis=-1).reshape(*x.shape)
    return x * c + turned * s


TURNS: dict[str, Callable[[Value, Value, str], Value]] = {
    "halves": lambda x, a, order: halves(x, a, 3, order), "parts": parts, "pairs": pairs, "every-two": every_two,
}  # fmt: skip


def rotated(how: str, turn: str, order: str, width: int = R) -> Write:
    def write(g: Graph, x: Value) -> Value:
        y = x.reshape(B, S, 3, width)
        y = y.transpose(0, 2, 1, 3) if order == "bhsd" else y
        first = ops.slice_(y, axis=-1, start=0, length=R) if width > R else y
        turned = TURNS[turn](first, angles(g, how), order)
        if width > R:
            turned = ops.concat(turned, ops.slice_(y, axis=-1, start=R, length=width - R), axis=-1)
        y = turned.transpose(0, 2, 1, 3) if order == "bhsd" else turned
        return y.reshape(B, S, 3 * width)

    return write


@pytest.mark.parametrize("how", ["mul", "matmul", "param", "range", "div"])
@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("order", ["bhsd", "bshd"])
def test_rotary(how: str, turn: str, order: str) -> None:
    g, report = raised(rotated(how, turn, order), shape=(B, S, 3 * R))
    assert report.counts == {"rope": 1}, g
    (node,) = [n for n in g if n.op is ops.rope.op]
    assert node.attributes["interleaved"] == (turn in ("pairs", "every-two"))
    assert not [n for n in g if n.op in (ops.sin.op, ops.cos.op)]


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("order", ["bhsd", "bshd"])
def test_partial_rotary(turn: str, order: str) -> None:
    g, report = raised(rotated("mul", turn, order, R + 4), shape=(B, S, 3 * (R + 4)))
    assert report.counts == {"rope": 1}, g
    (node,) = [n for n in g if n.op is ops.rope.op]
    assert node.attributes["rotary_dim"] == R


def test_no_rotation() -> None:
    def write(g: Graph, x: Value) -> Value:
        a = angles(g, "mul")
        both = ops.concat(a, a, axis=-1).reshape(B, S, 1, R)
        y = x.reshape(B, S, 3, R)
        return (y * ops.cos(both) - half_turned(y) * ops.cos(both) * ops.sin(both)).reshape(B, S, 3 * R)

    assert not raised(write, shape=(B, S, 3 * R))[1].counts


def test_linear_and_embedding() -> None:
    g = Graph("tied")
    with building(g):
        ids = g.input("ids", tensor(i64, B, S))
        table = g.param("table", tensor(f32, 20, C))
        x = ops.gather(table, ids, axis=0)
        x = x.reshape(B * S, C) @ g.param("w", tensor(f32, C, C)) + g.param("b", tensor(f32, C))
        g.output("y", x.reshape(B, S, C) @ table.transpose(1, 0))
    assert raise_graph(g).counts == {"linear": 2, "embedding": 1}
    verify(g)
