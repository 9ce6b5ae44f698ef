"""Dimensions, element types, tensor types: arithmetic in normal form, exact division, text, broadcasting."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from monograph.ir.dims import bind_dims, sources
from monograph.ir.errors import MonographError, RuntimeInputError
from monograph.ir.interpret import resolve
from monograph.ir.types import (
    Dim,
    DimLike,
    DType,
    TensorType,
    broadcast,
    exact_div,
    f32,
    i64,
    parse_dim,
    parse_type,
    product,
    tensor,
)

B, S, P = (Dim.symbol(n) for n in "BSP")
NAMES = ("B", "S", "P")

symbols = st.sampled_from([B, S, P])
numbers = st.integers(-5, 5)
dims = st.recursive(
    symbols | numbers, lambda d: st.builds(lambda a, b: a + b, d, d) | st.builds(lambda a, b: a * b, d, d), max_leaves=6
)
values = st.fixed_dictionaries({n: st.integers(1, 7) for n in NAMES})


def at(d: DimLike, numbers: dict[str, int]) -> int:
    value = d.substitute(numbers) if isinstance(d, Dim) else d
    assert isinstance(value, int)
    return value


@given(dims, dims, values)
def test_arithmetic_commutes_with_substitution(a: DimLike, b: DimLike, n: dict[str, int]) -> None:
    assert at(a + b, n) == at(a, n) + at(b, n)
    assert at(a - b, n) == at(a, n) - at(b, n)
    assert at(a * b, n) == at(a, n) * at(b, n)
    assert at(-a, n) == -at(a, n)


@given(dims, dims)
def test_equal_polynomials_are_equal_and_hash_alike(a: DimLike, b: DimLike) -> None:
    assert a + b == b + a
    assert hash(a * b) == hash(b * a)
    assert (a + b) * (a - b) == a * a - b * b
    assert a - a == 0


@given(dims, dims)
def test_division_inverts_multiplication(a: DimLike, b: DimLike) -> None:
    if b != 0:
        assert exact_div(a * b, b) == a


@given(dims, dims, values)
def test_division_is_right_or_refused(a: DimLike, b: DimLike, n: dict[str, int]) -> None:
    try:
        q = exact_div(a, b)
    except MonographError as e:
        assert str(e) == f"{a} is not a multiple of {b}"
        return
    if at(b, n) != 0:
        assert at(q, n) == Fraction(at(a, n), at(b, n))


@given(dims)
def test_text_of_a_dimension_reads_back(d: DimLike) -> None:
    assert parse_dim(str(d)) == d


@given(dims, symbols, dims, values)
def test_substituting_expressions(d: DimLike, s: Dim, by: DimLike, n: dict[str, int]) -> None:
    assert s.name is not None
    replaced = d.substitute({s.name: by}) if isinstance(d, Dim) else d
    assert at(replaced, n) == at(d, {**n, s.name: at(by, n)})


@pytest.mark.parametrize(
    ("d", "text"),
    [
        (S + P, "P+S"),
        (P + S, "P+S"),
        (2 * S, "2*S"),
        (S * B + 1, "B*S+1"),
        (S - 1, "S-1"),
        (5 - S, "5-S"),
        (-S, "-S"),
        (S * S, "S*S"),
        (3 * B * S - 2 * P, "3*B*S-2*P"),
    ],
)
def test_normal_form(d: DimLike, text: str) -> None:
    assert str(d) == text


def test_a_constant_is_an_int() -> None:
    assert type(S - S + 4) is int
    assert type(S * 0) is int
    assert exact_div(6 * S, 3 * S) == 2
    assert exact_div(0, S) == 0


def test_division_of_sums() -> None:
    assert exact_div(64 * B * P + 64 * B * S, B * (P + S)) == 64
    assert exact_div(P * P - S * S, P + S) == P - S
    for a, b in ((7, 2), (7, 0), (S, 0), (S, P), (5 * S, 2), (S + 1, S), (4, S)):
        with pytest.raises(MonographError, match="is not a multiple of"):
            exact_div(a, b)


def test_names() -> None:
    assert (S.name, (S + P).name, (2 * S).name, (S * S).name) == ("S", None, None, None)
    assert (S * P + B).symbols == {"B", "P", "S"}


@pytest.mark.parametrize("name", ["", "2S", "S+P", "f32", "bool", "none", "True", "inf", "nan", "a b"])
def test_names_that_would_read_as_something_else(name: str) -> None:
    with pytest.raises(MonographError, match="is not a name for a dimension"):
        Dim.symbol(name)


@pytest.mark.parametrize("text", ["", "S+", "+", "2S", "S**P", "S/2", "1.5", "S S", "*S"])
def test_text_that_is_no_dimension(text: str) -> None:
    with pytest.raises(MonographError):
        parse_dim(text)


# -- types -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["f32[B,S,64]", "i64[]", "bool[P+S]", "bf16[2*S,1]", "i4[16]", "f32[0]"])
def test_types_read_back(text: str) -> None:
    assert str(parse_type(text)) == text


@pytest.mark.parametrize("text", ["f32", "f33[2]", "f32[2", "f32[,2]", "f32[2]x", "float32[2]"])
def test_text_that_is_no_type(text: str) -> None:
    with pytest.raises(MonographError):
        parse_type(text)


def test_sizes() -> None:
    t = tensor(f32, "B", "P+S", 4)
    assert t.rank == 3
    assert t.elements == 4 * B * P + 4 * B * S
    assert t.bytes == 16 * B * P + 16 * B * S
    assert t.substitute({"B": 2, "P": S}) == tensor(f32, 2, "2*S", 4)
    assert t.symbols == {"B", "P", "S"}
    assert [tensor(DType.i4, n).bytes for n in (0, 1, 2, 5)] == [0, 1, 1, 3]
    assert tensor(DType.u4, "B", 3).bytes == 2 * B


def test_dtypes_and_numpy() -> None:
    for d in DType:
        assert DType.of(d.numpy) == d
        assert str(d) == d.value
    with pytest.raises(MonographError, match="complex64 has no counterpart"):
        DType.of(np.complex64)
    assert [d.value for d in DType if d.is_float] == ["f64", "f32", "f16", "bf16"]
    assert [d.bits for d in (DType.f64, DType.bf16, DType.bool_, DType.i4)] == [64, 16, 8, 4]
    for d in DType:
        if d.is_float:
            assert d.lowest == float(ml_dtypes.finfo(d.numpy).min)


@given(st.lists(st.lists(st.sampled_from([1, 2, 3]), max_size=3).map(tuple), min_size=1, max_size=3))
def test_broadcasting_is_that_of_numpy(shapes: list[tuple[int, ...]]) -> None:
    try:
        expected = np.broadcast_shapes(*shapes)
    except ValueError:
        expected = None
    assert broadcast(*shapes) == expected


def test_broadcasting_of_symbols() -> None:
    assert broadcast((B, 1, S), (4, 1)) == (B, 4, S)
    assert broadcast((B,), (S,)) is None
    assert broadcast((S + P,), (P + S,)) == (S + P,)
    assert product([]) == 1


# -- symbols bound by input shapes -------------------------------------------------------------------------------


def test_binding() -> None:
    types = {"mask": tensor(i64, "B", "P+S"), "ids": tensor(i64, "B", "S"), "past": tensor(f32, "B", "P")}
    assert bind_dims(types, {"mask": (2, 7), "ids": (2, 3), "past": (2, 4)}) == {"B": 2, "S": 3, "P": 4}
    del types["past"]
    assert bind_dims(types, {"mask": (2, 7), "ids": (2, 3)})["P"] == 4
    assert bind_dims({"x": tensor(f32, "2*S")}, {"x": (6,)}) == {"S": 3}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"x": "i64[P+S]", "y": "i64[2*S+4]"}, {"P": 5, "S": 3}),
        ({"x": "i64[B*S]", "y": "i64[B]"}, {"B": 2, "S": 3}),
        ({"x": "i64[B*S]", "y": "i64[B]", "z": "i64[S]"}, {"B": 2, "S": 3}),
        ({"x": "i64[8-S]"}, {"S": 3}),
        ({"x": "i64[B*S+P]", "y": "i64[B]", "z": "i64[4*P]"}, {"B": 2, "S": 3, "P": 5}),
    ],
)
def test_symbols_are_solved_in_any_order(given: dict[str, str], expected: dict[str, int]) -> None:
    for order in (list(given), list(given)[::-1]):
        types = {k: parse_type(given[k]) for k in order}
        shapes = {k: tuple(at(d, expected) for d in t.shape) for k, t in types.items()}
        assert bind_dims(types, shapes) == expected


def test_nothing_follows_from_an_empty_factor() -> None:
    types = {"x": parse_type("i64[B*S]"), "y": parse_type("i64[B]")}
    assert bind_dims(types, {"x": (0,), "y": (0,)}) == {"B": 0}
    types["z"] = parse_type("i64[S+1]")
    assert sources(types)["S"].input == "z"
    assert bind_dims(types, {"x": (0,), "y": (0,), "z": (4,)}) == {"B": 0, "S": 3}


@pytest.mark.parametrize(
    ("type", "shape", "message"),
    [
        ("i64[B,S]", (2,), r"x has shape \[2\], expected i64\[B,S\]"),
        ("i64[B,4]", (2, 3), "axis 1 of x is 3, expected 4"),
        ("i64[B,B]", (2, 3), "axis 1 of x is 3, expected B = 2"),
        ("i64[B,B+1]", (2, 4), r"axis 1 of x is 4, expected B\+1 = 3"),
        ("i64[2*S]", (5,), r"dimension 2\*S cannot be 5 for any S"),
        ("i64[S+4]", (3,), r"dimension S\+4 cannot be 3 for any S"),
        ("i64[S*S]", (9,), r"dimension S\*S = 9 does not determine S"),
        ("i64[P+S]", (3,), r"dimension P\+S = 3 does not determine P, S"),
    ],
)
def test_shapes_that_contradict(type: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(RuntimeInputError, match=message):
        bind_dims({"x": parse_type(type)}, {"x": shape})


def test_resolving_attributes() -> None:
    assert resolve((P + S, 2, (S,), "x", None), {"P": 4, "S": 3}) == (7, 2, (3,), "x", None)
    with pytest.raises(MonographError, match=r"dimension P is not determined by the inputs \(known: B, S\)"):
        resolve(P, {"S": 3, "B": 1})


def test_a_tensor_type_is_its_dtype_and_shape() -> None:
    assert TensorType(f32, (B, 2)) == tensor(f32, "B", 2) != tensor(i64, "B", 2)
    assert len({tensor(f32, "P+S"), tensor(f32, "S+P")}) == 1
