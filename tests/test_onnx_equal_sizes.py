"""Sizes that a file needs to be equal are one size of its graph; those that may differ stay apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from monograph.frontends.onnx.file import checked
from monograph.frontends.onnx.load import read_graph
from monograph.hard_inputs import TRIALS, hard_inputs
from monograph.ir import Graph
from monograph.ir.interpret import interpret
from monograph.ir.ops.foreign import Foreign


def read(text: str, tmp_path: Path) -> tuple[Graph, dict[str, np.ndarray]]:
    """The graph of a model in ONNX's text form, and its weights."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]>\n{text}')
    graph, weights, _ = read_graph(checked(model, tmp_path / "model.onnx"))
    return graph, {k: weights[k].numpy() for k in graph.params}


def foreign(graph: Graph) -> list[str]:
    return [str(n.attributes["name"]) for n in graph if isinstance(n.op, Foreign)]


TABLE = """g (float[b, s, s] x) => (float[b, s, s] y)
<float[1, 16] table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, int64[1] n = {16}, int64[1] zero = {0},
 int64[1] far = {9223372036854775807}, int64[1] one = {1}> {
    size = Shape <start = 1, end = 2> (x)
    gap = Sub(n, size)
    start = Max(gap, zero)
    last = Slice(table, start, far, one)
    y = Add(x, last)
}"""


def test_a_clamped_bound_is_the_side_that_fits(tmp_path: Path) -> None:
    """The last s of 16 numbers, from max(16 - s, 0) on: added to s numbers, these must be s."""
    graph, weights = read(TABLE, tmp_path)
    assert not foreign(graph)
    x = np.zeros((2, 5, 5), np.float32)
    found = interpret(graph, {"x": x}, weights)["y"]
    np.testing.assert_array_equal(found[0, 0], np.arange(11, 16))


def test_a_bound_that_nothing_tells_stays_computed(tmp_path: Path) -> None:
    """Where both sides of a maximum may be meant, it is computed when the graph runs."""
    text = TABLE.replace("y = Add(x, last)", "wide = ReduceSum(last, one)\n y = Add(x, wide)")
    graph, weights = read(text, tmp_path)
    assert [n.op.name for n in graph if n.op.name == "maximum"]
    assert not {s for n in graph for v in n.outputs for s in v.type.symbols if "larger" in s}
    del weights


MASK = """g (int64[b, s] ids, int64[c, t] mask) => (float[b, s, s] y) <int64[1] minus = {-1}, int64[1] one = {1}> {
    batch = Shape <start = 0, end = 1> (ids)
    shape = Concat <axis = 0> (batch, minus)
    rows = Reshape(mask, shape)
    added = Cast <to = 1> (rows)
    wide = Unsqueeze(added, one)
    x = Cast <to = 1> (ids)
    a = Unsqueeze(x, one)
    turned = Transpose <perm = [0, 2, 1]> (a)
    scores = MatMul(turned, a)
    y = Add(scores, wide)
}"""


def test_inputs_whose_rows_are_joined_have_one_batch_and_length(tmp_path: Path) -> None:
    graph, weights = read(MASK, tmp_path)
    assert graph.inputs["mask"].shape == graph.inputs["ids"].shape
    assert not foreign(graph)
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    found = interpret(graph, {"ids": ids, "mask": ids * 0 + 1}, weights)["y"]
    np.testing.assert_array_equal(found, ids[:, :, None] * ids[:, None, :] + 1)


@pytest.mark.parametrize("read_in_part", ["Gather <axis = 1> (mask, places)", "Slice(mask, zero, size, one)"])
def test_an_input_that_is_read_in_part_keeps_its_own_length(read_in_part: str, tmp_path: Path) -> None:
    """A mask may be longer than the tokens where only its first columns are read."""
    text = f"""g (int64[b, s] ids, int64[b, t] mask) => (int64[b, s] y)
<int64[1] zero = {{0}}, int64[1] one = {{1}}, int64 first = {{0}}, int64 step = {{1}}> {{
    size = Shape <start = 1, end = 2> (ids)
    end = Squeeze(size)
    places = Range(first, end, step)
    part = {read_in_part}
    y = Add(ids, part)
}}"""
    graph, weights = read(text, tmp_path)
    assert graph.inputs["mask"].shape != graph.inputs["ids"].shape
    mask = np.arange(10).reshape(2, 5)
    found = interpret(graph, {"ids": mask[:, :3] * 0, "mask": mask}, weights)["y"]
    np.testing.assert_array_equal(found, mask[:, :3])


@pytest.mark.parametrize("sizes", ["h, h", "h, w"])
def test_images_keep_their_sizes_where_a_stride_rounds_down(sizes: str, tmp_path: Path) -> None:
    """Patches of 4 pixels, of which there are 9 positions: 12 pixels to 15, or one row of 9 patches."""
    text = f"""g (float[b, 3, {sizes}] x) => (float[b, 2, 9] y)
<float[2, 3, 4, 4] w, float[1, 2, 9] positions, int64[1] channels = {{2}}, int64[1] four = {{4}}> {{
    patches = Conv <strides = [4, 4]> (x, w)
    batch = Shape <start = 0, end = 1> (x)
    height = Shape <start = 2, end = 3> (x)
    width = Shape <start = 3, end = 4> (x)
    rows = Div(height, four)
    columns = Div(width, four)
    count = Mul(rows, columns)
    shape = Concat <axis = 0> (batch, channels, count)
    flat = Reshape(patches, shape)
    y = Add(flat, positions)
}}"""
    text = text.replace("w,", "w = {" + ", ".join(["1"] * 96) + "},").replace(
        "positions,", "positions = {" + ", ".join(map(str, range(18))) + "},", 1
    )
    graph, weights = read(text, tmp_path)
    assert [str(d) for d in graph.inputs["x"].shape[1:]] == ["3", *sizes.split(", ")]
    assert foreign(graph) == ["Conv"] + ["Add"] * (sizes == "h, w") and graph.outputs["y"].shape[1:] == (2, 9)
    for size in [(12, 12), (14, 14), *([(15, 13), (6, 37)] if sizes == "h, w" else [])]:
        found = interpret(graph, {"x": np.ones((2, 3, *size), np.float32)}, weights)["y"]
        np.testing.assert_array_equal(found[1].reshape(-1), 48 + np.arange(18))


def test_what_follows_a_foreign_node_has_its_size(tmp_path: Path) -> None:
    """A sort is a TopK of all elements, which the IR does not have; what is added to its result is."""
    text = """g (float[b, s] x) => (float[n] y) <int64[1] minus = {-1}> {
    flat = Reshape(x, minus)
    count = Shape(flat)
    sorted, places = TopK <axis = 0> (flat, count)
    y = Add(sorted, flat)
}"""
    graph, _ = read(text, tmp_path)
    assert foreign(graph) == ["TopK"]
    (size,) = graph.outputs["y"].shape
    assert str(size) == "b*s"


def test_pads_that_are_turned_are_known(tmp_path: Path) -> None:
    """TorchScript lists pads from the last axis on, and turns the list when it runs."""
    text = """g (float[b, 3] x) => (float[b, n] y)
<int64[4] given = {1, 2, 0, 0}, int64[2] pairs = {-1, 2}, int64[1] last = {-1}, int64[1] first = {-9223372036854775807},
 int64[1] zero = {0}, int64[1] flat = {-1}> {
    rows = Reshape(given, pairs)
    reversed = Slice(rows, last, first, zero, last)
    columns = Transpose <perm = [1, 0]> (reversed)
    pads = Reshape(columns, flat)
    y = Pad(x, pads)
}"""
    graph, _ = read(text, tmp_path)
    assert not foreign(graph)
    found = interpret(graph, {"x": np.ones((2, 3), np.float32)}, {})["y"]
    np.testing.assert_array_equal(found, [[0, 1, 1, 1, 0, 0]] * 2)


def test_channels_are_as_many_as_the_kernel_has(tmp_path: Path) -> None:
    """optimum names every axis of an image; two groups of kernels over two channels each want four."""
    ones = ", ".join(["1"] * 8)
    text = f"""g (float[b, channels, h, w] x) => (float[b, 2, h, w] y) <float[2, 2, 1, 2] kernel = {{{ones}}}> {{
    y = Conv <group = 2, pads = [0, 1, 0, 0]> (x, kernel)
}}"""
    graph, weights = read(text, tmp_path)
    assert [str(d) for d in graph.inputs["x"].shape] == ["b", "4", "h", "w"]
    assert not foreign(graph)
    x = np.arange(24, dtype=np.float32).reshape(1, 4, 2, 3)
    pairs = x[:, [0, 2]] + x[:, [1, 3]]
    found = interpret(graph, {"x": x}, weights)["y"]
    np.testing.assert_array_equal(found, pairs + np.pad(pairs, ((0, 0), (0, 0), (0, 0), (1, 0)))[..., :-1])


def test_channels_of_a_kernel_on_integers_are_as_many(tmp_path: Path) -> None:
    """optimum's quantizer writes a patch embedding so; the operator itself stays."""
    text = """g (uint8[b, channels, h, w] x) => (int32[b, 1, h, w] y) <uint8[1, 3, 1, 1] kernel = {1, 2, 3}> {
    y = ConvInteger(x, kernel)
}"""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]>\n{text}')
    graph, _, _ = read_graph(checked(model, tmp_path / "model.onnx"), {"ConvInteger"})
    assert [str(d) for d in graph.inputs["x"].shape] == ["b", "3", "h", "w"]
    assert foreign(graph) == ["ConvInteger"]


def test_terms_of_a_product_are_as_many_as_the_weight_has_rows(tmp_path: Path) -> None:
    text = """g (float[b, width] x) => (float[b, 2] y) <float[3, 2] w = {0, 1, 2, 3, 4, 5}> { y = MatMul(x, w) }"""
    graph, weights = read(text, tmp_path)
    assert [str(d) for d in graph.inputs["x"].shape] == ["b", "3"]
    found = interpret(graph, {"x": np.ones((1, 3), np.float32)}, weights)["y"]
    np.testing.assert_array_equal(found, [[6, 9]])


LAST = """g (float[b, s] x, float[b, p] past) => (float[b, n] y)
<int64[1] far = {9223372036854775807}, int64[1] one = {1}> {
    all = Concat <axis = 1> (past, x)
    size = Shape <start = 1, end = 2> (WHOSE)
    start = Neg(size)
    y = Slice(all, start, far, one)
}"""


def test_as_many_as_there_are_counted_from_the_end_are_all(tmp_path: Path) -> None:
    """T5 takes the last s of a bias that has s rows."""
    graph, weights = read(LAST.replace("WHOSE", "all"), tmp_path)
    assert not foreign(graph)
    assert str(graph.outputs["y"].shape[1]) == "p+s"
    given = {"x": np.array([[3.0, 4]], np.float32), "past": np.array([[1.0]], np.float32)}
    np.testing.assert_array_equal(interpret(graph, given, weights)["y"], [[1, 3, 4]])


def test_what_is_counted_from_the_end_and_may_be_none_is_computed(tmp_path: Path) -> None:
    """The last p of p + s: where p is 0 a slice from -0 on is all of them."""
    graph, weights = read(LAST.replace("WHOSE", "past"), tmp_path)
    assert foreign(graph) == ["Slice"]
    x = np.array([[3.0, 4]], np.float32)
    for past, wanted in (np.zeros((1, 0), np.float32), [[3, 4]]), (np.array([[1.0]], np.float32), [[4]]):
        np.testing.assert_array_equal(interpret(graph, {"x": x, "past": past}, weights)["y"], wanted)


def test_a_branch_by_sizes_that_are_equal_is_taken(tmp_path: Path) -> None:
    """TorchScript compares the lengths of queries and keys, and casts the truth value before it branches."""
    text = """g (float[b, s] x) => (float[b, s] y) <int64 one = {1}> {
    size = Shape(x)
    queries = Gather(size, one)
    keys = Gather(size, one)
    same = Equal(queries, keys)
    other = Not(same)
    condition = Cast <to = 9> (other)
    y = If (condition) <then_branch = a () => (float[b, s] ya) { ya = Neg(x) },
                        else_branch = c () => (float[b, s] yc) { yc = Add(x, x) }>
}"""
    graph, weights = read(text, tmp_path)
    assert graph.counts() == {"add": 1}
    found = interpret(graph, {"x": np.ones((1, 2), np.float32)}, weights)["y"]
    np.testing.assert_array_equal(found, [[2, 2]])


def test_numbers_that_are_repeated_each_are_a_reshape(tmp_path: Path) -> None:
    """`torch.repeat_interleave(x, 2, 0)` of TorchScript: the most repeats, and the places of those that are there."""
    text = """g (float[3, s] x) => (float[n, s] y)
<int64[3] repeats = {2, 2, 2}, int64 zero = {0}, int64 one = {1}, int64[1] axis = {1}, int64[1] three = {3}> {
    most = ReduceMax <keepdims = 0> (repeats)
    first = Constant <value_ints = [0]> ()
    count = Unsqueeze(most, first)
    size = Shape <start = 1, end = 2> (x)
    shape = Concat <axis = 0> (three, count, size)
    column = Unsqueeze(x, axis)
    wide = Expand(column, shape)
    steps = Range(zero, most, one)
    limits = Unsqueeze(repeats, axis)
    there = Less(steps, limits)
    found = NonZero(there)
    places = Transpose <perm = [1, 0]> (found)
    y = GatherND(wide, places)
}"""
    graph, _ = read(text, tmp_path)
    assert set(graph.counts()) == {"reshape", "expand"}
    found = interpret(graph, {"x": np.array([[1, 2], [3, 4], [5, 6]], np.float32)}, {})["y"]
    np.testing.assert_array_equal(found, [[1, 2], [1, 2], [3, 4], [3, 4], [5, 6], [5, 6]])


@pytest.mark.parametrize("places", [[[0, 0], [1, 0], [0, 1], [1, 1]], [[0, 0], [0, 1], [1, 0]]])
def test_places_in_another_order_are_looked_up(places: list[list[int]], tmp_path: Path) -> None:
    numbers = ", ".join(str(n) for p in places for n in p)
    text = f"""g (float[2, 2, s] x) => (float[n, s] y) <int64[{len(places)}, 2] places = {{{numbers}}}> {{
    y = GatherND(x, places)
}}"""
    graph, weights = read(text, tmp_path)
    x = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    found = interpret(graph, {"x": x}, weights)["y"]
    np.testing.assert_array_equal(found, [x[i, j] for i, j in places])


@pytest.mark.parametrize("split", ["Split <axis = 0> (size)", "Split <axis = 0> (size, parts)"])
def test_a_shape_that_is_split_is_known(split: str, tmp_path: Path) -> None:
    """ONNX Runtime writes so what reads the sizes of a tensor one by one, and optimum's optimizer saves it."""
    outputs, parts = ("b, s, w", "") if "parts" not in split else ("bs, w", "int64[2] parts = {2, 1},")
    text = f"""g (float[b, s, 4] x) => (float[n, m] y)
<{parts} int64[1] minus = {{-1}}, int64[1] four = {{4}}> {{
    size = Shape(x)
    {outputs} = {split}
    rows = Div(w, four)
    shape = Concat <axis = 0> (minus, w, rows)
    apart = Reshape(x, shape)
    flat = Concat <axis = 0> (minus, w)
    y = Reshape(apart, flat)
}}"""
    graph, _ = read(text, tmp_path)
    assert not foreign(graph)
    assert [str(d) for d in graph.outputs["y"].shape] == ["b*s", "4"]
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(interpret(graph, {"x": x}, {})["y"], x.reshape(6, 4))


def test_a_size_that_is_split_in_parts_is_a_multiple_of_them(tmp_path: Path) -> None:
    """Tokens in blocks of 4, whose number is a quotient rounded down: nothing may be left over."""
    text = """g (float[b, s, 6] x) => (float[b, n, 6] y)
<int64[1] four = {4}, int64[1] six = {6}, int64[1] two = {2}, int64 axis = {2}> {
    batch = Shape <start = 0, end = 1> (x)
    size = Shape <start = 1, end = 2> (x)
    blocks = Div(size, four)
    shape = Concat <axis = 0> (batch, blocks, four, six)
    apart = Reshape(x, shape)
    y = ReduceSum <keepdims = 0> (apart, two)
}"""
    graph, weights = read(text, tmp_path)
    assert not foreign(graph) and str(graph.inputs["x"].shape[1]) == "4*s_over_4"
    x = np.arange(48, dtype=np.float32).reshape(1, 8, 6)
    np.testing.assert_array_equal(interpret(graph, {"x": x}, weights)["y"], x.reshape(1, 2, 4, 6).sum(2))


WINDOWS = """g (float[b, h, 6] x) => (float[b, n, c] y)
<int64 two = {2}, int64 four = {4}, int64[1] first = {0}, int64[1] far = {9223372036854775807}, int64[1] axis = {1},
 int64[1] step = {2}, int64[4] blocks = {0, -1, 4, 6}, int64[1] six = {6}, int64 one = {1}, int64[1] twelve = {12},
 int64[4] wide = {0, -1, 4, 12}> {
    shape = Shape(x)
    batch = Gather(shape, first)
    size = Gather(shape, one)
    over = Mod(size, four)
    missing = Sub(four, over)
    more = Mod(missing, four)
    added = Unsqueeze(more, first)
    pads = Concat <axis = 0> (first, first, first, first, added, first)
    filled = Pad(x, pads)
    apart = Reshape(filled, blocks)
    turned = Neg(apart)
    whole = Unsqueeze(size, first)
    back_shape = Concat <axis = 0> (batch, whole, six)
    joined = Reshape(turned, back_shape)
    even = Slice(joined, first, far, axis, step)
    odd = Slice(joined, axis, far, axis, step)
    merged = Concat <axis = 2> (even, odd)
    half = Div(size, two)
    over2 = Mod(half, four)
    missing2 = Sub(four, over2)
    more2 = Mod(missing2, four)
    added2 = Unsqueeze(more2, first)
    pads2 = Concat <axis = 0> (first, first, first, first, added2, first)
    filled2 = Pad(merged, pads2)
    apart2 = Reshape(filled2, wide)
    turned2 = Neg(apart2)
    half_size = Unsqueeze(half, first)
    last_shape = Concat <axis = 0> (batch, half_size, twelve)
    y = Reshape(turned2, last_shape)
}"""


@pytest.mark.parametrize(("window", "size"), [(4, "8*h_over_8"), (7, "14*h_over_14"), (3, "6*h_over_6")])
def test_windows_that_are_filled_up_but_not_cut_again_are_whole(window: int, size: str, tmp_path: Path) -> None:
    """As Swin is traced: sizes are filled up to windows, on two levels, and read as if nothing had been added.

    What runs is what needs no filling: windows of patches, an even number of which are windows again.
    """
    text = WINDOWS.replace("{4}", f"{{{window}}}").replace("-1, 4,", f"-1, {window},")
    graph, weights = read(text, tmp_path)
    assert not foreign(graph) and str(graph.inputs["x"].shape[1]) == size
    assert "pad" not in {n.op.name for n in graph}, "nothing is added"
    unit = int(size.split("*")[0])
    x = np.random.default_rng(0).standard_normal((2, 2 * unit, 6)).astype(np.float32)
    found = interpret(graph, {"x": x}, weights)["y"]
    np.testing.assert_array_equal(found, np.concatenate([x[:, ::2], x[:, 1::2]], 2))
    drawn = [hard_inputs(graph, trial) for trial in TRIALS[-2:]]
    lengths = [t.feeds["x"].shape[1] for t in drawn if t is not None]
    assert lengths == [unit, -(-12 // unit) * unit], "as few as reach the length of a trial"


def test_windows_that_are_cut_again_take_any_size(tmp_path: Path) -> None:
    text = """g (float[b, s, 6] x) => (float[b, s, 6] y)
<int64 four = {4}, int64[1] first = {0}, int64 one = {1}, int64[1] axis = {1}, int64[4] blocks = {0, -1, 4, 6},
 int64[3] flat = {0, -1, 6}> {
    shape = Shape(x)
    size = Gather(shape, one)
    over = Mod(size, four)
    missing = Sub(four, over)
    more = Mod(missing, four)
    added = Unsqueeze(more, first)
    pads = Concat <axis = 0> (first, first, first, first, added, first)
    filled = Pad(x, pads)
    apart = Reshape(filled, blocks)
    joined = Reshape(apart, flat)
    end = Unsqueeze(size, first)
    y = Slice(joined, first, end, axis)
}"""
    graph, weights = read(text, tmp_path)
    assert str(graph.inputs["x"].shape[1]) == "s"
    for size in (4, 5, 7, 8):
        x = np.random.default_rng(0).standard_normal((2, size, 6)).astype(np.float32)
        np.testing.assert_array_equal(interpret(graph, {"x": x}, weights)["y"], x)


@pytest.mark.parametrize(("truncated", "expected"), [(0, [1, 2, -2]), (1, [1, -1, 1])])
def test_rests_of_negative_numbers(truncated: int, expected: list[int], tmp_path: Path) -> None:
    """By its sign: of the divisor, or of what is divided."""
    text = f"""g (float[b] x) => (int64[3] y) <int64[3] a = {{7, -7, 7}}, int64[3] n = {{3, 3, -3}}> {{
    y = Mod <fmod = {truncated}> (a, n)
}}"""
    graph, weights = read(text, tmp_path)
    assert interpret(graph, {"x": np.zeros(1, np.float32)}, weights)["y"].tolist() == expected


@pytest.mark.parametrize(("a", "b", "known"), [("4*s", 3, True), ("4*s", 8, False), ("s", 3, False), ("s+1", 0, True)])
def test_sizes_that_are_never_equal(a: str, b: int, known: bool, tmp_path: Path) -> None:
    """4 s is not 3, by what is left over."""
    count, more = {"4*s": (4, 0), "s": (1, 0), "s+1": (1, 1)}[a]
    text = f"""g (float[s] x) => (int64[1] y)
<int64[1] count = {{{count}}}, int64[1] more = {{{more}}}, int64[1] other = {{{b}}}, int64[1] nine = {{9}}> {{
    size = Shape(x)
    many = Mul(size, count)
    all = Add(many, more)
    same = Equal(all, other)
    y = Where(same, nine, all)
}}"""
    graph, weights = read(text, tmp_path)
    assert ("where" not in {n.op.name for n in graph}) == known
    for size in (2, 3):
        found = interpret(graph, {"x": np.zeros(size, np.float32)}, weights)["y"].tolist()
        assert found == [9 if count * size + more == b else count * size + more]


def test_a_place_counted_from_the_end_as_torch_export_writes_it(tmp_path: Path) -> None:
    """A roll by 2: size - (-2 mod size) is 2, and sizes of n + 1 halve as floor division of integers of any sign."""
    text = """g (float[b, s] x) => (float[b, s] y, int64[1] half)
<int64[1] four = {4}, int64[1] first = {0}, int64[1] axis = {1}, int64[1] back = {-2}, int64[1] one = {1},
 int64[1] two = {2}, int64[3] blocks = {0, -1, 4}, int64[2] flat = {0, -1}> {
    size = Shape <start = 1, end = 2> (x)
    blocked = Div(size, four)
    batch = Shape <start = 0, end = 1> (x)
    shape = Concat <axis = 0> (batch, blocked, four)
    apart = Reshape(x, shape)
    joined = Reshape(apart, flat)
    whole = Shape <start = 1, end = 2> (joined)
    rest = Mod(back, whole)
    at = Sub(whole, rest)
    front = Slice(joined, first, at, axis)
    end = Slice(joined, at, whole, axis)
    y = Concat <axis = 1> (end, front)
    more = Add(whole, one)
    sign = Sign(more)
    same = Equal(sign, one)
    other = Not(same)
    left = Mod(more, two)
    odd = Cast <to = 9> (left)
    down = And(other, odd)
    less = Cast <to = 7> (down)
    rounded = Div(more, two)
    half = Sub(rounded, less)
}"""
    graph, weights = read(text, tmp_path)
    assert not foreign(graph) and str(graph.inputs["x"].shape[1]) == "4*s_over_4"
    for size in (4, 8):
        x = np.arange(2 * size, dtype=np.float32).reshape(2, size)
        found = interpret(graph, {"x": x}, weights)
        np.testing.assert_array_equal(found["y"], np.roll(x, -2, 1))
        assert found["half"].tolist() == [size // 2]


IMAGE = """g (float[b, 1, h, w] x) => (float[b, n, 4, 2] y, float[h, w] z)
<float[2, 1, 4, 4] kernel = {ONES}, int64[1] two = {2}, int64[1] three = {3}, int64[1] minus = {-1},
 int64[1] four = {4}, float[1] one = {1}> {
    patches = Conv <strides = [4, 4]> (x, kernel)
    batch = Shape <start = 0, end = 1> (x)
    height = Shape <start = 2, end = 3> (patches)
    width = Shape <start = 3, end = 4> (patches)
    rows = Div(height, four)
    shape = Concat <axis = 0> (batch, two, rows, four, width)
    apart = Reshape(patches, shape)
    turned = Transpose <perm = [0, 4, 2, 3, 1]> (apart)
    flat = Concat <axis = 0> (batch, minus, four, two)
    y = Reshape(turned, flat)
    size = Shape <start = 2, end = 4> (x)
    z = Expand(one, size)
}""".replace("ONES", ", ".join(["1"] * 32))


def test_windows_of_patches_leave_the_pixels_over_that_a_stride_does(tmp_path: Path) -> None:
    """Windows of 4 rows of patches of 4 pixels: 16 pixels to 19, also for what has the size of the image."""
    graph, weights = read(IMAGE, tmp_path)
    assert [str(d) for d in graph.inputs["x"].shape] == ["b", "1", "h", "w"] and foreign(graph) == ["Conv"]
    for size in ((16, 8), (19, 5), (33, 6)):
        found = interpret(graph, {"x": np.ones((2, 1, *size), np.float32)}, weights)
        assert found["y"].shape == (2, size[0] // 16 * (size[1] // 4), 4, 2) and (found["y"] == 16).all()
        np.testing.assert_array_equal(found["z"], np.ones(size))


@pytest.mark.parametrize(("start", "runs"), [(0, (7, 8)), (1, (8, 9))])
def test_every_second_in_windows_leaves_one_over(start: int, runs: tuple[int, ...], tmp_path: Path) -> None:
    """Of 7 and 8, or of 8 and 9, every second are 4, which are windows of 2: no size is a multiple of 4."""
    text = f"""g (float[b, s, 3] x) => (float[b, n, 2, 3] y)
<int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] three = {{3}}, int64[1] start = {{{start}}},
 int64[1] far = {{9223372036854775807}}> {{
    part = Slice(x, start, far, one, two)
    batch = Shape <start = 0, end = 1> (x)
    size = Shape <start = 1, end = 2> (part)
    windows = Div(size, two)
    shape = Concat <axis = 0> (batch, windows, two, three)
    y = Reshape(part, shape)
}}"""
    graph, weights = read(text, tmp_path)
    assert str(graph.inputs["x"].shape[1]) == "s"
    for size in runs:
        x = np.random.default_rng(0).standard_normal((2, size, 3)).astype(np.float32)
        found = interpret(graph, {"x": x}, weights)["y"]
        np.testing.assert_array_equal(found, x[:, start::2].reshape(2, 2, 2, 3))


def test_what_is_resized_to_known_sizes_has_them(tmp_path: Path) -> None:
    text = """g (float[b, 1, h, w] x, float[b, 1, p, q] mask) => (float[b, 1, h, w] y) {
    size = Shape(x)
    wide = Resize <mode = "nearest"> (mask, , , size)
    y = Mul(x, wide)
}"""
    graph, _ = read(text, tmp_path)
    assert foreign(graph) == ["Resize"] and "mul" in graph.counts()


@pytest.mark.parametrize(("pooled", "by"), [("Identity(p)", 4), ("MaxPool <kernel_shape = [2], strides = [2]> (p)", 8)])
def test_sizes_that_are_computed_before_a_stride_shows_them(pooled: str, by: int, tmp_path: Path) -> None:
    """torch.onnx divides sizes before a stride shows the result: (s + 3) / 4, and half of it."""
    text = f"""g (float[b, 1, s] x) => (float[b, m, 2] y)
<float[2, 1, 7] w = {{{", ".join(["1"] * 14)}}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] by = {{{by}}},
 int64[1] least = {{{by - 3}}}> {{
    batch = Shape <start = 0, end = 1> (x)
    size = Shape <start = 2, end = 3> (x)
    less = Sub(size, least)
    steps = Div(less, by)
    more = Add(steps, one)
    shape = Concat <axis = 0> (batch, two, more)
    p = Conv <strides = [4], pads = [3, 3], kernel_shape = [7]> (x, w)
    q = {pooled}
    apart = Reshape(q, shape)
    y = Transpose <perm = [0, 2, 1]> (apart)
}}"""
    graph, weights = read(text, tmp_path)
    assert foreign(graph) == ["Conv", "MaxPool"][: by // 4]
    for size in (9, 12, 13, 17):
        found = interpret(graph, {"x": np.ones((2, 1, size), np.float32)}, weights)["y"]
        assert found.shape == (2, (size + 3) // by, 2)


@pytest.mark.parametrize(("past", "new"), [(0, 1), (0, 3), (3, 1), (1, 1)])
def test_a_sum_of_sizes_may_have_one_element(past: int, new: int, tmp_path: Path) -> None:
    """Two of a past and new tokens are one where there is no past, and 1 mod 1 is 0."""
    text = """g (float[b, p, 2] past, float[b, s, 2] x) => (float[b, n, 2] y, int64[1] rest)
<int64[1] first = {0}, int64[1] two = {2}, int64[1] axis = {1}, int64[1] one = {1}> {
    all = Concat <axis = 1> (past, x)
    y = Slice(all, first, two, axis)
    size = Shape <start = 1, end = 2> (all)
    rest = Mod(one, size)
}"""
    graph, weights = read(text, tmp_path)
    rng = np.random.default_rng(0)
    given = {"past": rng.random((2, past, 2), np.float32), "x": rng.random((2, new, 2), np.float32)}
    found = interpret(graph, given, weights)
    np.testing.assert_array_equal(found["y"], np.concatenate([given["past"], given["x"]], 1)[:, :2])
    assert found["rest"].tolist() == [1 % (past + new)]


def test_images_in_windows_are_tried_with_two_sides(tmp_path: Path) -> None:
    text = """g (float[b, h, w] x) => (float[b, n, 8, m, 8] y)
<int64[1] first = {0}, int64[1] eight = {8}, int64[1] minus = {-1}, int64[1] axis = {1}> {
    batch = Shape <start = 0, end = 1> (x)
    height = Shape <start = 1, end = 2> (x)
    width = Shape <start = 2, end = 3> (x)
    rows = Div(height, eight)
    columns = Div(width, eight)
    shape = Concat <axis = 0> (batch, rows, eight, columns, eight)
    y = Reshape(x, shape)
}"""
    graph, _ = read(text, tmp_path)
    assert [str(d) for d in graph.inputs["x"].shape] == ["b", "8*h_over_8", "8*w_over_8"]
    drawn = [hard_inputs(graph, trial) for trial in TRIALS[:1]]
    assert [t.feeds["x"].shape for t in drawn if t is not None] == [(1, 8, 16)]
