"""A single wrong thing planted in a copy of an exported model: bisect finds exactly that node, and proves it alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import onnx
import pytest
from command_line import call
from exported_models import exported
from monograph.bisecting import BisectError, bisect, bisect_pass
from monograph.subgraphs import run
from onnx import helper, numpy_helper

Plant = Callable[[Any, Any], bool]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: exported(kind, tmp_path_factory.mktemp(kind)) for kind in ("bert", "llama")}


def attribute(op: str, name: str, change: Callable[[Any], Any]) -> Plant:
    def plant(model: Any, node: Any) -> bool:
        for a in node.attribute:
            if node.op_type == op and a.name == name:
                a.CopyFrom(helper.make_attribute(name, change(helper.get_attribute_value(a))))
                return True
        return False

    return plant


def operator(old: str, new: str) -> Plant:
    def plant(model: Any, node: Any) -> bool:
        if node.op_type != old or (any("Constant" in i for i in node.input) and old == "Where"):
            return False
        node.op_type = new
        return True

    return plant


def swapped(op: str, i: int = 0, j: int = 1) -> Plant:
    def plant(model: Any, node: Any) -> bool:
        if node.op_type != op or len(node.input) <= max(i, j):
            return False
        node.input[i], node.input[j] = node.input[j], node.input[i]
        return True

    return plant


def stored(op: str, change: Callable[[np.ndarray], np.ndarray]) -> Plant:
    """A stored operand of a node, of which it gets a copy of its own."""

    def plant(model: Any, node: Any) -> bool:
        known = {t.name: t for t in model.graph.initializer}
        for i, name in enumerate(node.input):
            array = numpy_helper.to_array(known[name]) if name in known else np.zeros(0)
            if node.op_type == op and array.dtype == np.float32 and array.size > 1:
                model.graph.initializer.append(numpy_helper.from_array(change(array), f"{name} of {node.name}"))
                node.input[i] = f"{name} of {node.name}"
                return True
        return False

    return plant


def number(of: str, change: Callable[[np.ndarray], np.ndarray]) -> Plant:
    """A float Constant that an operator reads."""

    def plant(model: Any, node: Any) -> bool:
        readers = {n.op_type for n in model.graph.node if node.output[0] in n.input}
        if node.op_type != "Constant" or of not in readers or node.attribute[0].t.data_type != 1:
            return False
        array = numpy_helper.to_array(node.attribute[0].t)
        if array.size > 1 or not np.isfinite(array).all() or abs(array.item()) > 1e6:
            return False
        node.attribute[0].t.CopyFrom(numpy_helper.from_array(change(array).astype(np.float32)))
        return True

    return plant


def other_operand(op: str) -> Plant:
    """An operand that another node of the same kind reads."""

    def plant(model: Any, node: Any) -> bool:
        same = [n for n in model.graph.node if n.op_type == op]
        if node.op_type != op or (not node.input[1].endswith("weight") and "MatMul" not in node.input[1]):
            return False
        at = same.index(node)
        before = [n for n in same[:at] if n.input[1] != node.input[1]]
        if not before:
            return False
        node.input[1] = before[-1].input[1]
        return True

    return plant


KINDS: dict[str, tuple[str, Plant]] = {
    "softmax axis": ("bert", attribute("Softmax", "axis", lambda a: 1)),
    "softmax axis of queries": ("llama", attribute("Softmax", "axis", lambda a: 2)),
    "norm epsilon": ("bert", attribute("LayerNormalization", "epsilon", lambda e: 0.1)),
    "gelu as tanh": ("bert", operator("Erf", "Tanh")),
    "sigmoid as tanh": ("llama", operator("Sigmoid", "Tanh")),
    "add as sub": ("bert", operator("Add", "Sub")),
    "mul as add": ("llama", operator("Mul", "Add")),
    "cos as sin": ("llama", operator("Cos", "Sin")),
    "sin as cos": ("llama", operator("Sin", "Cos")),
    "neg as abs": ("llama", operator("Neg", "Abs")),
    "sqrt as exp": ("llama", operator("Sqrt", "Exp")),
    "weight transposed": (
        "bert",
        stored("MatMul", lambda w: np.ascontiguousarray(w.T) if w.shape[0] == w.shape[1] else -w),
    ),
    "weight 1 % larger": ("llama", stored("MatMul", lambda w: w * np.float32(1.01))),
    "bias of zeros": ("bert", stored("Add", lambda b: b + np.float32(0.01))),
    "norm weight": ("llama", stored("Mul", lambda w: w * np.float32(1.01))),
    "table rolled": ("bert", stored("Gather", lambda t: np.roll(t, 1, axis=0))),
    "division swapped": ("llama", swapped("Div")),
    "concat swapped": ("llama", swapped("Concat")),
    "mean axis": ("llama", attribute("ReduceMean", "axes", lambda a: [1])),
    "epsilon constant": ("llama", number("Add", lambda e: e + np.float32(0.01))),
    "scale constant": ("llama", number("Mul", lambda s: s * np.float32(1.01))),
    "erf constant": ("bert", number("Div", lambda s: s * np.float32(1.1))),
    "operand of another layer": ("llama", other_operand("MatMul")),
}


def planted(path: Path, plant: Plant, to: Path) -> tuple[str, Any]:
    """A copy with one thing changed: the last place where the outputs differ and it still runs."""
    source = onnx.load(path)
    ids = np.random.default_rng(0).integers(1, 40, (2, 6))
    feeds = {"input_ids": ids, "attention_mask": np.ones((2, 6), np.int64)}
    (expected,) = run(source, feeds, path).values()
    for at in reversed(range(len(source.graph.node))):
        model = onnx.ModelProto.FromString(source.SerializeToString())
        node = model.graph.node[at]
        if not plant(model, node):
            continue
        try:
            (found,) = run(model, feeds, path).values()
        except mg.MonographError:
            continue
        if found.shape == expected.shape and np.abs(found - expected).max() > 3e-3 * np.abs(expected).max():
            onnx.save(model, to)
            return node.name, feeds
    raise AssertionError("nothing of this kind can be planted")


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_planted_node_is_found(kind: str, files: dict[str, Path], tmp_path: Path) -> None:
    family, plant = KINDS[kind]
    wrong = tmp_path / "wrong.onnx"
    name, _ = planted(files[family], plant, wrong)
    found = bisect(files[family], wrong, tmp_path / "part")
    assert (found.differs, found.nodes, found.node, found.confirmed) == (True, [name], name, True)
    assert found.layer == name.rpartition("/")[0]
    inputs = dict(np.load(tmp_path / "part" / "inputs.npz"))
    x, y = (run(onnx.load(tmp_path / "part" / f"{s}.onnx"), inputs, tmp_path)[found.value] for s in ("before", "after"))
    assert np.abs(x.astype(np.float64) - y).max() > 1e-6 * np.abs(x).max()


def renamed(path: Path) -> None:
    """Give every value, weight and node of a file another name."""
    model = onnx.load(path)
    kept = {v.name for v in (*model.graph.input, *model.graph.output)}
    values = [t.name for t in model.graph.initializer] + [n for node in model.graph.node for n in node.output]
    names = {n: f"v{i}" for i, n in enumerate(values) if n not in kept}
    for t in model.graph.initializer:
        t.name = names[t.name]
    for node in model.graph.node:
        node.name = f"other {node.name}"
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
    del model.graph.value_info[:]
    onnx.save(model, path)


EQUAL = {
    "cos as sin": "the other one of the same angles", "sin as cos": "the other one of the same angles",
    "division swapped": "x over 1 where there was 1 over x", "operand of another layer": "the other layer's product",
}  # fmt: skip
"""What the wrong node gives that another node of the right file gives, too: without names it is that one."""


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in EQUAL])
def test_nor_does_it_take_names_to_find_it(kind: str, files: dict[str, Path], tmp_path: Path) -> None:
    family, plant = KINDS[kind]
    wrong = tmp_path / "wrong.onnx"
    name, _ = planted(files[family], plant, wrong)
    nodes = onnx.load(wrong).graph.node
    (node,) = (n for n in nodes if n.name == name)
    wanted = [name] + [n.name for n in nodes if node.op_type == "Constant" and node.output[0] in n.input]
    renamed(wrong)
    found = bisect(files[family], wrong, tmp_path / "part")
    assert (found.differs, found.confirmed) == (True, True)
    assert [n.removeprefix("other ") for n in found.nodes] in [[n] for n in wanted]  # A number, or what reads it.


def test_inputs_of_one_length_are_drawn_for_a_file_that_takes_no_others(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["s"]), helper.make_node("Exp", ["s"], ["y"], name="last")]
    value = helper.make_tensor_value_info
    shapes = {"a": ["rows", "n"], "b": ["lines", "m"]}
    inputs = [value(k, onnx.TensorProto.FLOAT, v) for k, v in shapes.items()]
    graph = helper.make_graph(nodes, "g", inputs, [value("y", onnx.TensorProto.FLOAT, ["rows", "k"])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "right.onnx")
    model.graph.node[1].op_type = "Tanh"
    onnx.save(model, tmp_path / "wrong.onnx")
    found = bisect(tmp_path / "right.onnx", tmp_path / "wrong.onnx")
    assert (found.nodes, found.op, found.confirmed) == (["last"], "Tanh", True)


def test_no_difference(files: dict[str, Path], tmp_path: Path) -> None:
    printed = call("bisect", files["llama"], files["llama"], "-o", tmp_path / "part")
    assert "no difference on 7 sets of inputs" in printed.stdout
    assert not (tmp_path / "part").exists()


def test_a_fused_file_is_the_same(files: dict[str, Path], tmp_path: Path) -> None:
    mg.optimize(files["bert"], tmp_path / "fast")
    assert not bisect(files["bert"], tmp_path / "fast").differs


def test_the_reference_agrees_with_the_runtime(files: dict[str, Path]) -> None:
    found = bisect(files["llama"])
    assert not found.differs and found.trials == 7


def test_a_wrong_reference_is_found(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from monograph.ir.ops import sigmoid

    monkeypatch.setattr(type(sigmoid.op), "numpy", lambda self, x: np.tanh(x))
    found = bisect(files["llama"])
    assert found.op == "Sigmoid" and len(found.nodes) == 1


def test_a_pass_that_changes_nothing_and_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from monograph.frontends.dsl import load_family
    from monograph.passes import pipelines
    from monograph.passes.manager import FunctionPass, Pipeline

    model = load_family("bert")(vocab=40, dim=16, ffn=24, layers=1, heads=2)
    assert not bisect_pass(model, "encode", "fuse_layers").differs

    def wrong(graph: Any) -> int:
        node = next(n for n in graph if n.op.name == "softmax" or "eps" in n.attributes)
        node.attributes["eps"] = 0.5
        return 1

    passes = (*pipelines.PIPELINES["encode"].passes, FunctionPass("wrong", wrong))
    monkeypatch.setitem(pipelines.PIPELINES, "encode", Pipeline("encode", passes))
    found = bisect_pass(model, "encode", "wrong")
    assert found.differs and found.confirmed and found.op == "LayerNormalization"
    with pytest.raises(BisectError, match="has no pass 'nothing'"):
        bisect_pass(model, "encode", "nothing")


def test_other_contracts_and_bad_files(files: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load(files["llama"])
    model.graph.output[0].name = model.graph.node[-1].output[0] = "other"
    onnx.save(model, tmp_path / "other.onnx")
    said = json.loads(call("bisect", files["llama"], tmp_path / "other.onnx", "--json", code=2).stdout)
    assert said["kind"] == "BisectError" and "output other is only in" in said["error"]
    (tmp_path / "bad.onnx").write_bytes(b"\xff" * 40)
    assert (
        json.loads(call("bisect", files["llama"], tmp_path / "bad.onnx", "--json", code=2).stdout)["kind"]
        == "OnnxFileError"
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    call("bisect", files["llama"], files["llama"], "-o", tmp_path / "full", code=2)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["file"]


def test_the_command_says_where(files: dict[str, Path], tmp_path: Path) -> None:
    name, _ = planted(files["bert"], KINDS["softmax axis"][1], tmp_path / "wrong.onnx")
    said = json.loads(call("bisect", files["bert"], tmp_path / "wrong.onnx", "--json", code=1).stdout)
    assert (said["node"], said["op"], said["confirmed"]) == (name, "Softmax", True)
    assert said["error"] > said["bound"] > 0
    assert name in call("bisect", files["bert"], tmp_path / "wrong.onnx", code=1).stdout


FLOATS, TRUTH = onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL


def written(path: Path, nodes: list[Any], *, flag: bool = False, **numbers: Any) -> Path:
    """A file with an input x [rows,tokens,8], perhaps a truth value, and an output y."""
    value = helper.make_tensor_value_info
    inputs = [value("x", FLOATS, ["rows", "tokens", 8])] + ([value("flag", TRUTH, [])] if flag else [])
    rng = np.random.default_rng(0)
    stored = {f"w{i}": rng.standard_normal((8, 8)).astype(np.float32) for i in range(3)} | numbers
    weights = [numpy_helper.from_array(np.asarray(x), n) for n, x in stored.items()]
    graph = helper.make_graph(nodes, "g", inputs, [value("y", FLOATS, ["rows", "tokens", 8])], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def anything(name: str, kind: int | None = None) -> Any:
    return onnx.ValueInfoProto(name=name) if kind is None else helper.make_tensor_value_info(name, kind, [])


def branching(path: Path, op: str, *, nested: bool = False) -> Path:
    """x w0, then in a branch (of a branch) x w1 and an operator, then w2."""
    node, graph = helper.make_node, helper.make_graph
    inner = [node("MatMul", ["h", "w1"], ["m"]), node(op, ["m"], ["t"], name="wrong"), node("Neg", ["t"], ["r"])]
    then, other = (
        graph(inner, "then", [], [anything("r")]),
        graph([node("Abs", ["h"], ["e"])], "else", [], [anything("e")]),
    )
    if nested:
        outer = node("If", ["flag"], ["deep"], then_branch=then, else_branch=other)
        kept = graph([node("Exp", ["h"], ["f"])], "else", [], [anything("f")])
        then, other = graph([outer], "then", [], [anything("deep")]), kept
    nodes = [node("MatMul", ["x", "w0"], ["h"]), node("If", ["flag"], ["c"], then_branch=then, else_branch=other)]
    return written(path, [*nodes, node("MatMul", ["c", "w2"], ["y"])], flag=True)


def looping(path: Path, op: str, late: str = "Identity") -> Path:
    """Three steps of s w1, an operator and a sum; late: what the third one does with it."""
    node, kinds = helper.make_node, (onnx.TensorProto.INT64, TRUTH)
    third = [
        helper.make_graph([node(o, ["t"], [k], name=f"{k} of")], k, [], [anything(k)])
        for o, k in ((late, "then"), ("Identity", "else"))
    ]
    nodes = [
        node("MatMul", ["s", "w1"], ["m"]), node(op, ["m"], ["t"], name="wrong"), node("Equal", ["i", "two"], ["last"]),
        node("If", ["last"], ["u"], then_branch=third[0], else_branch=third[1]), node("Add", ["u", "s"], ["next"]),
        node("Identity", ["going"], ["goes"]),
    ]  # fmt: skip
    given = [anything("i", kinds[0]), anything("going", kinds[1]), anything("s")]
    body = helper.make_graph(nodes, "body", given, [anything("goes", TRUTH), anything("next")])
    around = [node("MatMul", ["x", "w0"], ["h"]), node("Loop", ["trips", "", "h"], ["c"], body=body)]
    return written(path, [*around, node("MatMul", ["c", "w2"], ["y"])], trips=np.int64(3), two=np.int64(2))


@pytest.mark.parametrize("kind", ["branch", "branch of a branch", "loop", "branch of the last step of a loop"])
def test_what_differs_inside_of_a_branch_or_a_loop_is_found_there(kind: str, tmp_path: Path) -> None:
    a, b, wanted = tmp_path / "a.onnx", tmp_path / "b.onnx", "wrong"
    if kind.startswith("branch of the"):
        looping(a, "Tanh", "Abs"), looping(b, "Tanh", "Exp")
        wanted = "then of"
    elif kind == "loop":
        looping(a, "Tanh"), looping(b, "Sigmoid")
    else:
        branching(a, "Tanh", nested="of" in kind), branching(b, "Sigmoid", nested="of" in kind)
    found = bisect(a, b, tmp_path / "part")
    assert (found.nodes, found.confirmed) == ([wanted], True)
    inputs = dict(np.load(tmp_path / "part" / "inputs.npz"))
    x, y = (run(onnx.load(tmp_path / "part" / f"{s}.onnx"), inputs, tmp_path) for s in ("before", "after"))
    assert np.abs(next(iter(x.values())) - next(iter(y.values()))).max() > 0.01


def test_a_loop_with_another_number_of_steps_is_the_part_itself(tmp_path: Path) -> None:
    longer = onnx.load(looping(tmp_path / "a.onnx", "Tanh"))
    next(t for t in longer.graph.initializer if t.name == "trips").CopyFrom(
        numpy_helper.from_array(np.int64(4), "trips")
    )
    onnx.save(longer, tmp_path / "b.onnx")
    found = bisect(tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "part")
    assert (found.op, len(found.nodes), found.confirmed) == ("Loop", 1, True)


def test_what_stands_for_no_key_may_be_another_number(tmp_path: Path) -> None:
    """Minus infinity or the lowest float: softmax makes the same of both, so that the wrong axis is what differs."""

    def file(name: str, lowest: float, axis: int) -> Path:
        node = helper.make_node
        nodes = [
            node("MatMul", ["x", "w0"], ["s"], name="scores"), node("Where", ["seen", "none", "far"], ["mask"]),
            node("Add", ["s", "mask"], ["t"]), node("Softmax", ["t"], ["p"], axis=axis, name="weights"),
            node("MatMul", ["p", "w1"], ["y"]),
        ]  # fmt: skip
        seen = np.arange(8) < 6
        return written(tmp_path / name, nodes, seen=seen, none=np.float32(0), far=np.float32(lowest))

    right, other = file("a.onnx", -np.inf, -1), file("b.onnx", float(np.finfo(np.float32).min), -1)
    assert not bisect(right, other).differs
    found = bisect(right, file("c.onnx", float(np.finfo(np.float32).min), 1))
    assert (found.nodes, found.confirmed) == (["weights"], True)


def test_files_in_other_widths(files: dict[str, Path], tmp_path: Path) -> None:
    """f16 beside f32 says what rounding does, or with a bound what else is wrong; codes are no twins of numbers."""
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = tmp_path / "half.onnx"
    onnx.save(convert_float_to_float16(onnx.load(files["llama"]), keep_io_types=True), half)
    assert bisect(files["llama"], half).confirmed
    assert not bisect(files["llama"], half, bound=0.05).differs
    name, _ = planted(half, KINDS["softmax axis of queries"][1], tmp_path / "wrong.onnx")
    found = bisect(files["llama"], tmp_path / "wrong.onnx", tmp_path / "part", bound=0.05)
    assert (found.nodes, found.confirmed) == ([name], True)
    quantize_dynamic(str(files["llama"]), str(tmp_path / "codes.onnx"))
    found = bisect(files["llama"], tmp_path / "codes.onnx")
    assert found.confirmed and "DequantizeLinear" in found.node
