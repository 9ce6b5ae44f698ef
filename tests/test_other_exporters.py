"""Forms that tf2onnx, Keras, JAX, Paddle and onnxruntime-genai write: raised, and equal to the file in ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from monograph.frontends.onnx.file import checked
from monograph.frontends.onnx.load import read_graph
from monograph.ir import Graph, interpret
from monograph.passes.raising import raise_graph

Array = np.ndarray[Any, Any]
HEAD = 'ir_version: 9, opset_import: ["": 17, "com.microsoft": 1]'
KEYS = """<int64[3] turn = {0, 2, 1}, int64[1] one = {1}, int64[1] two = {2}, float never = {-1e9}, float unit = {1.0},
 float scale = {0.35}, float tenth = {1e-9}, float huge = {1e4}>"""


def raised(text: str, feeds: dict[str, Array], **weights: Array) -> tuple[Graph, Counter[str]]:
    """The raised graph of a model in ONNX's text form, and its ops; it gives what ONNX Runtime gives."""
    model = onnx.parser.parse_model(f"<{HEAD}>\n{text}")
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in weights.items())
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, feeds)
    graph, stored, left = read_graph(checked(model, Path("model.onnx")))
    assert not left, left
    raise_graph(graph, lambda name: stored[name].numpy())
    found = interpret(graph, feeds, {k: stored[k].numpy() for k in graph.params})
    for y, wanted in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(y, wanted, atol=2e-5)
    return graph, Counter(n.op.name for n in graph)


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def qkv(batch: int = 3, rows: int = 5, keys: int = 7) -> dict[str, Array]:
    mask = np.ones((batch, keys), np.int32)
    mask[1, 4:], mask[2, :2], mask[0, 3] = 0, 0, 0
    q, k, v = normal(batch, 2, rows, 8), normal(batch, 2, keys, 8), normal(batch, 2, keys, 6)
    return {"q": q, "k": k, "v": v, "mask": mask}


INPUTS = "float[b, 2, s, 8] q, float[b, 2, t, 8] k, float[b, 2, t, 6] v, int32[b, t] mask"
COLUMN = """held = Cast <to = 1> (mask)
    off = Sub(unit, held)
    flat = Mul(off, never)
    sides = Constant <value_ints = [1, 3]> ()
    added = Unsqueeze(flat, sides)"""


@pytest.mark.parametrize(("axis", "attention"), [(2, 1), (3, 0)], ids=["keys", "queries"])
def test_softmax_runs_over_the_keys_wherever_they_are(axis: int, attention: int) -> None:
    """Keras: scores [B,H,T,S] with keys before queries, a mask [B,1,T,1], softmax over axis 2."""
    text = f"""g ({INPUTS}) => (float[b, 2, 6, s] y) {KEYS} {{
    {COLUMN}
    turned = Transpose <perm = [0, 1, 3, 2]> (q)
    scaled = Mul(turned, scale)
    scores = MatMul(k, scaled)
    masked = Add(scores, added)
    p = Softmax <axis = {axis}> (masked)
    values = Transpose <perm = [0, 1, 3, 2]> (v)
    y = MatMul(values, p)
}}"""
    _, ops = raised(text, qkv())
    assert (ops["attention"], ops["softmax"]) == (attention, 1 - attention)


def test_scores_may_have_any_order_of_axes() -> None:
    """T5 by tf2onnx: scores as [S,T,B,H], with a bias and a number that all of a row are shifted by."""
    text = f"""g ({INPUTS}, float[s, t, 1, 2] bias) => (float[b, 2, s, 6] y) {KEYS} {{
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    scores = MatMul(q, kt)
    turned = Transpose <perm = [2, 3, 0, 1]> (scores)
    shifted = Add(turned, tenth)
    biased = Add(shifted, bias)
    p = Softmax <axis = 1> (biased)
    back = Transpose <perm = [2, 3, 0, 1]> (p)
    y = MatMul(back, v)
}}"""
    graph, ops = raised(text, {**qkv(), "bias": normal(5, 7, 1, 2)})
    assert (ops["attention"], ops["softmax"]) == (1, 0)
    (node,) = [n for n in graph if n.op.name == "attention"]
    assert node["bias"] is not None


@pytest.mark.parametrize("same", [True, False], ids=["mask", "other"])
def test_scores_blended_with_a_mask(same: bool) -> None:
    """GPT-2 of TensorFlow: w * b - 1e4 * (1 - b). Where another mask is taken off, scores of 0 count."""
    text = f"""g ({INPUTS}, int32[b, t] second) => (float[b, 2, s, 6] y) {KEYS} {{
    held = Cast <to = 1> (mask)
    other = Cast <to = 1> (second)
    sides = Constant <value_ints = [1, 2]> ()
    b4 = Unsqueeze(held, sides)
    c4 = Unsqueeze({"held" if same else "other"}, sides)
    off = Sub(unit, c4)
    gone = Mul(off, huge)
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    scores = MatMul(q, kt)
    dimmed = Mul(scores, b4)
    masked = Sub(dimmed, gone)
    p = Softmax <axis = -1> (masked)
    y = MatMul(p, v)
}}"""
    feeds = qkv()
    _, ops = raised(text, {**feeds, "second": 1 - feeds["mask"]})
    assert (ops["attention"], ops["softmax"]) == ((1, 0) if same else (0, 1))


def test_scores_that_are_0_without_a_mask_count() -> None:
    text = f"""g ({INPUTS}) => (float[b, 2, s, 6] y) {KEYS} {{
    held = Cast <to = 1> (mask)
    sides = Constant <value_ints = [1, 2]> ()
    b4 = Unsqueeze(held, sides)
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    scores = MatMul(q, kt)
    dimmed = Mul(scores, b4)
    p = Softmax <axis = -1> (dimmed)
    y = MatMul(p, v)
}}"""
    _, ops = raised(text, qkv())
    assert (ops["attention"], ops["softmax"]) == (0, 1)


@pytest.mark.parametrize(("axis", "attention"), [(-1, 1), (-2, 0)], ids=["keys", "queries"])
def test_softmax_in_parts(axis: int, attention: int) -> None:
    """JAX: exponentials of what is left of the largest, over their sum; operands of a choice are spread by zeros."""
    text = f"""g ({INPUTS}) => (float[b, 2, s, 6] y) {KEYS}  {{
    sides = Constant <value_ints = [1, 2]> ()
    axis = Constant <value_ints = [{axis}]> ()
    front = Constant <value_ints = [0]> ()
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    plain = MatMul(q, kt)
    size = Shape(plain)
    none = ConstantOfShape(size)
    kept = Cast <to = 9> (mask)
    kept4 = Unsqueeze(kept, sides)
    fill = Add(never, none)
    scores = Where(kept4, plain, fill)
    most = ReduceMax <axes = [{axis}], keepdims = 1> (scores)
    left = Sub(scores, most)
    lone = Exp(left)
    five = Unsqueeze(lone, front)
    total = ReduceSum(five, axis)
    many = Div(five, total)
    p = Squeeze(many, front)
    y = MatMul(p, v)
}}"""
    _, ops = raised(text, qkv())
    assert (ops["attention"], ops["exp"]) == (attention, 0)
    assert ops["softmax"] == 1 - attention


ROWS = """shape = Constant <value_ints = [1, -1, 32, 1]> ()
    rows = Reshape(x, shape)
    axes = Constant <value_ints = [0, 2, 3]> ()
    mean = ReduceMean <axes = [0, 2, 3], keepdims = 1> (rows)
    gap = Sub(rows, mean)
    squares = ReduceSumSquare <axes = [0, 2, 3], keepdims = 0> (gap)
    variance = Div(squares, width)
    flat = Squeeze(mean, axes)
    count = Shape(flat)
    ones = Expand(unit, count)
    zeros = ConstantOfShape(count)
    normed = BatchNormalization <epsilon = 1e-3> (rows, ones, zeros, flat, variance)
    size = Shape(x)
    back = Reshape(normed, size)
    weighted = Mul(back, w)
    y = Add(weighted, c)"""
GAIN = """mean = ReduceMean <axes = [-1], keepdims = 1> (x)
    gap = Sub(x, mean)
    square = Mul(gap, gap)
    variance = ReduceMean <axes = [-1], keepdims = 1> (square)
    safe = Add(variance, eps)
    root = Sqrt(safe)
    inverse = Reciprocal(root)
    gain = Mul(inverse, w)
    first = Mul(x, gain)"""
KERAS = f"""{GAIN}
    below = Neg(mean)
    second = Mul(below, gain)
    offset = Add(second, c)
    y = Add(first, offset)"""
CENTRED = f"""{GAIN}
    second = Mul(mean, gain)
    below = Neg(second)
    y = Add(first, below)"""
FAST = """mean = ReduceMean <axes = [-1], keepdims = 1> (x)
    gap = Sub(x, mean)
    square = Mul(x, x)
    second = ReduceMean <axes = [-1], keepdims = 1> (square)
    first = Mul(mean, mean)
    moment = Sub(second, first)
    variance = Max(moment, zero)
    safe = Add(variance, eps)
    root = Sqrt(safe)
    normed = Div(gap, root)
    weighted = Mul(normed, w)
    y = Add(weighted, c)"""
WRONG = f"""{GAIN}
    second = Mul(mean, gain)
    offset = Add(second, c)
    y = Add(first, offset)"""


@pytest.mark.parametrize(
    ("body", "norms"),
    [(ROWS, 1), (KERAS, 1), (CENTRED, 1), (FAST, 1), (WRONG, 0)],
    ids=["rows", "keras", "no bias", "flax", "plus mean"],
)
def test_layer_norms(body: str, norms: int) -> None:
    """Rows as channels of a batch norm; the mean taken off as its negative times the gain, with and without a bias."""
    text = f"""g (float[b, s, 32] x) => (float[b, s, 32] y)
<float unit = {{1.0}}, float zero = {{0.0}}, float width = {{32.0}}, float eps = {{1e-3}}> {{
    {body}
}}"""
    _, ops = raised(text, {"x": normal(3, 5, 32) + 1}, w=normal(32), c=normal(1, 32)[0])
    assert ops["layer_norm"] == norms


def test_an_epsilon_behind_an_activation_stays() -> None:
    """Of a variance of 0, which is at least 0: what is left is the epsilon alone."""
    text = """g (float[b, s, 8] x) => (float[b, s, 8] y) <float zero = {0.0}, float eps = {1e-6}> {
    kept = Max(x, zero)
    safe = Add(kept, eps)
    root = Sqrt(safe)
    y = Reciprocal(root)
}"""
    raised(text, {"x": -np.abs(normal(2, 3, 8))})


def test_a_bound_of_a_billion_is_the_end_and_a_range_of_floats_has_a_size() -> None:
    text = """g (float[b, s, 4] x) => (float[b, s, 4] y)
<int64[3] start = {0, 0, 0}, int64[3] end = {1000000000, 1000000000, 1000000000}, float zero = {0.0}, float one = {1.0},
 int64[1] last = {1}> {
    part = Slice(x, start, end)
    size = Shape <start = 1, end = 2> (x)
    axes = Constant <value_ints = [0]> ()
    single = Squeeze(size, axes)
    upto = Cast <to = 1> (single)
    places = Range(zero, upto, one)
    column = Unsqueeze(places, last)
    y = Mul(part, column)
}"""
    raised(text, {"x": normal(2, 5, 4)})


def test_sizes_of_three_inputs_are_one() -> None:
    """Batches times heads that meet, a mask whose rows are counted by the tokens, and what is expanded to a batch."""
    text = """g (float[b, s, 8] x, float[c, t, 8] e, int32[d, u] mask)
=> (float[1, 1, 1] largest, float[n, m, 2] p, float[k, l, 8] z) <float[1, 1, 8] first = {0, 1, 2, 3, 4, 5, 6, 7},
 int64[1] two = {2}, int64[1] one = {1}> {
    bx = Shape <start = 0, end = 1> (x)
    sx = Shape <start = 1, end = 2> (x)
    be = Shape <start = 0, end = 1> (e)
    se = Shape <start = 1, end = 2> (e)
    four = Constant <value_ints = [4]> ()
    hb = Mul(bx, two)
    he = Mul(be, two)
    qs = Concat <axis = 0> (hb, sx, four)
    ks = Concat <axis = 0> (he, se, four)
    q = Reshape(x, qs)
    k = Reshape(e, ks)
    kt = Transpose <perm = [0, 2, 1]> (k)
    scores = MatMul(q, kt)
    ms = Concat <axis = 0> (be, se, one)
    rows = Reshape(mask, ms)
    counted = Cast <to = 1> (rows)
    wide = Concat <axis = 2> (counted, counted)
    p = Mul(wide, wide)
    tail = Constant <value_ints = [1, 8]> ()
    wanted = Concat <axis = 0> (bx, tail)
    shape = Shape(first)
    most = Max(shape, wanted)
    spread = Expand(first, most)
    z = Concat <axis = 1> (spread, x)
    largest = ReduceMax <axes = [0, 1, 2]> (scores)
}"""
    feeds = {"x": normal(3, 5, 8), "e": normal(3, 4, 8), "mask": np.ones((3, 4), np.int32)}
    graph, _ = raised(text, feeds)
    assert {k: str(v.type) for k, v in graph.inputs.items()} == {
        "x": "f32[b,s,8]", "e": "f32[b,t,8]", "mask": "i32[b,t]",
    }  # fmt: skip


def test_outputs_without_a_name_are_not_read() -> None:
    """A skip norm that gives its sum but neither mean nor deviation, in a file in which some operand is left out."""
    text = """g (float[b, s, 8] x, float[b, s, 8] r) => (float[b, s, 8] y, float[b, s, 8] z) {
    n, , , z = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 1e-5> (x, r, w)
    y = Clip(n, , upper)
}"""
    feeds = {"x": normal(2, 3, 8), "r": normal(3, 3, 8)[:2]}
    _, ops = raised(text, feeds, w=normal(8), upper=np.array(0.5, np.float32))
    assert ops["add_rms_norm"] + ops["rms_norm"] == 1


def read(text: str) -> tuple[Graph, list[str]]:
    """The graph of a model in ONNX's text form, and its operators that stay."""
    model = onnx.parser.parse_model(f"<{HEAD}>\n{text}")
    graph, _, _ = read_graph(checked(model, Path("model.onnx")))
    return graph, [n.attributes["name"] for n in graph if n.op.name == "onnx_node"]


def test_a_past_has_the_width_of_a_head() -> None:
    """Onnxruntime-genai names the last axis of its past. What a mask counts may be longer than it, or not: it stays."""
    text = """g (float[b, s, 64] x, int64[b, n] mask, float[b, 2, p, w] past_k, float[b, 2, p, w] past_v)
=> (float[b, s, 32] y, float[b, 2, q, w] k, float[b, 2, q, w] v) {
    size = Shape <start = 1, end = 2> (mask)
    axes = Constant <value_ints = [0]> ()
    single = Squeeze(size, axes)
    total = Cast <to = 6> (single)
    last = Constant <value_ints = [1]> ()
    counted = ReduceSum <keepdims = 0> (mask, last)
    less = Sub(counted, last)
    ends = Cast <to = 6> (less)
    y, k, v = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (x, , , past_k, past_v, ends, total)
}"""
    graph, left = read(text)
    assert left == ["GroupQueryAttention"]
    assert [str(graph.inputs[n].type) for n in ("past_k", "past_v")] == ["f32[b,2,p,8]"] * 2
