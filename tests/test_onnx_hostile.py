"""Damaged and hostile ONNX files: one typed error each, with the file and the place, before anything is allocated."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import onnx
import pytest
from monograph.frontends.onnx import OnnxFileError, load_onnx
from monograph.frontends.onnx.file import check_graph
from monograph.ir.interpret import interpret
from onnx import helper, numpy_helper

P = onnx.TensorProto
X = helper.make_tensor_value_info("x", P.FLOAT, ["batch", 4])
Y = helper.make_tensor_value_info("y", P.FLOAT, None)


def model(
    nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto] | None = None, **fields: Any
) -> onnx.ModelProto:
    given = {"opset_imports": [helper.make_opsetid("", 17)], "ir_version": 8, **fields}
    return helper.make_model(helper.make_graph(nodes, "g", [X], [Y], initializers or []), **given)


def with_weight(change: Callable[[onnx.TensorProto], object]) -> onnx.ModelProto:
    """x @ w, with something done to w."""
    w = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    change(w)
    return model([helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], [w])


def external(**fields: str) -> onnx.ModelProto:
    """x @ w, with w in another file."""

    def change(w: onnx.TensorProto) -> None:
        w.ClearField("raw_data")
        w.data_location = P.EXTERNAL
        for key, value in {"location": "w.bin", "offset": "0", "length": "48", **fields}.items():
            if value:
                w.external_data.add(key=key, value=value)

    return with_weight(change)


def twice_said() -> onnx.ModelProto:
    found = external()
    found.graph.initializer[0].external_data.add(key="location", value="other.bin")
    return found


def sparse(indices: list[int], shape: list[int]) -> onnx.ModelProto:
    values = numpy_helper.from_array(np.ones(len(indices), np.float32), "w")
    places = numpy_helper.from_array(np.array(indices, np.int64), "w_indices")
    found = model([helper.make_node("MatMul", ["x", "w"], ["y"])])
    found.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, shape))
    return found


def chain(depth: int) -> onnx.ModelProto:
    """One branch in the other, `depth` times."""
    node = helper.make_node("Relu", ["x"], ["o0"])
    for i in range(1, depth):
        out = helper.make_tensor_value_info(node.output[0], P.FLOAT, None)
        node = helper.make_node("If", ["c"], [f"o{i}"], then_branch=helper.make_graph([node], "inner", [], [out]))
    node.output[0] = "y"
    return model([node], [helper.make_tensor("c", P.BOOL, [], [True])])


def functions(*calls: tuple[str, list[str]]) -> onnx.ModelProto:
    """Functions that call each other: name => names of those it calls."""
    found = model([helper.make_node(calls[0][0], ["x"], ["y"], domain="own")])
    found.opset_import.append(helper.make_opsetid("own", 1))
    for name, called in calls:
        nodes = [
            helper.make_node(c, ["a" if i == 0 else f"t{i - 1}"], [f"t{i}"], domain="own") for i, c in enumerate(called)
        ]
        nodes = nodes or [helper.make_node("Relu", ["a"], ["t0"])]
        nodes.append(helper.make_node("Identity", [nodes[-1].output[0]], ["b"]))
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        found.functions.append(helper.make_function("own", name, ["a"], ["b"], nodes, opsets))
    return found


def relu(source: str, result: str) -> onnx.NodeProto:
    return helper.make_node("Relu", [source], [result], name=f"to_{result}")


ONE = helper.make_attribute("value_float", 1.0)
ALPHA = [helper.make_attribute("alpha", 0.5)]


def no_graph() -> onnx.ModelProto:
    found = model([relu("x", "y")])
    found.ClearField("graph")
    return found


def attribute(change: Callable[[onnx.AttributeProto], object], op_type: str = "Elu") -> onnx.ModelProto:
    """One node whose first attribute was changed."""
    node = helper.make_node(op_type, ["x"], ["y"], name="odd", alpha=0.5)
    change(node.attribute[0])
    return model([node])


def constant(*values: onnx.AttributeProto, outputs: int = 1) -> onnx.ModelProto:
    node = onnx.NodeProto(op_type="Constant", output=["c", "d"][:outputs], attribute=values, name="odd")
    return model([node, helper.make_node("Add", ["x", "c"] if outputs else ["x", "x"], ["y"])])


def stored_if(**branches: onnx.GraphProto) -> onnx.ModelProto:
    """An If whose condition is stored."""
    node = helper.make_node("If", ["c"], ["y"], name="odd", **branches)
    return model([node], [helper.make_tensor("c", P.BOOL, [], [True])])


def branch(*outputs: str) -> onnx.GraphProto:
    made = [relu("x", o) for o in outputs]
    return helper.make_graph(made, "branch", [], [helper.make_tensor_value_info(o, P.FLOAT, None) for o in outputs])


def sized(*dims: int | str) -> onnx.ModelProto:
    found = model([relu("x", "y")])
    del found.graph.input[:]
    found.graph.input.append(helper.make_tensor_value_info("x", P.FLOAT, dims))
    return found


def two_functions_of_a_name() -> onnx.ModelProto:
    found = functions(("f", []))
    found.functions.add().CopyFrom(found.functions[0])
    return found


def function_of_another_opset() -> onnx.ModelProto:
    """Its ReduceSum has axes as an attribute, which the model's opset has as an operand."""
    found = functions(("f", []))
    del found.functions[0].node[:]
    found.functions[0].node.append(helper.make_node("ReduceSum", ["a"], ["b"], axes=[1]))
    found.functions[0].opset_import[0].version = 11
    return found


FILES: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "no graph": (no_graph, "has no graph"),
    "opset too new": (lambda: model([relu("x", "y")], opset_imports=[helper.make_opsetid("", 999)]), "opset 999; 7 to"),
    "opset twice": (
        lambda: model(
            [relu("x", "y")], opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx", 18)]
        ),
        "at versions 17 and 18",
    ),
    "cycle": (lambda: model([relu("b", "a"), relu("a", "b"), relu("x", "y")]), "cycle of nodes .2 of 3"),
    "cycle of one": (lambda: model([relu("y", "y")]), "a cycle of 1 node"),
    "read of nothing": (lambda: model([relu("nowhere", "y")]), "reads 'nowhere', which nothing makes"),
    "made twice": (lambda: model([relu("x", "y"), relu("x", "y")]), "'y' is made twice"),
    "output of nothing": (lambda: model([relu("x", "z")]), "output 'y' of graph 'g' is made by no node"),
    "two weights of a name": (
        lambda: model([relu("x", "y")], [helper.make_tensor("w", P.FLOAT, [1], [1.0])] * 2),
        "two initializers called 'w'",
    ),
    "bytes missing": (lambda: with_weight(lambda w: setattr(w, "raw_data", w.raw_data[:-4])), "44 bytes .* needs 48"),
    "size of a lie": (lambda: with_weight(lambda w: w.dims.append(1 << 40)), "48 bytes of data, but shape"),
    "negative size": (lambda: with_weight(lambda w: w.dims.__setitem__(0, -4)), "negative dimension"),
    "unknown type": (lambda: with_weight(lambda w: setattr(w, "data_type", 99)), "element type 99"),
    "numbers missing": (lambda: with_weight(lambda w: w.ClearField("raw_data")), "0 numbers in float_data"),
    "outside by dots": (lambda: external(location="../w.bin"), "not a path inside the folder"),
    "outside by root": (lambda: external(location="/etc/passwd"), "not a path inside the folder"),
    "outside by drive": (lambda: external(location="C:\\w.bin"), "not a path inside the folder"),
    "outside by link": (lambda: external(location="link.bin"), "a link that leads outside the folder"),
    "location of nothing": (lambda: external(location=""), "not a path inside the folder"),
    "location with zero": (lambda: external(location="a\0b"), "not a path inside the folder"),
    "no such data": (lambda: external(location="absent.bin"), "absent.bin, which there is no such file"),
    "a folder as data": (lambda: external(location="folder"), "folder, which cannot be read"),
    "offset outside": (lambda: external(offset="1000"), "bytes 1000 to 1048 of w.bin, which has 100 bytes"),
    "offset negative": (lambda: external(offset="-4"), "offset '-4'"),
    "offset too long": (lambda: external(offset="9" * 40), "offset '999"),
    "length of a lie": (lambda: external(length="40"), "40 bytes of external data"),
    "location twice": (twice_said, "says location twice"),
    "sparse outside": (lambda: sparse([0, 99], [4, 3]), "indices from 0 to 99"),
    "sparse too large": (lambda: sparse([0], [1 << 30, 1 << 20]), "bytes dense"),
    "nested too deep": (lambda: chain(30), "does not parse|graphs deep"),
    "function of itself": (lambda: functions(("f", ["f"])), "function f calls itself"),
    "functions in a ring": (lambda: functions(("f", ["g"]), ("g", ["f"])), "calls itself"),
    "functions that explode": (
        lambda: functions(*((f"f{i}", [f"f{i + 1}"] * 10) for i in range(9)), ("f9", [])),
        "nodes inlined; 5000000 are the most",
    ),
    "operator of nobody": (
        lambda: model([helper.make_node("Nonsense", ["x"], ["y"])]),
        "of which rank and element type",
    ),
    "operator of no version": (
        lambda: model([helper.make_node("StringConcat", ["x", "x"], ["y"])]),
        "StringConcat does not exist in version 17",
    ),
    "attribute of another type": (lambda: attribute(lambda a: setattr(a, "type", 2)), "of type INT, but holds f"),
    "attribute of no type": (
        lambda: attribute(lambda a: setattr(a, "type", 0)),
        "'alpha', which is of type 0; 1 to 14",
    ),
    "attribute of a call": (
        lambda: attribute(lambda a: setattr(a, "ref_attr_name", "slope")),
        "refers to attribute 'slope' of a function",
    ),
    "attribute twice": (
        lambda: model([onnx.NodeProto(op_type="Elu", input=["x"], output=["y"], attribute=ALPHA * 2)]),
        "has 2 attributes called 'alpha'",
    ),
    "constant of nothing": (constant, "has attributes none, expected one value"),
    "constant of two": (
        lambda: constant(helper.make_attribute("value_int", 1), helper.make_attribute("value_float", 1.0)),
        "attributes value_int .INT., value_float .FLOAT.",
    ),
    "constant of another type": (
        lambda: constant(helper.make_attribute("value_float", 1)),
        "attributes value_float .INT., expected one value",
    ),
    "constant without output": (lambda: constant(ONE, outputs=0), "node odd .Constant.: has no outputs"),
    "constant of two outputs": (lambda: constant(ONE, outputs=2), "0 inputs and 2 outputs, expected 0 and 1"),
    "if without else": (lambda: stored_if(then_branch=branch("a")), "branches with outputs .'then_branch': 1. for 1"),
    "if of other outputs": (
        lambda: stored_if(then_branch=branch("a"), else_branch=branch("b", "c")),
        "branches with outputs .'else_branch': 2, 'then_branch': 1. for 1",
    ),
    "more elements than numbers": (lambda: sized(1 << 40, 1 << 40), "more elements than can be counted"),
    "more axes than arrays": (lambda: sized(*[1] * 65), "has rank 65; 64 is the most"),
    "size below 0": (lambda: sized(-5), "dimension of -5"),
    "two functions of a name": (two_functions_of_a_name, "2 functions, two of them of one name"),
    "shapes that clash": (
        lambda: model(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], [helper.make_tensor("w", P.FLOAT, [3], [1.0] * 3)]
        ),
        "is not what MatMul allows",
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "inside"
    (inside / "folder").mkdir(parents=True)
    (inside / "w.bin").write_bytes(bytes(100))
    (tmp_path / "secret.bin").write_bytes(bytes(100))
    (inside / "link.bin").symlink_to(tmp_path / "secret.bin")
    return inside


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_by_one_error(name: str, folder: Path) -> None:
    make, message = FILES[name]
    path = folder / "model.onnx"
    path.write_bytes(make().SerializeToString())
    with pytest.raises(OnnxFileError, match=message) as caught:
        load_onnx(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "noise"])
def test_bytes_that_are_no_model(kind: str, folder: Path) -> None:
    whole = with_weight(lambda w: None).SerializeToString()
    noise = np.random.default_rng(0).integers(0, 256, 400).astype(np.uint8).tobytes()
    path = folder / "model.onnx"
    path.write_bytes({"empty": b"", "text": b"hello", "cut": whole[: len(whole) // 2], "noise": noise}[kind])
    with pytest.raises(OnnxFileError):
        load_onnx(path)


def test_every_cut_and_every_changed_byte_is_read_or_refused(folder: Path) -> None:
    """No byte of a small file makes anything but a model or one typed error."""
    whole = external().SerializeToString()
    path = folder / "model.onnx"
    rng = np.random.default_rng(1)
    for at in range(0, len(whole), 2):
        changed = bytearray(whole)
        changed[at] = int(rng.integers(0, 256))
        for data in (whole[:at], bytes(changed)):
            path.write_bytes(data)
            try:
                load_onnx(path)
            except OnnxFileError as e:
                assert str(path) in str(e)


def test_what_is_inside_is_read(folder: Path) -> None:
    path = folder / "model.onnx"
    (folder / "w.bin").write_bytes(bytes(4) + np.arange(12, dtype="<f4").tobytes())
    path.write_bytes(external(offset="4").SerializeToString())
    loaded = load_onnx(path)
    assert loaded.weights is not None
    assert loaded.weights.numpy("w").tolist() == np.arange(12.0).reshape(4, 3).tolist()


def test_nodes_out_of_order_are_put_in_order(folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(model([relu("a", "y"), relu("x", "a")]).SerializeToString())
    assert [node.op.name for node in load_onnx(path).graph()] == ["relu", "relu"]


def test_a_file_that_squares_is_read(folder: Path) -> None:
    """Numbers, dimensions and their products, each squared again and again: what is not followed stays as it stands."""
    size = helper.make_node("Shape", ["x"], ["s0"])
    squares = [helper.make_node("Mul", [f"s{i}", f"s{i}"], [f"s{i + 1}"]) for i in range(60)]
    outer = [helper.make_node("Einsum", ["v0", "v0"], ["m0"], equation="i,j->ij")]
    outer += [helper.make_node("Reshape", ["m0", "all"], ["v1"]), helper.make_node("Relu", ["x"], ["y"])]
    for i in range(1, 40):
        outer.append(helper.make_node("Einsum", [f"v{i}", f"v{i}"], [f"m{i}"], equation="i,j->ij"))
        outer.append(helper.make_node("Reshape", [f"m{i}", "all"], [f"v{i + 1}"]))
    flat = helper.make_node("Reshape", ["x", "all"], ["v0"])
    found = model([size, *squares, flat, *outer], [helper.make_tensor("all", P.INT64, [1], [-1])])
    found.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "tokens"
    found.graph.output.append(helper.make_tensor_value_info("s60", P.INT64, [2]))
    found.graph.output.append(helper.make_tensor_value_info("v40", P.FLOAT, ["all"]))
    path = folder / "model.onnx"
    path.write_bytes(found.SerializeToString())
    assert list(load_onnx(path).graph().outputs) == ["y", "s60", "v40"]


def test_many_branches_in_many_nodes_are_read_in_linear_time(folder: Path) -> None:
    """What is known outside is not copied for each branch: 2,000 nodes with a branch each, among 20,000 names."""
    nodes = [relu("x" if i == 0 else f"r{i - 1}", f"r{i}") for i in range(20_000)]
    last = "r19999"
    for i in range(2_000):
        nodes.append(helper.make_node("If", ["c"], [f"o{i}"], then_branch=over(last, "t"), else_branch=over(last, "e")))
        last = f"o{i}"
    nodes.append(relu(last, "y"))
    given = helper.make_tensor_value_info("c", P.BOOL, [])
    found = model(nodes)
    found.graph.input.append(given)
    start = time.process_time()
    check_graph(found.graph, folder / "model.onnx")
    assert time.process_time() - start < 10


def over(source: str, result: str) -> onnx.GraphProto:
    out = helper.make_tensor_value_info(result, P.FLOAT, None)
    return helper.make_graph([relu(source, result)], "branch", [], [out])


def test_a_function_of_another_opset_with_the_same_operators_is_inlined(folder: Path) -> None:
    found = functions(("f", []))
    found.functions[0].opset_import[0].version = 15
    found.functions[0].opset_import[1].version = 3
    path = folder / "model.onnx"
    path.write_bytes(found.SerializeToString())
    assert [node.op.name for node in load_onnx(path).graph()] == ["relu"]


def test_a_function_of_another_opset_is_converted(folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(function_of_another_opset().SerializeToString())
    x = np.arange(8.0, dtype=np.float32).reshape(2, 4)
    assert interpret(load_onnx(path).graph(), {"x": x})["y"].tolist() == [[6.0], [22.0]]


def test_names_that_no_input_decides_are_no_expressions(folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(sized("a+b-c", "n").SerializeToString())
    graph = load_onnx(path).graph()
    assert str(graph.inputs["x"].type) == "f32[a_b_c,n]"
    found = interpret(graph, {"x": np.array([[-1.0, 2.0]], np.float32)})
    assert found["y"].tolist() == [[0.0, 2.0]]


def test_what_a_loop_carries_has_its_rank(folder: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["h", "x"], ["h2"]), helper.make_node("Identity", ["go"], ["go2"])],
        "body",
        [helper.make_tensor_value_info("i", P.INT64, []), helper.make_tensor_value_info("go", P.BOOL, []), Y],
        [helper.make_tensor_value_info("go2", P.BOOL, []), helper.make_tensor_value_info("h2", P.FLOAT, [1, 4])],
    )
    body.input[2].name = "h"
    stored = [helper.make_tensor("n", P.INT64, [], [3]), helper.make_tensor("yes", P.BOOL, [], [True])]
    stored.append(helper.make_tensor("start", P.FLOAT, [1, 4], [1.0] * 4))
    found = model([helper.make_node("Loop", ["n", "yes", "start"], ["y"], body=body)], stored)
    path = folder / "model.onnx"
    path.write_bytes(found.SerializeToString())
    graph = load_onnx(path).graph()
    assert str(graph.outputs["y"].type) == "f32[1,4]"
    x = np.full((1, 4), 2.0, np.float32)
    assert interpret(graph, {"x": x}, {"start": np.ones((1, 4), np.float32)})["y"].tolist() == [[7.0] * 4]


def refused_as_a_whole(path: Path, words: str) -> None:
    """Optimizing and bisecting end with one error, and nothing is left."""
    there = sorted(path.parent.iterdir())
    for go in (lambda: mg.optimize(path, path.parent / "fast"), lambda: mg.bisect(path, path, path.parent / "part")):
        with pytest.raises(mg.MonographError, match=words):
            go()
    assert sorted(path.parent.iterdir()) == there


def test_a_loop_that_does_not_end_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monograph.frontends.onnx.runtime.LONGEST", 0.5)
    value = helper.make_tensor_value_info
    step = [helper.make_node("Add", ["v", "v"], ["v2"]), helper.make_node("Identity", ["k"], ["k2"])]
    carried = [value("i", P.INT64, []), value("k", P.BOOL, []), value("v", P.FLOAT, [4, 3])]
    body = helper.make_graph(step, "body", carried, [value("k2", P.BOOL, []), value("v2", P.FLOAT, [4, 3])])
    times = [helper.make_tensor("t", P.INT64, [], [10**15]), helper.make_tensor("c", P.BOOL, [], [True])]
    path = folder / "model.onnx"
    path.write_bytes(model([helper.make_node("Loop", ["t", "c", "x"], ["y"], body=body)], times).SerializeToString())
    start = time.perf_counter()
    refused_as_a_whole(path, "has not run it in 0.5 seconds")
    assert time.perf_counter() - start < 30


def test_what_a_runtime_would_compute_when_it_opens_a_file_has_bounds(folder: Path) -> None:
    """A stored number doubled forty times."""
    nodes = [helper.make_node("Concat", [f"c{i}"] * 2, [f"c{i + 1}"], axis=0) for i in range(40)]
    nodes += [
        helper.make_node("ReduceSum", ["c40"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    path = folder / "model.onnx"
    path.write_bytes(model(nodes, [helper.make_tensor("c0", P.FLOAT, [1], [1.0])]).SerializeToString())
    refused_as_a_whole(path, "2147483648 elements, and is not run")
