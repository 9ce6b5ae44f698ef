"""The language that models are written in: operators, `x[...]` and plain numbers mean what they mean in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import monograph as mg
import numpy as np
import onnx_ir
import onnxruntime as ort
import pytest
import torch
from monograph.backends.onnx import lower
from monograph.backends.torch import to_inputs, to_torch
from monograph.ir import DType, Graph, Value, building, interpret, ops, parse, print_graph, tensor, verify
from monograph.ir.errors import OpError
from monograph.ir.types import bool_, f16, f32, i32, i64
from monograph.ir.weights import Weights

Array = np.ndarray[Any, Any]
SIZES = {"B": 2, "S": 6}
TYPES = {
    "x": tensor(f32, "B", "S", 8),
    "y": tensor(f32, "S", 8),
    "n": tensor(i64, "B", "S"),
    "at": tensor(i64, 3),
    "p": tensor(bool_, "B", "S"),
    "q": tensor(bool_, "B", "S"),
}
INPUTS: dict[str, Array] = {
    "x": np.random.default_rng(0).uniform(0.5, 2.0, (2, 6, 8)).astype(np.float32)
    * np.where(np.arange(8) % 3, 1, -1).astype(np.float32),
    "y": np.random.default_rng(1).uniform(0.5, 2.0, (6, 8)).astype(np.float32),
    "n": np.arange(-5, 7, dtype=np.int64).reshape(2, 6),
    "at": np.array([2, 0, 1]),
    "p": np.arange(12).reshape(2, 6) % 3 == 0,
    "q": np.arange(12).reshape(2, 6) % 2 == 0,
}

OPERATORS: dict[str, Callable[..., Any]] = {
    "x + 1": lambda x, **_: x + 1,
    "2.5 - x": lambda x, **_: 2.5 - x,
    "x * numpy number": lambda x, **_: np.float32(3) * x,
    "x / y": lambda x, y, **_: x / y,
    "1 / x": lambda x, **_: 1 / x,
    "x // y": lambda x, y, **_: x // y,
    "x % y": lambda x, y, **_: x % y,
    "x % 0.75": lambda x, **_: x % 0.75,
    "7.5 // x": lambda x, **_: 7.5 // x,
    "7.5 % x": lambda x, **_: 7.5 % x,
    "x ** 2": lambda x, **_: x**2,
    "x ** 3": lambda x, **_: x**3,
    "x ** 0": lambda x, **_: x**0,
    "y ** 0.5": lambda y, **_: y**0.5,
    "y ** -1.5": lambda y, **_: y**-1.5,
    "2 ** x": lambda x, **_: 2**x,
    "y ** y": lambda y, **_: y**y,
    "-x": lambda x, **_: -x,
    "+x": lambda x, **_: +x,
    "abs": lambda x, **_: abs(x),
    "x @ y": lambda x, y, **_: x @ y.reshape(8, -1),
    "n + 3": lambda n, **_: n + 3,
    "n // 3": lambda n, **_: n // 3,
    "n % 3": lambda n, **_: n % 3,
    "n // -2": lambda n, **_: n // -2,
    "n % -4": lambda n, **_: n % -4,
    "17 % n of n > 0": lambda n, **_: 17 % (abs(n) + 1),
    "17 // n of n > 0": lambda n, **_: 17 // (abs(n) + 1),
    "n ** 3": lambda n, **_: n**3,
    "n ** 5": lambda n, **_: n**5,
    "n ** 1": lambda n, **_: n**1,
    "n ** 0": lambda n, **_: n**0,
    "abs n": lambda n, **_: abs(n),
    "x < y": lambda x, y, **_: x < y,
    "x <= 1": lambda x, **_: x <= 1,
    "x > y": lambda x, y, **_: x > y,
    "x >= 0.5": lambda x, **_: x >= 0.5,
    "0 < x": lambda x, **_: 0 < x,  # noqa: SIM300 - the reflected operator
    "numpy number < x": lambda x, **_: np.float32(1) < x,
    "n > 2": lambda n, **_: n > 2,
    "n >= 1.5": lambda n, **_: n >= 1.5,
    "p & q": lambda p, q, **_: p & q,
    "p | q": lambda p, q, **_: p | q,
    "p ^ q": lambda p, q, **_: p ^ q,
    "~p": lambda p, **_: ~p,
    "p & True": lambda p, **_: p & True,
    "False | p": lambda p, **_: False | p,
    "True ^ p": lambda p, **_: True ^ p,
    "p + 1": lambda p, **_: p + 1,
    "1 - p": lambda p, **_: 1 - p,
}

INDICES: dict[str, Callable[..., Any]] = {
    "first": lambda x, **_: x[0],
    "last": lambda x, **_: x[-1],
    "one of each axis": lambda x, **_: x[1, -1, 3],
    "last token": lambda x, **_: x[:, -1],
    "slice": lambda x, **_: x[:, :, 2:5],
    "slice from the end": lambda x, **_: x[..., -3:],
    "slice to the end": lambda x, **_: x[..., :-3],
    "all but the first token": lambda x, **_: x[:, 1:],
    "all but the last token": lambda x, **_: x[:, :-1],
    "the last two tokens": lambda x, **_: x[:, -2:],
    "the first two tokens": lambda x, **_: x[:, :2],
    "between": lambda x, **_: x[:, 1:-2, 3:-1],
    "beyond the end": lambda x, **_: x[..., 3:100],
    "beyond the start": lambda x, **_: x[..., -100:3],
    "none left": lambda x, **_: x[..., 5:2],
    "even": lambda x, **_: x[..., ::2],
    "odd": lambda x, **_: x[..., 1::2],
    "every third": lambda x, **_: x[..., ::3],
    "every third from 2": lambda x, **_: x[..., 2:8:3],
    "every fourth of some": lambda x, **_: x[..., 1:7:4],
    "reversed": lambda x, **_: x[..., ::-1],
    "reversed by two": lambda x, **_: x[..., ::-2],
    "reversed part": lambda x, **_: x[..., 6:1:-1],
    "reversed part by three": lambda x, **_: x[..., -2:-8:-3],
    "tokens reversed": lambda x, **_: x[:, ::-1],
    "tokens reversed but the last": lambda x, **_: x[:, -2::-1],
    "newaxis": lambda x, **_: x[:, None],
    "two newaxes": lambda x, **_: x[None, ..., None],
    "newaxis beside an integer": lambda x, **_: x[0, None, :, 2],
    "ellipsis alone": lambda x, **_: x[...],
    "nothing": lambda x, **_: x[()],
    "ellipsis for no axis": lambda x, **_: x[0, ..., 1, 2],
    "gather": lambda y, at, **_: y[at],
    "gather along the last axis": lambda x, at, **_: x[..., at],
    "gather beside slices": lambda x, at, **_: x[:, at, 2:4],
    "gather by a matrix": lambda y, at, **_: y[at.reshape(1, 3) + 1],
    "list": lambda x, **_: x[..., [0, 3, -1]],
    "array": lambda x, **_: x[..., np.array([[1, 2], [3, -8]])],
    "mask to attention's form": lambda p, **_: p[:, None, None, :],
    "all columns but one of a bool": lambda p, **_: p[:, 1:],
    "shift by one token": lambda n, **_: n[:, 1:] - n[:, :-1],
    "rotate half": lambda x, **_: x[..., 4:] * x[..., :4],
    "no axis left": lambda y, **_: y[2, 3],
}

FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "maximum": (lambda x, **_: ops.maximum(x, 0.25), lambda x, **_: np.maximum(x, np.float32(0.25))),
    "minimum on the left": (lambda x, **_: ops.minimum(1, x), lambda x, **_: np.minimum(np.float32(1), x)),
    "maximum of integers": (lambda n, **_: ops.maximum(n, 2), lambda n, **_: np.maximum(n, 2)),
    "where of a number": (
        lambda x, p, **_: ops.where(p[..., None], x, -1e9),
        lambda x, p, **_: np.where(p[..., None], x, np.float32(-1e9)),
    ),
    "where of two numbers": (
        lambda p, **_: ops.where(p, 0.0, -1.5),
        lambda p, **_: np.where(p, np.float32(0), np.float32(-1.5)),
    ),
    "where of bools": (lambda p, q, **_: ops.where(p, q, ~q), lambda p, q, **_: np.where(p, q, ~q)),
    "the largest integer // -2": (
        lambda at, **_: (at.cast(i32) + (2**31 - 3)) // -2,
        lambda **_: np.array([-(2**30), -(2**30) + 1, -(2**30) + 1], np.int32),
    ),
    "floats // 0": (lambda x, **_: x // 0, lambda x, **_: np.sign(x) * np.float32(np.inf)),
    "floats // infinity": (lambda x, **_: x // np.inf, lambda x, **_: np.where(x < 0, -1, 0).astype(np.float32)),
    "where of two integers": (lambda p, **_: ops.where(p, 3, -1), lambda p, **_: np.where(p, 3, -1)),
    "pow": (lambda x, **_: ops.pow(x, 2.0), lambda x, **_: x * x),
    "sub from a number": (lambda x, **_: ops.sub(1.0, x), lambda x, **_: 1 - x),
    "equal": (lambda n, **_: ops.equal(n, 2), lambda n, **_: n == 2),
    "eq": (lambda n, **_: n.eq(2), lambda n, **_: n == 2),
    "ne": (lambda n, **_: n.ne(n + 0), lambda n, **_: n != n),
    "ne of bools": (lambda p, q, **_: p.ne(q), lambda p, q, **_: p != q),
    "integers times a float": (lambda n, **_: n * 0.5, lambda n, **_: (n * 0.5).astype(np.float32)),
    "integers compared with a float": (lambda n, **_: ops.less(n, 0.5), lambda n, **_: n < 0.5),
    "integers divided": (lambda n, **_: n / 4, lambda n, **_: (n / 4).astype(np.float32)),
    "integers divided by integers": (
        lambda n, at, **_: n[:, :3] / (at + 1),
        lambda n, at, **_: (n[:, :3] / (at + 1)).astype(np.float32),
    ),
    "a number divided by integers": (lambda at, **_: 3 / (at + 1), lambda at, **_: (3 / (at + 1)).astype(np.float32)),
    "a float to the power of integers": (lambda at, **_: 2.0**at, lambda at, **_: (2.0**at).astype(np.float32)),
    "integers to a float power": (lambda at, **_: at**0.5, lambda at, **_: (at**0.5).astype(np.float32)),
    "bools times a float": (lambda p, **_: p * 2.5, lambda p, **_: (p * 2.5).astype(np.float32)),
    "a dimension": (lambda x, **_: x / x.shape[1], lambda x, **_: x / 6),
    "a dimension among integers": (lambda n, **_: n + n.shape[1] * n.shape[0], lambda n, **_: n + 12),
    "rows": (
        lambda y, at, **_: sum(row * i for i, row in enumerate(y[at])),
        lambda y, at, **_: y[at[1]] + 2 * y[at[2]],
    ),
    "best three": (lambda x, **_: ops.topk(x, k=3)[0], lambda x, **_: np.sort(x, -1)[..., ::-1][..., :3]),
    "places of the best three": (
        lambda x, **_: ops.topk(x, k=3)[1],
        lambda x, **_: np.argsort(-x, -1, kind="stable")[..., :3],
    ),
    "argmax keeps its axis": (lambda x, **_: ops.argmax(x), lambda x, **_: x.argmax(-1, keepdims=True)),
}
"""What a graph computes, and the same in NumPy."""

CASES = {name: (make, make) for name, make in (OPERATORS | INDICES).items()} | FUNCTIONS


def built(make: Callable[..., Any], symbolic: bool) -> Graph:
    graph = Graph("g")
    types = TYPES if symbolic else {k: t.substitute(SIZES) for k, t in TYPES.items()}
    values = {k: graph.input(k, t) for k, t in types.items()}
    with building(graph):
        graph.output("out", make(**values))
    return verify(graph)


def onnxruntime(graph: Graph) -> Array:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    model = onnx_ir.to_proto(lower(graph, Weights.of({}))).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    used = {i.name for i in session.get_inputs()}
    return session.run(None, {k: v for k, v in INPUTS.items() if k in used})[0]


@pytest.mark.parametrize("symbolic", [False, True], ids=["numbers", "symbols"])
@pytest.mark.parametrize("name", CASES)
def test_as_numpy(name: str, symbolic: bool) -> None:
    make, numpy = CASES[name]
    graph, want = built(make, symbolic), np.asarray(numpy(**INPUTS))
    have = interpret(graph, INPUTS)["out"]
    assert have.shape == want.shape
    assert DType.of(have.dtype) == graph.outputs["out"].dtype
    assert (have.dtype.kind, have.dtype.itemsize) == (want.dtype.kind, want.dtype.itemsize)
    np.testing.assert_allclose(have, want, rtol=2e-6, atol=2e-6)
    assert print_graph(parse(print_graph(graph))) == print_graph(graph)


@pytest.mark.slow
@pytest.mark.parametrize("symbolic", [False, True], ids=["numbers", "symbols"])
@pytest.mark.parametrize("name", CASES)
def test_on_every_backend(name: str, symbolic: bool) -> None:
    make, numpy = CASES[name]
    graph, want = built(make, symbolic), np.asarray(numpy(**INPUTS))
    for have in (to_torch(graph)(**to_inputs(INPUTS))["out"].numpy(), onnxruntime(graph)):
        assert (have.shape, have.dtype) == (want.shape, want.dtype)
        np.testing.assert_allclose(have, want, rtol=2e-6, atol=2e-6)


def test_numbers_take_the_dtype_beside_them() -> None:
    graph = Graph("g")
    x = graph.input("x", tensor(f16, 2))
    assert (x * 2).dtype == (x / 3).dtype == ops.maximum(0.1, x).dtype == (np.float64(2) * x).dtype == f16
    small = graph.input("small", tensor(i32, 2))
    assert (small + 1).dtype == (small // 2).dtype == i32
    assert (small + 0.5).dtype == (small / 2).dtype == f32
    assert (x + True).dtype == f16


def test_equality_tells_values_apart() -> None:
    graph = Graph("g")
    x, y = graph.input("x", tensor(f32, 2)), graph.input("y", tensor(f32, 2))
    assert x == x and x != y
    assert {x: 1, y: 2}[y] == 2
    assert x in [y, x]
    assert [x, y].index(y) == 1


def test_iteration_goes_over_the_first_axis_and_ends() -> None:
    graph = Graph("g")
    x = graph.input("x", tensor(f32, 3, 2))
    assert len(x) == 3
    first, *others = x
    assert first.shape == (2,) and len(others) == 2
    for value in (graph.input("s", tensor(f32, "S", 2)), graph.input("scalar", tensor(f32))):
        with pytest.raises(
            OpError, match=r"test_language.py:\d+: f32.* has no len.*: (its first axis is S|it is a scalar)"
        ):
            list(value)
        with pytest.raises(OpError, match="has the sizes of all axes"):
            len(value)


MISTAKES: dict[str, tuple[Callable[..., Any], str]] = {
    "if": (lambda x, **_: 1 if x > 0 else 2, "has no truth before it runs"),
    "and": (lambda p, q, **_: p and q, "use ops.where"),
    "not": (lambda p, **_: not p, "has no truth"),
    "chained": (lambda x, **_: 0 < x < 1, "has no truth"),
    "in": (lambda x, **_: 3.0 in x, "has no numbers to look into"),
    "array": (lambda x, **_: np.asarray(x), "has no numbers before it runs"),
    "numpy function": (lambda x, **_: np.exp(x), "numpy's exp was called .*use ops.exp"),
    "numpy function of two": (lambda x, y, **_: np.maximum(x, y), "use ops.maximum"),
    "numpy function of lists": (lambda x, y, **_: np.concatenate([y, y]), "use ops.concat"),
    "numpy reduction": (lambda x, **_: np.mean(x), "use ops.mean"),
    "numpy reduction by a ufunc": (lambda x, **_: np.add.reduce(x), "use ops.add"),
    "numpy equality": (lambda x, **_: np.equal(x, 2), "use x.eq"),
    "torch function": (lambda x, **_: torch.relu(x), "torch's relu was called .*use ops.relu"),
    "torch softmax": (lambda x, **_: torch.nn.functional.softmax(x, dim=-1), "use ops.softmax"),
    "torch cat": (lambda y, **_: torch.cat([y, y]), "use ops.concat"),
    "torch module": (lambda x, **_: torch.nn.Linear(8, 2)(x), "torch's linear was called .*use ops.linear"),
    "torch tensor beside it": (lambda x, **_: torch.ones(8) * x, "mul: a Tensor is not a value"),
    "tensor on the right": (lambda x, **_: x * torch.ones(8), "mul: a Tensor is not a value"),
    "two dtypes": (lambda x, n, **_: x[..., 0] * n, "x is f32 but y is i64: cast one of them"),
    "bool arithmetic": (lambda p, q, **_: p + q, "x is bool, expected numbers"),
    "& of numbers": (lambda n, **_: n & n, "x is i64, expected bool"),
    "~ of numbers": (lambda n, **_: ~n, "x is i64, expected bool"),
    "negative power of integers": (lambda n, **_: n**-1, "i64.* to the power of -1"),
    "integers to the power of integers": (lambda n, **_: 2**n, "expected a floating-point type"),
    "an array": (lambda x, **_: x + np.ones(8), "a ndarray is not a value of a graph.*ops.constant"),
    "an array on the left": (lambda x, **_: np.ones(8) * x, "a ndarray is not a value of a graph"),
    "text": (lambda x, **_: x + "a", "'a' is not a value"),
    "none": (lambda x, **_: x * None, "operand 'y' is missing"),
    "index outside": (lambda x, **_: x[..., 8], "index 8 is outside the 8 elements of axis 2"),
    "negative index outside": (lambda x, **_: x[..., -9], "index -9 is outside the 8 elements"),
    "list outside": (lambda x, **_: x[..., [1, 9]], "index 9 is outside the 8 elements"),
    "too many": (lambda x, **_: x[0, 0, 0, 0], "4 indices for the 3 axes"),
    "two ellipses": (lambda x, **_: x[..., ...], "stands twice"),
    "bool index": (lambda x, p, **_: x[p], "a bool index gives a shape that depends on the numbers"),
    "truth as index": (lambda x, **_: x[True], "a bool index"),
    "list of truths": (lambda x, **_: x[:, :, [True] * 8], "a bool index"),
    "float index": (lambda x, **_: x[1.0], "1.0 is no index"),
    "float list": (lambda x, **_: x[..., [1.0]], "an array of float64"),
    "float values": (lambda x, y, **_: x[..., y], "indices is f32, expected i64 or i32"),
    "text index": (lambda x, **_: x["a"], "'a' is no index"),
    "step of 0": (lambda x, **_: x[..., ::0], "expected an integer other than 0"),
    "step of half": (lambda x, **_: x[..., ::0.5], "expected an integer other than 0"),
    "bound of half": (lambda x, **_: x[..., :0.5], "a bound of axis 2 is 0.5"),
    "bound of a value": (lambda x, at, **_: x[..., : at[0]], "a bound of axis 2 is a Value"),
    "two arrays": (lambda x, at, **_: x[:, at, at], "integers along two axes at once"),
    "apart": (lambda x, at, **_: x[0, :, at], "index one axis, and then the other"),
    "every second token": (lambda x, **_: x[:, ::2], "a step of 2 over S elements"),
    "attribute of PyTorch": (
        lambda x, **_: ops.softmax(x, dim=-1),
        "softmax: has no attribute 'dim', did you mean 'axis'",
    ),
    "names of attributes": (lambda x, **_: ops.softmax(x, foo=1), "operands: x; attributes: axis"),
    "attribute by place": (lambda x, **_: ops.softmax(x, -1), "takes 1 operand but 2 were given.*\n.*by name"),
    "operand of PyTorch": (lambda x, y, **_: ops.linear(x, weight=y), "did you mean 'w'"),
    "operand twice": (lambda x, y, **_: ops.linear(x, y, x=x), "operand 'x' is given twice"),
    "operand missing": (lambda x, **_: ops.linear(x), "operand 'w' is missing"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named_with_their_line(name: str) -> None:
    make, message = MISTAKES[name]
    with pytest.raises(OpError, match=f"(?s)^test_language.py:{make.__code__.co_firstlineno}: .*{message}"):
        built(make, symbolic=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("softmax", "use ops.softmax"),
        ("view", "use x.reshape"),
        ("permute", "use x.transpose"),
        ("unsqueeze", r"use x\[:, None\]"),
        ("shap", "did you mean 'shape'"),
        ("split_head", "did you mean 'split_heads'"),
        ("__rich_repr__", "no attribute"),
    ],
)
def test_unknown_methods_say_what_is_meant(name: str, message: str) -> None:
    with pytest.raises(AttributeError, match=message):
        getattr(Graph("g").input("x", tensor(f32, 2)), name)


def test_unknown_ops_say_what_is_meant() -> None:
    with pytest.raises(AttributeError, match="no op is called 'sofmax', did you mean 'softmax'"):
        ops.sofmax  # type: ignore[attr-defined]  # noqa: B018
    assert "softmax" in dir(ops) and "elementwise" not in dir(ops) and "annotations" not in dir(ops)


def test_a_model_may_have_nothing_to_set() -> None:
    """The base itself as the type of the config, which is natural for a function without sizes."""

    @mg.model(task="feature-extraction")
    def bare(m: mg.Scope, c: mg.Config, input_ids: Value) -> Value:
        return m.embed("embed", input_ids, 16, 8)

    assert bare().config == mg.Config()
    assert bare().graph().params["embed.weight"].shape == (16, 8)


class Tiny(mg.Config):
    dim: int = 8


@mg.model
def net(m: mg.Scope, c: Tiny, input_ids: Value, position_ids: Value) -> Value:
    x = m.embed("embed", input_ids, 16, c.dim)
    rates = ops.constant(value=10000.0 ** (np.arange(c.dim // 2) * (-2.0 / c.dim)), dtype=f32)
    angle = position_ids[..., None].cast(f32) * rates
    even, odd = x[..., ::2], x[..., 1::2]
    turned = ops.concat(
        (even * ops.cos(angle) - odd * ops.sin(angle))[..., None],
        (even * ops.sin(angle) + odd * ops.cos(angle))[..., None],
        axis=-1,
    )
    return m.linear("head", turned.merge_heads() * (x >= 0).cast(f32) + ops.maximum(x, 0), 16)


@pytest.mark.slow
def test_a_model_writes_its_parts_by_index() -> None:
    """Rotary positions of a GPT-J block written out by hand, in a model that trains: slices reach the gradient."""

    graph = net().graph()
    module = to_torch(graph)
    ids, positions = np.array([[3, 1, 4]]), np.array([[0, 1, 2]])
    out = module(**to_inputs({"input_ids": ids, "position_ids": positions}))["logits"]
    table = module.get_parameter("embed.weight")
    x = table[torch.tensor(ids)]
    turn = torch.polar(torch.ones(3, 4), torch.outer(torch.arange(3.0), 10000.0 ** (torch.arange(4) * -0.25)))
    turned = torch.view_as_real(torch.view_as_complex(x.reshape(1, 3, 4, 2)) * turn).reshape(1, 3, 8)
    want = (turned * (x >= 0) + x.clamp(min=0)) @ module.get_parameter("head.weight").T
    torch.testing.assert_close(out, want)
    (mine,) = torch.autograd.grad(out.square().sum(), table)
    (theirs,) = torch.autograd.grad(want.square().sum(), table)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda x: x.split_heads(3), r":\d+: 64 channels do not split into 3 heads\n  f32\[B,S,64\] from neg at"),
        (lambda x: x.split_heads(0), "64 channels do not split into 0 heads"),
        (lambda x: x[0].split_heads(4), r"split_heads takes \[B, S, heads\*D\], not f32\[S,64\]"),
        (
            lambda x: x.reshape(*x.shape[:2], 3, -1),
            r"64 is not a multiple of 3\n  x: f32\[B,S,64\] from neg at",
        ),
        (lambda x: x.reshape(x.shape[0], -1, 48), r"reshape: 64\*S is not a multiple of 48"),
    ],
)
def test_what_does_not_divide_is_said_without_what_cancels(use: Any, said: str) -> None:
    graph = Graph("g")
    x = -graph.input("x", tensor(f32, "B", "S", 64))
    with pytest.raises(OpError, match=said):
        use(x)
