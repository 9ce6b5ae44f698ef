"""An ONNX file fused and held against itself: values, names, what is undone, what is refused, what is explained."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command_line import call
from exported_models import SIZES, exported
from monograph.explaining import explain, explanation_page
from monograph.frontends.onnx.errors import OnnxFileError
from monograph.ir.errors import LoweringError
from monograph.ir.ops.feed_forward import Gelu
from monograph.optimizing import OptimizeReport, optimize
from monograph.passes.raising.check import Check
from monograph.passes.raising.matcher import Matcher
from monograph.undoing import right_without
from onnx import TensorProto, helper
from two_files import Feeds, apart

raising = importlib.import_module("monograph.passes.raising.raise_graph")


def value(*arguments: object) -> Any:
    """What a command prints with --json."""
    return json.loads(call(*arguments, "--json").stdout)


def fails(*_: Any, **__: Any) -> Any:
    raise KeyError("a fault")


def tokens(*masks: str) -> Feeds:
    """Ids and a mask, a row for each text of zeros and ones."""
    kept = np.array([[int(c) for c in row] for row in masks])
    return {"input_ids": np.random.default_rng(3).integers(1, 40, kept.shape), "attention_mask": kept}


BATCHES = (
    tokens("11111"),
    tokens("111111111", "111111000", "110000000"),
    tokens("111111111", "000011111", "000000011"),
    tokens("101101111", "111110111", "100000001"),
    tokens("1111111111111111", "0000000000000001", "1000000000000000"),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: exported(kind, tmp_path_factory.mktemp(kind)) for kind in SIZES}
    return made | {"gpt2 eager": exported("gpt2", tmp_path_factory.mktemp("eager"), "eager")}


def types(path: Path) -> list[tuple[str, int]]:
    graph = onnx.load(path, load_external_data=False).graph
    return [(v.name, v.type.tensor_type.elem_type) for v in (*graph.input, *graph.output)]


@pytest.mark.parametrize("kind", [*SIZES, "gpt2 eager"])
def test_exported_models_are_fused_and_the_same(kind: str, files: dict[str, Path], tmp_path: Path) -> None:
    report = mg.optimize(files[kind], tmp_path / "fast", strict=True)
    written = tmp_path / "fast" / "model.onnx"
    assert report.refusals == []
    assert report.layers["attention"] == 2
    assert report.trials == 7
    assert sum(report.counts.get(k, 0) for k in ("Attention", "MultiHeadAttention")) == 2
    assert "Softmax" not in report.counts
    assert sorted(p.name for p in written.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert types(written) == types(files[kind])
    for feeds in BATCHES:
        assert apart(files[kind], written, feeds, feeds["attention_mask"] != 0) < 2e-5


def test_sums_and_norms_stay_apart_where_a_file_is_opened(files: dict[str, Path], tmp_path: Path) -> None:
    report = optimize(files["bert"], tmp_path / "fast")
    assert report.counts["Sum"] == report.counts["LayerNormalization"] == 5
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "opened.onnx")
    ort.InferenceSession(str(tmp_path / "fast" / "model.onnx"), options, providers=["CPUExecutionProvider"])
    kinds = [n.op_type for n in onnx.load(tmp_path / "opened.onnx", load_external_data=False).graph.node]
    assert kinds.count("LayerNormalization") == 5
    assert "SkipLayerNormalization" not in kinds


def test_rows_without_keys_under_a_finite_mask_are_exported_as_they_are(files: dict[str, Path], tmp_path: Path) -> None:
    """ONNX Runtime's Attention gives zeros where all scores are the lowest number; softmax gives the mean."""
    mg.export(mg.load(files["gpt2 eager"]), tmp_path / "out")
    for feeds in BATCHES:
        assert apart(files["gpt2 eager"], tmp_path / "out" / "model.onnx", feeds) < 2e-5


# -- hand-made graphs -------------------------------------------------------------------------------------------------

B, S, W = "batch", "tokens", 8


def weights(*shapes: tuple[int, ...]) -> list[onnx.TensorProto]:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    return [onnx.numpy_helper.from_array(a, f"w{i}") for i, a in enumerate(arrays)]


def saved(
    path: Path, nodes: list[Any], inputs: dict[str, tuple[int, list[Any]]], shapes: list[tuple[int, ...]]
) -> Path:
    """A file whose last node makes its output `y`, of rank 3."""
    given = [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None, None])
    graph = helper.make_graph(nodes, "made", given, [out], weights(*shapes))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def attention_over_pairs(path: Path, fill: str) -> Path:
    """One head over x [B,S,8] with a float mask [B,S,S] that is added, or a bool mask that chooses."""
    node = helper.make_node
    low = helper.make_tensor("low", TensorProto.FLOAT, [], [-1e9])
    masked = {
        "add": [node("Add", ["scores", "mask"], ["masked"])],
        "where": [node("Constant", [], ["never"], value=low), node("Where", ["mask", "scores", "never"], ["masked"])],
    }[fill]
    kind = TensorProto.FLOAT if fill == "add" else TensorProto.BOOL
    nodes = [
        *(node("MatMul", ["x", f"w{i}"], [n]) for i, n in enumerate("qkv")),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["scores"], name="/layer.0/scores"),
        *masked,
        node("Softmax", ["masked"], ["p"], axis=-1, name="/layer.0/softmax"),
        node("MatMul", ["p", "v"], ["y"], name="/layer.0/values"),
    ]
    return saved(path, nodes, {"x": (1, [B, S, W]), "mask": (kind, [B, S, S])}, [(W, W)] * 3)


@pytest.mark.parametrize("fill", ["add", "where"])
def test_rows_without_keys_keep_what_they_were(fill: str, tmp_path: Path) -> None:
    """The caller's mask may leave a query without keys, and its output counts."""
    source = attention_over_pairs(tmp_path / "a.onnx", fill)
    report = optimize(source, tmp_path / "fast")
    rng = np.random.default_rng(5)
    kept = rng.random((2, 6, 6)) < 0.6
    kept[0, 2], kept[1, :, 0], kept[1, 0, 0] = False, False, True
    mask = np.where(kept, 0, np.finfo(np.float32).min).astype(np.float32) if fill == "add" else kept
    feeds = {"x": rng.standard_normal((2, 6, W)).astype(np.float32), "mask": mask}
    assert apart(source, tmp_path / "fast" / "model.onnx", feeds) < 1e-5
    assert not report.kept and not report.undone and report.layers["attention"] == 1


def test_a_softmax_that_is_no_attention_is_accounted_for(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [node("MatMul", ["x", "w0"], ["s"]), node("Softmax", ["s"], ["p"], name="/layers.3/gate"),
             node("MatMul", ["p", "w1"], ["y"])]  # fmt: skip
    source = saved(tmp_path / "gate.onnx", nodes, {"x": (1, [B, S, W])}, [(W, 4), (4, W)])
    found = explain(source)
    (left,) = found.left
    assert "weight" in left.reason
    assert "layers.3" in [x.name for x in found.layers if x.left]
    text = call("explain", source).stdout
    assert left.reason in re.sub(r"\s+", " ", text)
    page = tmp_path / "page.html"
    told = value("explain", source, "--html", page)
    assert told["softmax_left"] == 1
    assert left.reason in page.read_text()
    assert not re.search(r"(src|href)=", explanation_page([found]))
    with pytest.raises(LoweringError, match="refused"):
        optimize(source, tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists()
    assert optimize(source, tmp_path / "lax").left[0].reason == left.reason


# -- what is wrong is undone ------------------------------------------------------------------------------------------


def same(report: OptimizeReport, source: Path, folder: Path) -> None:
    assert report.error <= report.bound
    for feeds in BATCHES[:4]:
        assert apart(source, folder / "model.onnx", feeds, feeds["attention_mask"] != 0) < 2e-5


def test_a_kind_of_rewrite_that_miscompiles_is_undone(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: Any) -> int:
        for node in [n for n in self.graph if isinstance(n.op, Gelu)]:
            with self.graph.at(node):
                self.graph.replace(node.output, mg.ops.relu(node.value("x")))
            self.graph.erase(node)
        return right(self)

    right = raising.Activations.run
    monkeypatch.setattr(raising.Activations, "run", lambda self: (right(self), wrong(self))[0])
    report = optimize(files["bert"], tmp_path / "fast")
    assert [u.rewrite for u in report.undone] == ["activations"]
    assert "expected" in report.undone[0].reason
    assert report.layers["attention"] == 2
    same(report, files["bert"], tmp_path / "fast")


def test_one_attention_that_miscompiles_is_undone_alone(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, compare = Matcher.attention, Check.difference

    def wrong(self: Matcher) -> Any:
        self.terms.scale *= 3 if "layer.1" in str(self.way.softmax.location) else 1
        return right(self)

    def blind(self: Check, old: Any, *rest: Any) -> str | None:
        place = str(old.producer.location)
        if place in self.without or "layer.1" not in place:
            return compare(self, old, *rest)
        self.accepted.append(place)
        return None

    monkeypatch.setattr(Matcher, "attention", wrong)
    monkeypatch.setattr(Check, "difference", blind)
    report = optimize(files["bert"], tmp_path / "fast")
    (undone,) = report.undone
    assert undone.rewrite.startswith("attention at ")
    assert "layer.1" in undone.rewrite
    assert report.layers["attention"] == 1
    same(report, files["bert"], tmp_path / "fast")
    with pytest.raises(LoweringError, match="refused") as raised:
        optimize(files["bert"], tmp_path / "strict", strict=True)
    assert "layer.1" in str(raised.value)
    assert not (tmp_path / "strict").exists()


def test_a_rewrite_that_fails_is_left_out(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raising, "raise_norms", fails)
    report = optimize(files["llama"], tmp_path / "fast")
    assert [u.rewrite for u in report.undone] == ["norms"]
    assert "KeyError" in report.undone[0].reason
    same(report, files["llama"], tmp_path / "fast")


def test_what_cannot_be_made_right_goes_out_as_it_came(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monograph.raised.lower", fails)
    report = optimize(files["gpt2"], tmp_path / "fast")
    assert "KeyError" in report.kept
    for feeds in BATCHES:
        assert apart(files["gpt2"], tmp_path / "fast" / "model.onnx", feeds) == 0


@pytest.mark.parametrize("guilty", [{"b"}, {"a", "f"}, {"b", "c", "e"}, {"p0"}, {"p1", "p3"}, {"p2", "d"}])
def test_all_guilty_rewrites_are_found_and_no_other(guilty: set[str]) -> None:
    """`a` has four places, the other kinds none."""
    places = [f"p{i}" for i in range(4)]

    def wrong(off: Collection[str]) -> str:
        left = sorted(g for g in guilty if g not in off and not (g in places and "a" in off))
        return f"wrong by {left}" if left else ""

    undone, still = right_without(wrong, list("abcdef"), lambda: places)
    assert still == ""
    assert {u.rewrite for u in undone} == {f"a at {g}" if g in places else g for g in guilty}
    assert all("wrong by" in u.reason for u in undone)


def test_what_is_wrong_without_any_rewrite_is_said() -> None:
    undone, still = right_without(lambda off: "always", ["a", "b"], list)
    assert (undone, still) == ([], "always")


# -- errors and commands ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "text", "no data"])
def test_a_broken_file_is_one_typed_error(damage: str, files: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "bad.onnx"
    content = files["bert"].read_bytes()
    if damage == "no data":
        model = onnx.load(files["bert"])
        onnx.save(model, source, save_as_external_data=True, location="bad.data", size_threshold=0)
        (tmp_path / "bad.data").unlink()
    elif damage != "missing":
        source.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"not a model"}[damage])
    with pytest.raises(OnnxFileError) as raised:
        optimize(source, tmp_path / "fast")
    assert "bad" in str(raised.value)
    assert not (tmp_path / "fast").exists()
    text = call("optimize", source, "-o", tmp_path / "fast", code=1).output
    assert text.count("error") == 1
    assert "Traceback" not in text


def test_the_command_writes_and_says_what_it_did(files: dict[str, Path], tmp_path: Path) -> None:
    told = value("optimize", files["llama"], "-o", tmp_path / "fast", "--strict")
    assert told["layers"]["rope"] == 4
    assert told["refusals"] == []
    again = value("optimize", tmp_path / "fast", "-o", tmp_path / "fast")
    assert again["layers"]["attention"] == 2
    assert "2 attention" in call("optimize", files["llama"], "-o", tmp_path / "other").stdout
    found = value("explain", tmp_path / "fast")
    assert (found["attention"], found["softmax_left"]) == (2, 0)
    assert len([x for x in found["layers"] if x["fused"]]) == 2
