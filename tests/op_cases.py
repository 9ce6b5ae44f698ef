"""One table of op cases: every op of the IR, with each optional operand and attribute variant, on small shapes.

Every backend runs its op tests from `CASES`. A dimension named in `SIZES` is symbolic in `graph(symbolic=True)`.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from monograph.ir import OPS, DType, Graph
from monograph.ir.interpret import resolve
from monograph.ir.types import Dim, TensorType, bool_, f32, i64, parse_dim, parse_type

SIZES = {"B": 2, "S": 3, "T": 5, "P": 2}

Array = np.ndarray[Any, Any]
Make = Callable[[np.random.Generator, tuple[int, ...]], Array]


@dataclasses.dataclass(frozen=True)
class Case:
    """One use of an op.

    inputs: operand types as text in operand order, None where an optional operand is absent. attributes: an f32
    among them follows the dtype that is asked for. low, high: bounds by input (floats default to -1.5..1.5,
    integers to 0..3, both included). make: a function for inputs whose values matter. note: tells variants of one
    op apart. Every symbol of a case is a bare dimension of one of its inputs.
    """

    op: str
    inputs: dict[str, str | None]
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    low: dict[str, float] = dataclasses.field(default_factory=dict)
    high: dict[str, float] = dataclasses.field(default_factory=dict)
    make: dict[str, Make] = dataclasses.field(default_factory=dict)
    note: str = ""

    def __str__(self) -> str:
        return f"{self.op}-{self.note}" if self.note else self.op

    def types(self, dtype: DType = f32, symbolic: bool = False) -> dict[str, TensorType]:
        """Types of the operands that are present."""
        given = {k: parse_type(t) for k, t in self.inputs.items() if t is not None}
        swapped = {k: t.with_dtype(dtype) if t.dtype == f32 else t for k, t in given.items()}
        return swapped if symbolic else {k: t.substitute(SIZES) for k, t in swapped.items()}

    def graph(self, dtype: DType = f32, symbolic: bool = False) -> Graph:
        """A graph of this one node: operands are inputs by name, outputs are `output0`, `output1`..."""
        graph = Graph(str(self).replace("-", "_").replace(" ", "_"))
        values = {k: graph.input(k, t) for k, t in self.types(dtype, symbolic).items()}
        attributes = {k: dtype if v is f32 else v for k, v in self.attributes.items()}
        if not symbolic:
            attributes = {k: resolve(v, SIZES) for k, v in attributes.items()}
        for i, v in enumerate(graph.add(OPS[self.op], [values.get(k) for k in self.inputs], attributes)):
            graph.output(f"output{i}", v)
        return graph

    def arrays(self, seed: int = 0, dtype: DType = f32) -> dict[str, Array]:
        """Values for the inputs. Floats are all different and at least 1e-3 from each other and from 0."""
        rng = np.random.default_rng([seed, zlib.crc32(str(self).encode())])
        return {k: self._array(rng, k, i, t) for i, (k, t) in enumerate(self.types(dtype).items())}

    def _array(self, rng: np.random.Generator, name: str, i: int, t: TensorType) -> Array:
        shape = tuple(int(d) for d in t.shape)  # type: ignore[arg-type]
        if name in self.make:
            return self.make[name](rng, shape).astype(t.dtype.numpy)
        if t.dtype == bool_:
            return rng.random(shape) < 0.6
        if not t.dtype.is_float:
            low, high = int(self.low.get(name, 0)), int(self.high.get(name, 3))
            return rng.integers(low, high + 1, shape).astype(t.dtype.numpy)
        low, high = self.low.get(name, -1.5), self.high.get(name, 1.5)
        # An even number of grid points never meets 0; the shift keeps the inputs of one case apart.
        count = math.prod(shape) + math.prod(shape) % 2
        grid = np.linspace(low, high, max(count, 2)) + 0.0029 * (i + 1)
        return rng.permutation(grid)[: math.prod(shape)].reshape(shape).astype(t.dtype.numpy)

    @property
    def differentiable(self) -> list[str]:
        """Inputs with a floating-point type."""
        return [k for k, t in self.types().items() if t.dtype.is_float]


def dims(*texts: int | str) -> tuple[int | Dim, ...]:
    return tuple(parse_dim(t) if isinstance(t, str) else t for t in texts)


def variant(case: Case, note: str, **changes: Any) -> Case:
    """The same case with some inputs (`x="f32[2]"`), attributes and other fields changed."""
    fields = {k: changes.pop(k) for k in ("low", "high", "make") if k in changes}
    inputs = {k: changes.pop(k, t) for k, t in case.inputs.items()}
    return dataclasses.replace(case, note=note, inputs=inputs, attributes={**case.attributes, **changes}, **fields)


def keep_some(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """A mask whose first row along the last axis is all false (no key may be attended to)."""
    mask = rng.random(shape) < 0.6
    mask[..., 0] = True
    mask.reshape(-1, shape[-1])[0] = False
    return mask


def right_padded(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return np.arange(2, 2 + shape[0])


def rows_of(*positions: int) -> Make:
    """Every batch row is `positions`, shifted by the row number."""
    return lambda rng, shape: np.asarray(positions)[None] + np.arange(shape[0])[:, None]


X = "f32[B,S,8]"
POSITIVE = {"low": {"x": 0.3}, "high": {"x": 2.0}}
UNARY = ["neg", "abs", "exp", "tanh", "sin", "cos", "erf", "sigmoid", "floor", "ceil", "round", "sign"]
BINARY = ["add", "sub", "mul", "maximum", "minimum"]
DIVISION = ["floor_div", "mod"]
COMPARISON = ["equal", "less", "less_equal"]

ELEMENTWISE = [
    *(Case(op, {"x": X}) for op in UNARY),
    *(Case(op, {"x": X}, **POSITIVE) for op in ("log", "sqrt", "rsqrt")),
    *(Case(op, {"x": X, "y": X}) for op in BINARY),
    *(Case(op, {"x": "f32[B,1,8]", "y": "f32[S,1]"}, note="broadcast") for op in BINARY),
    *(Case(op, {"x": "i64[B,S]", "y": "i64[S]"}, note="integers") for op in BINARY),
    Case("add", {"x": X, "y": "f32[]"}, note="scalar"),
    Case("div", {"x": X, "y": X}, low={"y": 0.5}, high={"y": 2.0}),
    Case("div", {"x": "f32[]", "y": X}, low={"y": 0.5}, high={"y": 2.0}, note="scalar"),
    *(Case(op, {"x": X, "y": "f32[S,1]"}, low={"x": -9.0, "y": -2.0}, high={"x": 9.0, "y": 2.0}) for op in DIVISION),
    *(
        Case(op, {"x": "i64[B,S]", "y": "i64[S]"}, low={"x": -9, "y": -3}, high={"x": 9}, note="integers, by 0 too")
        for op in DIVISION
    ),
    Case("pow", {"x": X, "y": "f32[8]"}, **POSITIVE),
    *(Case(op, {"x": "i64[B,S]", "y": "i64[B,S]"}) for op in COMPARISON),
    *(Case(op, {"x": X, "y": "f32[B,1,1]"}, note="floats") for op in COMPARISON),
    Case("logical_and", {"x": "bool[B,S]", "y": "bool[S]"}),
    Case("logical_or", {"x": "bool[B,S]", "y": "bool[S]"}),
    Case("logical_not", {"x": "bool[B,S]"}),
    Case("where", {"condition": "bool[B,1,S]", "x": "f32[B,S,S]", "y": "f32[]"}),
    Case("where", {"condition": "bool[S]", "x": "i64[B,S]", "y": "i64[B,1]"}, note="integers"),
    Case("cast", {"x": "i64[B,S]"}, {"dtype": f32}),
    Case("cast", {"x": X}, {"dtype": i64}, note="truncates", low={"x": -5}, high={"x": 5}),
    Case("cast", {"x": "bool[B,S]"}, {"dtype": f32}, note="bool"),
    Case("constant", {}, {"value": 1.5, "dtype": f32}),
    Case("constant", {}, {"value": ((1, 2, 3), (4, 5, 6)), "dtype": i64}, note="nested"),
    Case("constant", {}, {"value": float("-inf"), "dtype": f32}, note="infinite"),
    Case("constant", {}, {"value": (True, False), "dtype": bool_}, note="bool"),
]

REDUCE = [
    *(Case(op, {"x": X}) for op in ("sum", "mean", "max", "min", "argmax", "softmax")),
    *(Case(op, {"x": X}, {"axis": 1}, note="middle axis") for op in ("sum", "mean", "max", "min", "argmax", "softmax")),
    *(Case(op, {"x": X}, {"axis": 0, "keepdims": False}, note="drop") for op in ("sum", "mean", "max", "min")),
    Case("argmax", {"x": X}, {"keepdims": False}, note="drop"),
    Case("sum", {"x": "i64[B,S]"}, note="integers"),
    Case("max", {"x": "i64[B,S]"}, note="integers"),
    Case("softmax", {"x": X}, low={"x": -200.0}, high={"x": 200.0}, note="large"),
    *(Case("cumsum", {"x": X}, {"axis": axis}, note=f"axis {axis}") for axis in (0, 1, -1)),
    Case("cumsum", {"x": "i64[B,S]"}, note="integers"),
    Case("any", {"x": "bool[B,S,4]"}, make={"x": keep_some}),
    Case("any", {"x": "bool[B,S,4]"}, {"axis": 1, "keepdims": False}, note="drop"),
]

SHAPE = [
    Case("reshape", {"x": X}, {"shape": dims("B", "S", 2, 4)}),
    Case("reshape", {"x": X}, {"shape": dims("B*S", 8)}, note="merge"),
    Case("reshape", {"x": X}, {"shape": dims(-1)}, note="flat"),
    Case("transpose", {"x": X}, {"permutation": (0, 2, 1)}),
    Case("transpose", {"x": "f32[B,S,4,2]"}, {"permutation": (2, 0, 3, 1)}, note="all"),
    Case("expand", {"x": "f32[B,1,4]"}, {"shape": dims("B", 3, 4)}),
    Case("expand", {"x": "f32[S]"}, {"shape": dims(2, 4, "S")}, note="new axes"),
    Case("concat", {"x0": "f32[B,S,4]", "x1": "f32[B,P,4]", "x2": "f32[B,1,4]"}, {"axis": 1}),
    Case("concat", {"x0": X}, {"axis": -1}, note="one"),
    Case("slice", {"x": X}, {"axis": -1, "start": 2, "length": 5}),
    Case("slice", {"x": "f32[B,T,4]"}, {"axis": 1, "start": dims("T-1")[0], "length": 1}, note="symbolic"),
    Case("gather", {"x": "f32[B,6,3]", "indices": "i64[B,S]"}, {"axis": 1}, high={"indices": 5}),
    Case("gather", {"x": "f32[6,3]", "indices": "i32[S]"}, high={"indices": 5}, note="rows"),
    Case("gather", {"x": "f32[B,6]", "indices": "i64[]"}, {"axis": -1}, high={"indices": 5}, note="one"),
    Case("gather", {"x": "f32[6,3]", "indices": "i64[S]"}, low={"indices": -6}, high={"indices": -1}, note="from end"),
    Case("take_along_axis", {"x": "f32[B,S,6]", "indices": "i64[B,S,2]"}, high={"indices": 5}),
    Case("take_along_axis", {"x": "f32[B,6,2]", "indices": "i64[B,S,2]"}, {"axis": 1}, high={"indices": 5}, note="1"),
    Case("iota", {}, {"start": 2, "length": 5}),
    Case("iota", {}, {"start": 0, "length": 4, "dtype": f32}, note="floats"),
]

INTEGERS = {"x": "i64[B,S]", "y": "i64[S]"}
PLACES = {"x": "f32[B,6,3]", "indices": "i64[B,2,3]", "updates": "f32[B,2,3]"}
ADDED = {"x": "f32[B,6,3]", "indices": "i64[B,4,2]", "updates": "f32[B,4,2]"}
PLACED = {"x": "f32[6,3]", "indices": "i64[S,1]", "updates": "f32[S,3]"}


def apart(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Indices that are all different along axis -2, so that no place is written twice."""
    return np.sort(rng.permuted(np.broadcast_to(np.arange(6)[:, None], (*shape[:-2], 6, shape[-1])), axis=-2))[
        ..., : shape[-2], :
    ]


PLACES_AND_BITS = [
    *(Case(op, INTEGERS, high={"x": 9, "y": 9}) for op in ("bitwise_and", "bitwise_or", "bitwise_xor")),
    Case("bitwise_not", {"x": "i64[B,S]"}, low={"x": -9}, high={"x": 9}),
    Case("prod", {"x": X}),
    Case("prod", {"x": X}, {"axis": 0, "keepdims": False}, note="drop"),
    Case("prod", {"x": "i64[B,S]"}, note="integers"),
    Case("pad", {"x": "f32[B,S]"}, {"widths": ((0, 1), dims(2, "S"))}),
    Case("pad", {"x": "i64[B,S]"}, {"widths": ((1, 0), (0, 2)), "value": 7.0}, note="integers"),
    Case("scatter", PLACES, {"axis": 1}, make={"indices": apart}),
    Case(
        "scatter",
        {**PLACES, "indices": "i64[B,4,2]", "updates": "f32[B,4,2]"},
        {"reduction": "add"},
        high={"indices": 2},
        note="add",
    ),
    *(
        Case("scatter", PLACES, {"axis": 1, "reduction": how}, note=how, make={"indices": apart})
        for how in ("mul", "max", "min")
    ),
    Case("gather_nd", {"x": "f32[6,3,2]", "indices": "i64[B,S,2]"}, high={"indices": 2}),
    Case("gather_nd", {"x": "f32[6,3]", "indices": "i64[S,1]"}, high={"indices": 5}, note="rows"),
    Case("scatter_nd", PLACED, make={"indices": apart}),
    Case("scatter_nd", PLACED, {"reduction": "add"}, high={"indices": 2}, note="add"),
]

LINEAR = [
    Case("matmul", {"x": "f32[B,S,4]", "y": "f32[B,4,5]"}),
    Case("matmul", {"x": "f32[B,1,S,4]", "y": "f32[2,4,3]"}, note="broadcast"),
    Case("matmul", {"x": "f32[S,4]", "y": "f32[4,T]"}, note="plain"),
    Case("linear", {"x": X, "w": "f32[5,8]"}),
    Case("linear", {"x": X, "w": "f32[5,8]", "b": "f32[5]"}, note="bias"),
    Case("linear", {"x": X, "w": "f32[8,5]", "b": "f32[5]"}, {"transposed": True}, note="transposed"),
    Case("embedding", {"ids": "i64[B,S]", "table": "f32[7,4]"}, high={"ids": 6}),
    Case("embedding", {"ids": "i32[S]", "table": "f32[7,4]"}, high={"ids": 6}, note="i32"),
]

_CONV1D = Case("conv1d", {"x": "f32[B,4,T]", "w": "f32[6,4,3]", "b": None})
_CONV2D = Case("conv2d", {"x": "f32[B,2,6,S]", "w": "f32[4,2,3,2]", "b": None})

CONVOLUTION = [
    _CONV1D,
    variant(_CONV1D, "bias, padding", b="f32[6]", padding=1),
    variant(_CONV1D, "stride", x="f32[B,4,9]", stride=2),
    variant(_CONV1D, "stride over a multiple", x="f32[B,4,2*S]", b="f32[6]", stride=2, padding=1),
    variant(_CONV1D, "dilation", dilation=2),
    variant(_CONV1D, "groups", w="f32[6,2,3]", groups=2),
    variant(_CONV1D, "each channel alone", w="f32[4,1,2]", groups=4, padding=1),
    _CONV2D,
    variant(_CONV2D, "bias, padding", b="f32[4]", padding=(2, 1)),
    variant(_CONV2D, "stride, dilation", x="f32[B,2,7,8]", stride=(2, 3), dilation=(1, 2)),
    variant(_CONV2D, "groups", w="f32[4,1,3,2]", groups=2),
    variant(_CONV2D, "patches", x="f32[B,3,8,6]", w="f32[5,3,2,2]", b="f32[5]", stride=2),
]

NORM = [
    Case("rms_norm", {"x": X, "w": "f32[8]"}),
    Case("rms_norm", {"x": "f32[B,S,2,4]", "w": "f32[4]"}, {"eps": 0.25}, note="eps"),
    Case("layer_norm", {"x": X, "w": "f32[8]", "b": "f32[8]"}),
    Case("layer_norm", {"x": X, "w": "f32[8]"}, {"eps": 0.25}, note="no bias"),
    Case("add_rms_norm", {"x": X, "r": X, "w": "f32[8]"}),
    Case("add_rms_norm", {"x": X, "r": X, "w": "f32[8]"}, {"eps": 0.25}, note="eps"),
    Case("add_layer_norm", {"x": X, "r": X, "w": "f32[8]", "b": "f32[8]"}),
    Case("add_layer_norm", {"x": X, "r": X, "w": "f32[8]"}, {"eps": 0.25}, note="no bias"),
]

_ATTENTION = Case(
    "attention",
    {
        "q": "f32[B,S,2,4]",
        "k": "f32[B,T,2,4]",
        "v": "f32[B,T,2,3]",
        "bias": None,
        "mask": None,
        "lengths": None,
        "sinks": None,
    },
    make={"lengths": right_padded},
)
_SQUARE = variant(_ATTENTION, "square", k="f32[B,S,2,4]", v="f32[B,S,2,4]")
_GROUPED = variant(_ATTENTION, "grouped", q="f32[B,S,4,4]")

ATTENTION = [
    _ATTENTION,
    _SQUARE,
    _GROUPED,
    variant(_GROUPED, "one key head", k="f32[B,T,1,4]", v="f32[B,T,1,4]"),
    variant(_SQUARE, "causal", causal=True),
    variant(_GROUPED, "causal, T > S", causal=True),
    variant(_ATTENTION, "causal, T < S", causal=True, q="f32[B,T,2,4]", k="f32[B,S,2,4]", v="f32[B,S,2,3]"),
    variant(_SQUARE, "window", causal=True, window=2),
    variant(_GROUPED, "window, T > S", causal=True, window=2),
    variant(_ATTENTION, "scale", scale=0.25),
    variant(_SQUARE, "softcap", causal=True, softcap=1.5),
    variant(_ATTENTION, "mask", mask="bool[B,1,1,T]"),
    variant(_ATTENTION, "mask, empty row", mask="bool[B,1,S,T]", make={"mask": keep_some}),
    variant(_GROUPED, "mask per head, empty row", mask="bool[B,4,S,T]", make={"mask": keep_some}),
    variant(_SQUARE, "mask, left padded, causal", causal=True, mask="bool[B,1,1,S]", make={"mask": keep_some}),
    variant(_ATTENTION, "lengths", lengths="i32[B]"),
    variant(_GROUPED, "lengths, causal", lengths="i32[B]", causal=True),
    variant(_ATTENTION, "bias", bias="f32[1,2,S,T]"),
    variant(_GROUPED, "bias, mask, causal", bias="f32[4,1,T]", mask="bool[B,1,1,T]", causal=True),
    variant(_ATTENTION, "bias, empty row", bias="f32[S,T]", mask="bool[B,1,S,T]", make={"mask": keep_some}),
    variant(_GROUPED, "sinks", sinks="f32[4]"),
    variant(_SQUARE, "sinks, window", sinks="f32[2]", causal=True, window=2),
    variant(_ATTENTION, "sinks, empty row", sinks="f32[2]", mask="bool[B,1,S,T]", make={"mask": keep_some}),
    variant(
        _GROUPED,
        "everything",
        bias="f32[B,1,S,T]",
        mask="bool[B,4,S,T]",
        lengths="i32[B]",
        sinks="f32[4]",
        causal=True,
        window=3,
        scale=0.7,
        softcap=2.0,
        make={"lengths": right_padded, "mask": keep_some},
    ),
]

_ROPE = Case(
    "rope",
    {"x": "f32[B,S,2,8]", "positions": "i64[B,S]", "frequencies": "f32[4]"},
    low={"frequencies": 0.05},
    high={"frequencies": 1.0},
    make={"positions": rows_of(0, 1, 5)},
)

POSITION = [
    _ROPE,
    variant(_ROPE, "interleaved", interleaved=True),
    variant(_ROPE, "partial", rotary_dim=4, frequencies="f32[2]"),
    variant(_ROPE, "partial, interleaved", rotary_dim=4, frequencies="f32[2]", interleaved=True),
    variant(_ROPE, "full width given", rotary_dim=8),
    variant(_ROPE, "scale", scale=1.25),
    Case("sinusoidal_positions", {"positions": "i64[B,S]"}, {"dim": 6, "dtype": f32}, high={"positions": 40}),
]

_FEED_FORWARD = Case(
    "feed_forward",
    {"x": X, "w_up": "f32[6,8]", "w_down": "f32[8,6]", "b_up": None, "b_down": None},
    {"activation": "gelu"},
)
_GATED = Case(
    "gated_feed_forward",
    {
        "x": X,
        "w_gate": "f32[6,8]",
        "w_up": "f32[6,8]",
        "w_down": "f32[8,6]",
        "b_gate": None,
        "b_up": None,
        "b_down": None,
    },
    {"activation": "silu"},
)

FEED_FORWARD = [
    *(Case(op, {"x": X}) for op in ("gelu", "silu", "relu", "softplus")),
    Case("softplus", {"x": X}, low={"x": -200.0}, high={"x": 200.0}, note="large"),
    Case("gelu", {"x": X}, {"tanh": True}, note="tanh"),
    *(variant(_FEED_FORWARD, name, activation=name) for name in ("gelu", "gelu_tanh", "silu", "relu")),
    variant(_FEED_FORWARD, "bias", b_up="f32[6]", b_down="f32[8]"),
    variant(_FEED_FORWARD, "transposed", transposed=True, w_up="f32[8,6]", w_down="f32[6,8]", b_down="f32[8]"),
    *(variant(_GATED, name, activation=name) for name in ("gelu", "gelu_tanh", "silu", "relu")),
    variant(_GATED, "bias", b_gate="f32[6]", b_up="f32[6]", b_down="f32[8]"),
    Case("dropout", {"x": X}, {"p": 0.25}),
    Case("detach", {"x": X}),
]

CACHE = [
    Case("cache_append", {"past": "f32[B,2,P,4]", "new": "f32[B,S,2,4]"}),
    Case("cache_append", {"past": "f32[B,2,0,4]", "new": "f32[B,S,2,4]"}, note="empty past"),
    Case("cache_read", {"cache": "f32[B,2,T,4]"}),
]


def some_ignored(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    labels = rng.integers(0, 6, shape)
    labels.reshape(-1)[0] = -100
    return labels


LOSS = [
    Case("cross_entropy", {"logits": "f32[B,S,6]", "labels": "i64[B,S]"}, high={"labels": 5}),
    Case("cross_entropy", {"logits": "f32[B,6]", "labels": "i64[B]"}, high={"labels": 5}, note="rank 2"),
    Case(
        "cross_entropy", {"logits": "f32[B,S,6]", "labels": "i64[B,S]"}, make={"labels": some_ignored}, note="ignored"
    ),
    Case(
        "cross_entropy",
        {"logits": "f32[B,S,6]", "labels": "i64[B,S]"},
        {"label_smoothing": 0.1},
        make={"labels": some_ignored},
        note="smoothing",
    ),
    Case(
        "cross_entropy",
        {"logits": "f32[B,S,6]", "labels": "i64[B,S]"},
        {"ignore_index": 0},
        high={"labels": 0},
        note="no label",
    ),
]

CASES: list[Case] = [
    *ELEMENTWISE,
    *REDUCE,
    *SHAPE,
    *LINEAR,
    *PLACES_AND_BITS,
    *CONVOLUTION,
    *NORM,
    *ATTENTION,
    *POSITION,
    *FEED_FORWARD,
    *CACHE,
    *LOSS,
]

# -- recurrent layers and the order that moves padding to the right ---------------------------------------------------


def some_steps(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Lengths of which the first is 0: a row that is padding altogether."""
    return np.arange(shape[0]) * 2


def _recurrent(op: str, gates: int, **attributes: Any) -> list[Case]:
    states = {"h0": "f32[B,3]", **({"c0": "f32[B,3]"} if op == "lstm" else {})}
    bias = dict.fromkeys(("bias_ih", "bias_hh"), f"f32[{3 * gates}]")
    weights = {"weight_ih": f"f32[{3 * gates},4]", "weight_hh": f"f32[{3 * gates},3]"}
    absent = dict.fromkeys((*bias, *states, "lengths"))
    plain = Case(op, {"x": "f32[B,S,4]", **weights, **absent}, attributes)
    full = variant(plain, "state", **bias, **states)
    return [
        plain,
        variant(plain, "bias", **bias),
        full,
        variant(plain, "lengths, no state", **bias, lengths="i32[B]", make={"lengths": right_padded}),
        variant(full, "lengths", lengths="i32[B]", make={"lengths": right_padded}),
        variant(full, "lengths, empty row", lengths="i32[B]", make={"lengths": some_steps}),
    ]


_RNN = _recurrent("rnn", 1, activation="tanh")

RECURRENT = [
    *_RNN,
    variant(_RNN[2], "relu", activation="relu"),
    *_recurrent("lstm", 4),
    *_recurrent("gru", 3),
    Case("compact", {"mask": "bool[B,T]"}),
    Case("compact", {"mask": "bool[B,T]"}, make={"mask": keep_some}, note="holes"),
    Case("compact", {"mask": "bool[B,S]"}, make={"mask": lambda rng, shape: np.zeros(shape)}, note="nothing kept"),
]

CASES += RECURRENT

# -- experts, and mixers with a state of fixed size --------------------------------------------------------------------


def some_experts(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Numbers of 3 experts, none twice in a row."""
    return rng.permuted(np.broadcast_to(np.arange(3), (*shape[:-1], 3)), axis=-1)[..., : shape[-1]]


_EXPERTS = {f"w{i}": "f32[8,5]" if i % 3 == 2 else "f32[5,8]" for i in range(9)}
_MOE = Case(
    "moe",
    {"x": X, "weights": "f32[B,S,2]", "indices": "i64[B,S,2]", **_EXPERTS},
    {"activation": "silu"},
    make={"indices": some_experts},
)
_CONV = Case("causal_conv", {"x": "f32[B,S,4]", "w": "f32[4,3]", "b": None, "tail": None, "mask": None})
_MASKED_CONV = variant(_CONV, "mask", tail="f32[B,2,4]", mask="bool[B,S]", make={"mask": keep_some})
_SPACE = Case(
    "state_space",
    {"x": "f32[B,S,4,3]", "decay": "f32[B,S,4]", "b": "f32[B,S,2,5]", "c": "f32[B,S,2,5]", "state": None},
    low={"decay": -3.0},
    high={"decay": -0.1},
)

CASES += [
    Case("topk", {"x": X}, {"k": 3}),
    Case("topk", {"x": X}, {"k": 8}, note="all"),
    Case("topk", {"x": "f32[B,S]"}, {"k": dims("S")[0]}, note="all of a size that varies"),
    Case("topk", {"x": "i64[B,S,6]"}, {"k": 4}, high={"x": 2}, note="equals"),
    _MOE,
    variant(_MOE, "one of them", weights="f32[B,S,1]", indices="i64[B,S,1]"),
    variant(_MOE, "rows", x="f32[S,8]", weights="f32[S,2]", indices="i64[S,2]", activation="gelu_tanh"),
    _CONV,
    variant(_CONV, "bias", b="f32[4]"),
    variant(_CONV, "state", b="f32[4]", tail="f32[B,2,4]"),
    variant(_CONV, "long tail", w="f32[4,6]", tail="f32[B,5,4]"),
    variant(_CONV, "mask, no state", mask="bool[B,S]", make={"mask": keep_some}),
    _MASKED_CONV,
    variant(_MASKED_CONV, "holes", x="f32[B,T,4]", mask="bool[B,T]"),
    _SPACE,
    variant(_SPACE, "state", state="f32[B,4,3,5]"),
    variant(_SPACE, "one group", b="f32[B,S,1,5]", c="f32[B,S,1,5]", state="f32[B,4,3,5]"),
]
