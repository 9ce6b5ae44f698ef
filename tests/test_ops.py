"""Every op: its values against a second definition, its shape rule, its text form, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from monograph.ir import OPS as ALL_OPS
from monograph.ir import Graph, building, interpret, ops, parse, print_graph, tensor, verify
from monograph.ir.errors import MonographError, OpError, RuntimeInputError
from monograph.ir.interpret import resolve
from monograph.ir.types import DType, bf16, f16, f32, f64, i64, parse_type
from op_cases import CASES, SIZES, Case
from op_expected import EXPECTED

# Encoded weights are never inputs, so the ops that read them have cases of their own in test_encodings.py.
OPS = {k: v for k, v in ALL_OPS.items() if type(v).__module__.startswith("monograph.ir.") and not v.reads_encoded}
"""Ops of the language: backends add their own to the registry when a test before this one brought them in."""

TOLERANCE = {f64: 1e-12, f32: 1e-5, f16: 2e-2, bf16: 1e-1}


def test_every_op_has_a_case_and_a_second_definition() -> None:
    covered = {c.op for c in CASES}
    assert not OPS.keys() - covered, "add a Case to tests/op_cases.py"
    assert not OPS.keys() - EXPECTED.keys(), "add a second definition to tests/op_expected.py"


def test_every_optional_operand_is_given_and_left_out_in_some_case() -> None:
    for op in OPS.values():
        for name in op.signature.optional:
            given = {c.inputs.get(name) is not None for c in CASES if c.op == op.name}
            assert given == {True, False}, f"{op.name} {name}"


def test_every_attribute_takes_two_values_in_the_cases() -> None:
    once = set()
    for op in OPS.values():
        for name, default in op.signature.attributes.items():
            values = {str(c.attributes.get(name, default)) for c in CASES if c.op == op.name}
            if len(values) < 2:
                once.add(f"{op.name}.{name}")
    assert once == {"dropout.p", "sinusoidal_positions.dim", "sinusoidal_positions.dtype"}


def test_case_names_are_unique() -> None:
    names = [str(c) for c in CASES]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.op in EXPECTED], ids=str)
def test_values(case: Case, dtype: DType) -> None:
    graph, inputs = case.graph(dtype), case.arrays(dtype=dtype)
    got = interpret(graph, inputs)
    wide = {k: x.astype(np.float64) if DType.of(x.dtype).is_float else x for k, x in inputs.items()}
    given = {k: resolve(v, SIZES) for k, v in case.attributes.items()}
    expected = EXPECTED[case.op](*(wide.get(k) for k in case.inputs), **given)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for (name, v), want in zip(graph.outputs.items(), expected, strict=True):
        have = got[name]
        assert have.dtype == v.dtype.numpy
        assert have.shape == v.shape == np.shape(want)
        exact = not v.dtype.is_float
        tolerance = 0.0 if exact else TOLERANCE[dtype]
        np.testing.assert_allclose(have.astype(np.float64), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_symbolic_shapes_agree_with_concrete_ones(case: Case) -> None:
    symbolic, concrete = verify(case.graph(symbolic=True)), verify(case.graph())
    for name, v in symbolic.outputs.items():
        assert v.type.substitute(SIZES) == concrete.outputs[name].type
    for have, want in zip(
        interpret(symbolic, case.arrays()).values(), interpret(concrete, case.arrays()).values(), strict=True
    ):
        np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize("symbolic", [False, True], ids=["fixed", "symbolic"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_text_round_trip(case: Case, symbolic: bool) -> None:
    graph = case.graph(symbolic=symbolic)
    text = print_graph(graph)
    again = verify(parse(text))
    assert print_graph(again) == text
    assert next(iter(again)).attributes == next(iter(graph)).attributes


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cost_counts_bytes_read_and_written(case: Case) -> None:
    node = next(iter(case.graph()))
    flops, moved = node.op.cost(*node.operands, **node.attributes)
    assert moved == sum(v.type.bytes for v in [*node.arguments, *node.outputs])
    assert flops >= 0


@pytest.mark.parametrize(
    ("case", "flops"),
    [("matmul", 2 * 2 * 3 * 4 * 5), ("linear-bias", 2 * 2 * 3 * 8 * 5 + 2 * 3 * 5), ("add-broadcast", 2 * 3 * 8)],
)
def test_flops(case: str, flops: int) -> None:
    node = next(iter(next(c for c in CASES if str(c) == case).graph()))
    assert node.op.flops(*node.operands, **node.attributes) == flops


BAD: list[tuple[str, list[str | None], dict[str, Any], str]] = [
    ("add", ["f32[2,3]", "f32[2,4]"], {}, r"shapes \[2,3\] and \[2,4\] do not broadcast"),
    ("add", ["f32[B,3]", "f32[S,3]"], {}, r"shapes \[B,3\] and \[S,3\] do not broadcast"),
    ("add", ["f32[2]", "f16[2]"], {}, "x is f32 but y is f16: cast one of them"),
    ("mul", ["bool[2]", "bool[2]"], {}, "x is bool, expected numbers"),
    ("div", ["i64[2]", "i64[2]"], {}, "x is i64: integer division"),
    ("floor_div", ["f32[2]", "i64[2]"], {}, "x is f32 but y is i64"),
    ("mod", ["bool[2]", "bool[2]"], {}, "x is bool, expected numbers"),
    ("pow", ["i64[2]", "i64[2]"], {}, "x is i64, expected a floating-point type"),
    ("exp", ["i32[2]"], {}, "x is i32, expected a floating-point type"),
    ("neg", ["u8[2]"], {}, "x is u8, expected a type with a sign"),
    ("less", ["bool[2]", "bool[2]"], {}, "x is bool, expected numbers"),
    ("logical_and", ["i64[2]", "bool[2]"], {}, "x is i64, expected bool"),
    ("logical_not", ["f32[2]"], {}, "x is f32, expected bool"),
    ("where", ["i64[2]", "f32[2]", "f32[2]"], {}, "condition is i64, expected bool"),
    ("where", ["bool[3]", "f32[2]", "f32[2]"], {}, r"shapes \[3\], \[2\] and \[2\] do not broadcast"),
    ("cast", ["f32[2]"], {}, "attribute 'dtype' is missing"),
    ("cast", ["f32[2]"], {"dtype": f32, "type": f32}, "has no attribute 'type', did you mean 'dtype'"),
    ("constant", [], {"value": 0.5, "dtype": i64}, "value 0.5 cannot be written as i64"),
    ("constant", [], {"value": 300, "dtype": DType.i8}, "300"),
    ("constant", [], {"value": 1e6, "dtype": f16}, "value 1000000.0 cannot be written as f16"),
    ("constant", [], {"value": ((1, 2), (3,)), "dtype": i64}, "value is not an array of i64"),
    ("constant", [], {"value": 2, "dtype": DType.bool_}, "value 2 cannot be written as bool"),
    ("sum", ["f32[2,3]"], {"axis": 2}, "axis 2 is outside rank 2"),
    ("sum", ["i32[2,3]"], {}, "x is i32, expected a floating-point type or i64"),
    ("mean", ["i64[2,3]"], {}, "x is i64, expected a floating-point type"),
    ("any", ["f32[2]"], {}, "x is f32, expected bool"),
    ("argmax", ["bool[2]"], {}, "x is bool, expected numbers"),
    ("min", ["bool[2]"], {}, "x is bool, expected numbers"),
    ("softmax", ["f32[]"], {}, "axis -1 is outside rank 0"),
    ("cumsum", ["i32[2,3]"], {}, "x is i32, expected a floating-point type or i64"),
    ("reshape", ["f32[2,3]"], {"shape": (4, 2)}, r"f32\[2,3\] has 6 elements, not 8"),
    ("reshape", ["f32[2,3]"], {"shape": (-1, 4)}, "6 is not a multiple of 4"),
    ("reshape", ["f32[2,3]"], {"shape": (-1, -1)}, r"shape \[-1,-1\] has 2 dimensions that are -1"),
    ("reshape", ["f32[2,3]"], {"shape": (-2, -3)}, r"shape \[-2,-3\] has a negative dimension"),
    ("transpose", ["f32[2,3]"], {"permutation": (0, 0)}, r"\[0, 0\] does not order the 2 axes"),
    ("expand", ["f32[2,3]"], {"shape": (4, 3)}, r"f32\[2,3\] does not broadcast to \[4,3\]"),
    ("concat", ["f32[2,3]", "f32[3,3]"], {"axis": 1}, r"f32\[3,3\] and f32\[2,3\] differ outside axis -1"),
    ("slice", ["f32[4]"], {"axis": 0, "start": 2, "length": 3}, r"\[2:5\] is outside the 4 elements"),
    ("slice", ["f32[S]"], {"axis": 0, "start": -1, "length": 1}, r"\[-1:0\] is outside the S elements"),
    ("gather", ["f32[4]", "f32[2]"], {}, "indices is f32, expected i64 or i32"),
    ("take_along_axis", ["f32[2,4]", "i64[3,1]"], {}, r"indices i64\[3,1\] must match x f32\[2,4\] outside axis -1"),
    ("iota", [], {"start": 0, "length": -1}, "length is -1, expected at least 0"),
    ("matmul", ["f32[2,3]", "f32[4,2]"], {}, "last axis of x is 3 but y has 4 rows"),
    ("matmul", ["f32[3]", "f32[3,2]"], {}, "x has rank 1 and y rank 2"),
    ("matmul", ["f32[2,2,3]", "f32[3,3,2]"], {}, r"batch axes of f32\[2,2,3\] and f32\[3,3,2\]"),
    ("linear", ["f32[2,3]", "f32[5,4]"], {}, r"last axis of x is 3 but w expects 4 \(w is \[out, in\]\)"),
    ("linear", ["f32[2,3]", "f32[5,3]", "f32[4]"], {}, r"b is f32\[4\], expected f32\[5\], the channels of w"),
    ("linear", ["f32[2,3]", "f16[5,3]"], {}, "x is f32 but w is f16"),
    ("linear", ["f32[]", "f32[5,3]"], {}, "x is a scalar"),
    ("conv1d", ["f32[2,4]", "f32[6,4,3]"], {}, "x has rank 2, expected 3"),
    ("conv1d", ["f32[2,4,5]", "f32[6,3,3]"], {}, "x has 4 channels, w takes 3 in 1 groups"),
    ("conv1d", ["f32[2,4,5]", "f32[5,2,3]"], {"groups": 2}, "w gives 5 channels, not a multiple of 2 groups"),
    ("conv1d", ["f32[2,4,2]", "f32[6,4,3]"], {}, r"3 taps with dilation 1 do not fit into 2 \+ 2 \* 0 places"),
    ("conv1d", ["f32[2,4,S]", "f32[6,4,3]"], {"stride": 2}, "stride is 2: the S places may not divide by it"),
    ("conv2d", ["f32[2,4,5,5]", "f32[6,4,3,3]"], {"padding": (1,)}, r"padding is \(1,\), expected 2 of at least 0"),
    ("conv2d", ["f32[2,4,5,5]", "f32[6,4,3,3]", "f32[4]"], {}, r"b is f32\[4\], expected f32\[6\]"),
    ("embedding", ["f32[2]", "f32[5,3]"], {}, "ids is f32, expected i64 or i32"),
    ("rms_norm", ["f32[2,3]", "f32[4]"], {}, r"w is f32\[4\], expected f32\[3\], the last axis of x"),
    ("rms_norm", ["f32[]", "f32[]"], {}, "x is a scalar"),
    ("layer_norm", ["f32[2,3]", "f32[3]", "f16[3]"], {}, r"b is f16\[3\], expected f32\[3\]"),
    ("add_rms_norm", ["f32[2,3]", "f32[3]", "f32[3]"], {}, r"x is f32\[2,3\] but r is f32\[3\]"),
    ("attention", ["f32[2,3,8]", "f32[2,3,2,4]", "f32[2,3,2,4]"], {}, "q has rank 3, expected 4"),
    ("attention", ["f32[2,3,3,4]", "f32[2,3,2,4]", "f32[2,3,2,4]"], {}, "3 is not a multiple of 2"),
    ("attention", ["f32[2,3,2,4]", "f32[2,3,2,5]", "f32[2,3,2,4]"], {}, "q has head width 4 but k has 5"),
    ("attention", ["f32[2,3,2,4]", "f32[2,5,2,4]", "f32[2,3,2,4]"], {}, "batch, length and heads must agree"),
    ("attention", ["f32[2,3,2,4]", "f32[1,3,2,4]", "f32[1,3,2,4]"], {}, "q has batch 2 but k has 1"),
    ("attention", ["f32[2,3,2,4]"] * 3, {"window": 2}, "window is 2: it needs causal=True"),
    ("attention", ["f32[2,3,2,4]"] * 3, {"softcap": -1.0}, "softcap is -1.0, expected a positive number"),
    ("attention", [*["f32[2,3,2,4]"] * 3, None, "bool[2,1,3,4]"], {}, r"mask is bool\[2,1,3,4\], .* \[2,2,3,3\]"),
    ("attention", [*["f32[2,3,2,4]"] * 3, None, "i64[2,1,3,3]"], {}, "mask is i64, expected bool"),
    ("attention", [*["f32[2,3,2,4]"] * 3, "f16[3,3]"], {}, "bias is f16 but q is f32"),
    ("attention", [*["f32[2,3,2,4]"] * 3, None, None, "i64[2]"], {}, r"lengths is i64\[2\], expected i32\[2\]"),
    ("attention", [*["f32[2,3,2,4]"] * 3, None, None, None, "f32[3]"], {}, r"sinks is f32\[3\], expected f32\[2\]"),
    ("rope", ["f32[2,3,2,8]", "i64[2,4]", "f32[4]"], {}, r"positions are i64\[2,4\], expected \[2,3\]"),
    ("rope", ["f32[2,3,2,8]", "i64[2,3]", "f32[3]"], {}, "3 frequencies do not turn 8 channels"),
    ("rope", ["f32[2,3,2,8]", "i64[2,3]", "f32[8]"], {"rotary_dim": 16}, "rotary_dim is 16 but x has 8 channels"),
    ("rope", ["f32[2,3,2,8]", "f32[2,3]", "f32[4]"], {}, "positions is f32, expected i64 or i32"),
    ("sinusoidal_positions", ["i64[2,3]"], {"dim": 5, "dtype": f32}, "dim is 5, expected an even number"),
    ("gelu", ["i64[2]"], {}, "x is i64, expected a floating-point type"),
    ("feed_forward", ["f32[2,3]", "f32[4,3]", "f32[3,4]"], {"activation": "gelo"}, "'gelo'.*did you mean 'gelu'"),
    ("feed_forward", ["f32[2,3]", "f32[4,3]", "f32[3,5]"], {"activation": "gelu"}, "w_up gives 4 .* w_down expects 5"),
    ("feed_forward", ["f32[2,3]", "f32[4]", "f32[3,4]"], {"activation": "gelu"}, "w_up has rank 1, expected 2"),
    (
        "gated_feed_forward",
        ["f32[2,3]", "f32[4,3]", "f32[5,3]", "f32[3,5]"],
        {"activation": "silu"},
        r"w_gate is f32\[4,3\] but w_up is f32\[5,3\]",
    ),
    (
        "gated_feed_forward",
        ["f32[2,3]", "f32[4,3]", "f32[4,3]", "f32[3,4]", "f32[3]"],
        {"activation": "silu"},
        r"b_gate is f32\[3\], expected f32\[4\]",
    ),
    ("dropout", ["f32[2]"], {"p": 1.0}, r"p is 1.0, expected 0 <= p < 1"),
    ("cache_append", ["f32[2,2,3,4]", "f32[2,5,3,4]"], {}, r"new is f32\[2,5,3,4\] but past is f32\[2,2,3,4\]"),
    ("cache_read", ["f32[2,2,3]"], {}, r"cache is f32\[2,2,3\], expected rank 4"),
    ("cross_entropy", ["f32[2,3,5]", "i64[2,4]"], {}, r"labels are i64\[2,4\] but logits are f32\[2,3,5\]"),
    ("cross_entropy", ["f32[2,5]", "i32[2]"], {}, "labels are i32, expected i64"),
    ("cross_entropy", ["f32[2,5]", "i64[2]"], {"label_smoothing": 1.5}, "label_smoothing is 1.5"),
    ("rnn", ["f32[2,3,4]", "f32[3,4]", "f32[3,3]"], {"activation": "relo"}, "'relo', expected tanh or relu"),
    ("rnn", ["f32[2,3,4]", "f32[3,5]", "f32[3,3]"], {}, r"weight_ih is f32\[3,5\], expected f32\[3,4\], 1 gates of 3"),
    ("rnn", ["f32[2,0,4]", "f32[3,4]", "f32[3,3]"], {}, "x has 0 steps"),
    ("lstm", ["f32[2,3,4]", "f32[12,4]", "f32[9,3]"], {}, r"weight_hh is f32\[9,3\], expected f32\[12,3\], 4 gates"),
    ("lstm", ["f32[2,3,4]", "f32[12,4]", "f32[12,3]", "f32[12]"], {}, "bias_ih and bias_hh are given both or not"),
    ("lstm", ["f32[2,3,4]", "f32[12,4]", "f32[12,3]", None, None, "f32[2,3]"], {}, "h0 and c0 are given both or not"),
    ("gru", ["f32[2,3,4]", "f32[9,4]", "f32[9,3]", None, None, "f32[3]"], {}, r"h0 is f32\[3\], expected f32\[2,3\]"),
    ("gru", ["f32[2,3,4]", "f32[9,4]", "f32[9,3]", *[None] * 3, "i64[2]"], {}, r"lengths is i64\[2\], expected i32"),
    ("topk", ["f32[2,3]"], {"k": 4}, "k is 4 but the last axis of x has 3 elements"),
    ("topk", ["f32[2,3]"], {"k": 0}, "k is 0, expected at least 1"),
    ("moe", ["f32[2,8]", "f32[2,1]", "i32[2,1]"], {}, "indices are i32, expected i64"),
    ("moe", ["f32[2,8]", "f32[2,1]", "i64[2,1]"], {}, "0 weights of experts are given, expected 3 each"),
    ("moe", ["f32[2,8]", "f32[3,1]", "i64[3,1]"], {}, r"weights are f32\[3,1\], expected a row for each token of x"),
    ("moe", ["f32[2,8]", "f32[2,1]", "i64[2,1]", "f32[5,8]", "f32[5,8]", "f32[7,5]"], {}, "experts give 7 channels"),
    ("causal_conv", ["f32[2,3,4]", "f32[5,3]"], {}, "w has 5 rows but x has 4 channels"),
    ("causal_conv", ["f32[2,3,4]", "f32[4,1]"], {}, "w has 1 taps, expected at least 2"),
    ("causal_conv", ["f32[2,3,4]", "f32[4,3]", None, "f32[2,3,4]"], {}, r"tail is f32\[2,3,4\], expected f32\[2,2,4\]"),
    ("state_space", ["f32[2,3,4,5]", "f32[2,3,2]", *["f32[2,3,2,6]"] * 2], {}, r"decay is f32\[2,3,2\], expected"),
    ("state_space", ["f32[2,3,4,5]", "f32[2,3,4]", *["f32[2,3,3,6]"] * 2], {}, "4 is not a multiple of 3"),
    ("bitwise_and", ["f32[2]", "f32[2]"], {}, "x is f32, expected an integer type"),
    ("bitwise_or", ["bool[2]", "bool[2]"], {}, "x is bool, expected an integer type"),
    ("bitwise_xor", ["i64[2]", "i32[2]"], {}, "x is i64 but y is i32"),
    ("bitwise_not", ["f32[2]"], {}, "x is f32, expected an integer type"),
    ("prod", ["i32[2,3]"], {}, "x is i32, expected a floating-point type or i64"),
    ("pad", ["f32[2,3]"], {"widths": ((0, 1),)}, "widths are given for 1 axes, but x has 2"),
    ("pad", ["f32[2]"], {"widths": ((-1, 0),)}, r"widths \(-1, 0\) are negative: slice"),
    ("scatter", ["f32[2,3]", "i32[2,1]", "f32[2,1]"], {}, "indices are i32, expected i64"),
    ("scatter", ["f32[2,3]", "i64[2,1]", "f32[2,2]"], {}, r"indices are i64\[2,1\] but updates are f32\[2,2\]"),
    ("scatter", ["f32[2,3]", "i64[2,1]", "f32[2,1]"], {"reduction": "sum"}, "reduction is 'sum', expected none, add"),
    ("gather_nd", ["f32[2,3]", "i64[4,3]"], {}, "must have 1 to 2 numbers in a row"),
    ("scatter_nd", ["f32[2,3]", "i64[4,1]", "f32[4,2]"], {}, r"updates are f32\[4,2\], expected \[4,3\]"),
    ("scatter_nd", ["f32[2]", "i64[4,1]", "f32[4]"], {"reduction": "max"}, "'max', expected none or add"),
    ("compact", ["i64[2,3]"], {}, r"mask is i64\[2,3\], expected bool \[B,S\]"),
]


BAD_NAMES = [f"{op}-{i}" for i, (op, *_) in enumerate(BAD)]


def test_every_op_refuses_something() -> None:
    unary = {
        "abs",
        "log",
        "sqrt",
        "rsqrt",
        "tanh",
        "sin",
        "cos",
        "erf",
        "sigmoid",
        "floor",
        "silu",
        "relu",
        "softplus",
    } | {"ceil", "round", "sign", "detach"}
    binary = {"sub", "maximum", "minimum", "equal", "less_equal", "logical_or"}
    assert OPS.keys() - {op for op, *_ in BAD} - unary - binary == {"max", "add_layer_norm"}


@pytest.mark.parametrize(("op", "types", "attributes", "message"), BAD, ids=BAD_NAMES)
def test_bad_operands(op: str, types: list[str | None], attributes: dict[str, Any], message: str) -> None:
    graph = Graph("bad")
    operands = [None if t is None else graph.input(f"in{i}", parse_type(t)) for i, t in enumerate(types)]
    with pytest.raises(OpError, match=message) as caught:
        graph.add(OPS[op], operands, attributes)
    text = str(caught.value)
    assert text.startswith(f"test_ops.py:{test_bad_operands.__code__.co_firstlineno + 5}: {op}: ")
    for i, t in enumerate(types):
        assert t is None or f"%in{i}: {t}" in text
    assert len(graph) == 0


def test_operands_are_values_of_this_graph() -> None:
    graph, other = Graph("a"), Graph("b")
    x = graph.input("x", tensor(f32, 2))
    with pytest.raises(OpError, match=r"test_ops.py:\d+: matmul: 2.0 is not a value of a graph"):
        ops.matmul(x, 2.0)  # type: ignore[arg-type]
    with pytest.raises(MonographError, match="add: %y: f32\\[2\\] belongs to another graph"):
        ops.add(x, other.input("y", tensor(f32, 2)))
    with pytest.raises(OpError, match="linear: operand 'w' is missing"):
        ops.linear(x)  # type: ignore[call-arg]
    with pytest.raises(OpError, match="linear: takes 3 operands but 4 were given"):
        ops.linear(x, x, x, x)  # type: ignore[call-arg]
    with building(graph), pytest.raises(OpError, match="concat: takes at least one operand"):
        ops.concat(axis=0)


def test_numbers_beside_a_value_take_its_dtype() -> None:
    graph = Graph("g")
    x = graph.input("x", tensor(i64, 2))
    graph.output("y", 3 - x * 2)
    assert interpret(graph, {"x": np.array([1, 5])})["y"].tolist() == [1, -7]
    assert (x * 0.5).dtype == f32
    with pytest.raises(OpError, match=r"value 300 cannot be written as i8"):
        graph.input("small", tensor(DType.i8, 2)) + 300


def test_lists_and_numpy_numbers_become_plain_attributes() -> None:
    graph = Graph("g")
    x = graph.input("x", tensor(f32, 2, 3))
    graph.output("y", ops.transpose(x, permutation=[1, 0]) * np.float64(2.0))  # type: ignore[arg-type]
    transpose, constant, _ = graph
    assert transpose.attributes["permutation"] == (1, 0)
    assert type(constant.attributes["value"]) is float
    assert print_graph(parse(print_graph(graph))) == print_graph(graph)


# -- what only the interpreter can see ---------------------------------------------------------------------------


def test_an_index_outside_the_table_is_reported() -> None:
    graph = next(c for c in CASES if str(c) == "embedding").graph()
    with pytest.raises(RuntimeInputError, match="gather: index 7 is out of bounds for axis 0 with size 7"):
        interpret(graph, {"ids": np.full((2, 3), 7), "table": np.zeros((7, 4), np.float32)})


def test_a_slice_that_leaves_its_operand_at_run_time_is_reported() -> None:
    graph = Graph("g")
    with building(graph):
        x, n = graph.input("x", tensor(f32, "S")), graph.input("n", tensor(f32, "N"))
        graph.output("y", ops.slice_(x, axis=0, start=1, length=n.shape[0]))
    assert interpret(graph, {"x": np.ones(4, np.float32), "n": np.ones(3, np.float32)})["y"].shape == (3,)
    with pytest.raises(RuntimeInputError, match=r"test_ops.py:\d+: slice gave f32\[3\], expected f32\[N\]"):
        interpret(graph, {"x": np.ones(4, np.float32), "n": np.ones(4, np.float32)})
