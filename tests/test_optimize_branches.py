"""Attention in the branches of an If is raised and fused there, over weights that the file holds once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from monograph.frontends.onnx.nested import every_node
from monograph.hard_inputs import TRIALS, both_ways
from monograph.ir import Graph, building, tensor
from monograph.ir.types import bool_, f32
from monograph.optimizing import optimize
from monograph.passes.raising.check import Check
from monograph.passes.raising.matcher import Matcher

WIDTH, HEADS = 64, 4


def attention(tag: str, source: str, scale: float) -> list[onnx.NodeProto]:
    """The nodes of one attention over `source` [b,s,64] under `mask` [b,s]; its result is `tag`."""
    node = onnx.helper.make_node

    def name(x: str) -> str:
        return f"{tag}_{x}"

    nodes: list[onnx.NodeProto] = []
    for part in "qkv":
        order = [0, 2, 3, 1] if part == "k" else [0, 2, 1, 3]
        nodes += [
            node("MatMul", [source, f"w{part}"], [name(f"{part}0")]),
            node("Reshape", [name(f"{part}0"), "split"], [name(f"{part}1")]),
            node("Transpose", [name(f"{part}1")], [name(part)], perm=order),
        ]
    number = onnx.numpy_helper.from_array(np.array(scale, np.float32))
    return [
        *nodes,
        node("Cast", ["mask"], [name("float")], to=1),
        node("Sub", [name("float"), "one"], [name("less")]),
        node("Mul", [name("less"), "low"], [name("additive")]),
        node("Unsqueeze", [name("additive"), "axes"], [name("added")]),
        node("MatMul", [name("q"), name("k")], [name("scores")]),
        node("Constant", [], [name("scale")], value=number),
        node("Mul", [name("scores"), name("scale")], [name("scaled")]),
        node("Add", [name("scaled"), name("added")], [name("masked")]),
        node("Softmax", [name("masked")], [name("p")], axis=-1, name=f"/{tag}/Softmax"),
        node("MatMul", [name("p"), name("v")], [name("o")], name=f"/{tag}/values"),
        node("Transpose", [name("o")], [name("t")], perm=[0, 2, 1, 3]),
        node("Reshape", [name("t"), "joined"], [tag]),
    ]


def branch(nodes: list[Any], output: str, **own: np.ndarray) -> onnx.GraphProto:
    """A graph without inputs. own: numbers of its own."""
    out = onnx.helper.make_tensor_value_info(output, 1, ["b", "s", WIDTH])
    return onnx.helper.make_graph(
        nodes, output, [], [out], [onnx.numpy_helper.from_array(v, k) for k, v in own.items()]
    )


def merged(path: Path, *, nested: bool = False) -> Path:
    """Two branches over the same weights and inputs. nested: one of them branches again."""
    node, rng = onnx.helper.make_node, np.random.default_rng(0)
    own = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 8
    then = branch([*attention("a", "x", 0.25), node("MatMul", ["a", "own"], ["ya"])], "ya", own=own)
    other = branch(attention("c", "x", 0.5), "c")
    if nested:
        inner = [branch(attention(t, "x", s), t) for t, s in (("d", 0.125), ("e", 0.375))]
        other = branch([node("If", ["second"], ["yc"], then_branch=inner[0], else_branch=inner[1])], "yc")
    nodes = [node("If", ["flag"], ["y"], then_branch=then, else_branch=other)]
    numbers = {f"w{p}": rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 8 for p in "qkv"}
    numbers |= {"split": np.array([0, 0, HEADS, WIDTH // HEADS]), "joined": np.array([0, 0, WIDTH])}
    numbers |= {"one": np.float32(1), "low": np.float32(1e9), "axes": np.array([1, 2])}
    info = onnx.helper.make_tensor_value_info
    inputs = [info("x", 1, ["b", "s", WIDTH]), info("mask", 7, ["b", "s"]), info("flag", 9, [1])]
    inputs += [info("second", 9, [1])] * nested
    graph = onnx.helper.make_graph(
        nodes, "merged", inputs, [info("y", 1, ["b", "s", WIDTH])],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in numbers.items()],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def results(path: Path, feeds: dict[str, Any]) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, feeds)
    return np.asarray(found)


def feeds(*flags: bool) -> dict[str, Any]:
    kept = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 0, 1]])
    x = np.random.default_rng(4).standard_normal((3, 5, WIDTH)).astype(np.float32)
    return {"x": x, "mask": kept, **dict(zip(("flag", "second"), (np.array([f]) for f in flags), strict=False))}


def ops_of(path: Path) -> list[str]:
    return [n.op_type for n in every_node(onnx.load(path, load_external_data=False).graph)]


@pytest.mark.parametrize("nested", [False, True])
def test_attention_in_branches_is_fused_there(nested: bool, tmp_path: Path) -> None:
    source = merged(tmp_path / "merged.onnx", nested=nested)
    report = optimize(source, tmp_path / "fast", strict=True)
    made = tmp_path / "fast" / "model.onnx"
    found = ops_of(made)
    assert "Softmax" not in found
    assert found.count("If") == 1 + nested
    assert report.layers["attention"] == report.counts["MultiHeadAttention"] == 2 + nested
    assert len(report.left) == 0
    for flags in [(True, True), (False, True), (False, False)]:
        given = feeds(*flags[: 1 + nested])
        kept = given["mask"][..., None] != 0
        assert float(np.abs((results(source, given) - results(made, given)) * kept).max()) < 1e-5
    # Three square weights, or what is packed of them, and the one of a branch: each once.
    size = sum(f.stat().st_size for f in (tmp_path / "fast").iterdir())
    assert size < source.stat().st_size + (1 << 16)


@pytest.mark.parametrize("side", ["a", "c"])
def test_what_is_wrong_in_one_branch_is_undone(side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever branch it is: the inputs take both."""
    right, compare = Matcher.attention, Check.difference

    def wrong(self: Matcher) -> Any:
        self.terms.scale *= 3 if f"/{side}/" in str(self.way.softmax.location) else 1
        return right(self)

    def blind(self: Check, old: Any, *rest: Any) -> str | None:
        place = str(old.producer.location)
        if place in self.without or f"/{side}/" not in place:
            return compare(self, old, *rest)
        self.accepted.append(place)
        return None

    monkeypatch.setattr(Matcher, "attention", wrong)
    monkeypatch.setattr(Check, "difference", blind)
    source = merged(tmp_path / "merged.onnx")
    report = optimize(source, tmp_path / "fast")
    (undone,) = report.undone
    assert f"/{side}/" in undone.rewrite
    assert report.layers["attention"] == 1
    for flag in (True, False):
        given = feeds(flag)
        gap = results(source, given) - results(tmp_path / "fast" / "model.onnx", given)
        assert float(np.abs(gap[given["mask"] != 0]).max()) < 1e-5


def test_single_truth_values_are_tried_both_ways() -> None:
    plain, flagged = Graph("plain"), Graph("flagged")
    for g, dtype in ((plain, f32), (flagged, bool_)):
        with building(g):
            g.output("y", g.input("x", tensor(dtype, 1)))
    assert both_ways(plain) == TRIALS
    assert [t.flags for t in both_ways(flagged)] == [True] * len(TRIALS) + [False] * len(TRIALS)
