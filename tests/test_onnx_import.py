"""ONNX files as models: what exporters write, what we write ourselves, and what the IR does not know."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from monograph.frontends.dsl import Model
from monograph.ir import interpret, parse, print_graph, verify
from monograph.ir.errors import LoweringError
from monograph.ir.tensors import held
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]


def original(path: Path, feeds: Arrays) -> Arrays:
    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def reference(model: Model, feeds: Arrays) -> Arrays:
    graph = model.graph()
    assert model.weights is not None
    return interpret(graph, feeds, {k: held(model.weights[k], v.type, k) for k, v in graph.params.items()})


def same(have: Arrays, want: Arrays, tolerance: float = 2e-5) -> None:
    assert list(have) == list(want)
    for name, x in want.items():
        np.testing.assert_allclose(have[name], x, rtol=tolerance, atol=tolerance, err_msg=name)


def written(model: Model, folder: Path) -> Path:
    return mg.export(model, folder) / "model.onnx"


def save(path: Path, nodes: list[Any], inputs: dict[str, list[Any]], outputs: dict[str, Any], **weights: Array) -> Path:
    """A file of these nodes. inputs: [element type, *dims]; outputs: likewise."""
    infos = [
        [helper.make_tensor_value_info(k, t[0], t[1:]) for k, t in declared.items()] for declared in (inputs, outputs)
    ]
    kept = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "g", *infos, kept)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


# -- exporters ---------------------------------------------------------------------------------------------------------

MASK = np.array([[1] * 9, [1] * 6 + [0] * 3, [1] * 9])
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
EXPORTED = {
    "BertModel": {**SMALL, "vocab_size": 64, "max_position_embeddings": 32},
    "GPTNeoXForCausalLM": {**SMALL, "vocab_size": 64, "max_position_embeddings": 32, "use_cache": False},
    "LlamaForCausalLM": {**SMALL, "vocab_size": 64, "num_key_value_heads": 2, "use_cache": False},
}


class First(torch.nn.Module):
    """The first output of a transformers model, from ids and a mask."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, attention_mask=mask)[0]


def exported(name: str, path: Path) -> Path:
    """A tiny model as the TorchScript exporter writes it."""
    import transformers

    kind: Any = getattr(transformers, name)
    torch.manual_seed(0)
    config = kind.config_class(**EXPORTED[name], attn_implementation="eager")
    example = torch.randint(2, 64, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    axes = {k: {0: "batch", 1: "sequence"} for k in ("ids", "mask")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            First(kind(config).eval()),
            example,
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["ids", "mask"],
            output_names=["y"],
            dynamic_axes=axes,
        )
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_what_the_torchscript_exporter_writes(name: str, tmp_path: Path) -> None:
    path = exported(name, tmp_path / "model.onnx")
    feeds = {"ids": np.random.default_rng(0).integers(2, 64, (3, 9)), "mask": MASK}
    model, want = mg.load(path), original(path, feeds)
    assert "onnx_node" not in model.graph().counts()
    assert str(model.task) == "onnx"
    same(reference(model, feeds), want)
    same(original(written(model, tmp_path / "out"), feeds), want)
    module = mg.to_torch(model)
    got = module(**{k: torch.from_numpy(v) for k, v in feeds.items()})
    same({k: v.detach().numpy() for k, v in got.items()}, want)
    got["y"].sum().backward()
    assert all(p.grad is not None for k, p in module.named_parameters() if k.endswith("weight"))
    assert mg.verify(model).passed


def test_what_we_write_ourselves(tmp_path: Path) -> None:
    from monograph.frontends.models.bert import bert

    config = {"vocab": 64, "dim": 32, "layers": 2, "heads": 4, "ffn": 64, "max_positions": 32}
    model = mg.init(bert, **config)
    path = written(model, tmp_path / "own")
    ids = np.random.default_rng(0).integers(2, 64, (3, 9))
    names = [i.name for i in onnx.load(str(path), load_external_data=False).graph.input]
    feeds = {k: {"input_ids": ids, "attention_mask": MASK}.get(k, np.zeros_like(ids)) for k in names}
    again = mg.load(path)
    assert "onnx_node" not in again.graph().counts()
    same(reference(again, feeds), original(path, feeds))
    same(original(written(again, tmp_path / "again"), feeds), original(path, feeds))


# -- foreign nodes -----------------------------------------------------------------------------------------------------

FLOAT, INT, TEXT = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


def test_a_foreign_node_goes_out_as_it_came_in(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["a"]),
        helper.make_node("MaxPool", ["a"], ["b"], name="pool", kernel_shape=[2], strides=[2]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    path = save(
        tmp_path / "m.onnx", nodes, {"x": [FLOAT, 2, 3, "n"]}, {"y": [FLOAT, 2, 3, "m"]}, w=np.ones(1, "f4") * 2
    )
    model = mg.load(path)
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 3, 9)).astype("f4")}
    want = original(path, feeds)
    same(reference(model, feeds), want)
    same(original(written(model, tmp_path / "out"), feeds), want)
    text = print_graph(model.graph())
    assert print_graph(verify(parse(text))) == text
    assert [note.key for note in model.notes] == ["pool"]
    with pytest.raises(LoweringError, match="pool: MaxPool is a foreign node, which PyTorch has no form of"):
        mg.to_torch(model)


def test_sizes_that_only_a_run_shows(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Transpose", ["places"], ["rows"]),
        helper.make_node("Shape", ["rows"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Cast", ["rows"], ["numbers"], to=FLOAT),
        helper.make_node("Add", ["numbers", "zeros"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, {"x": [FLOAT, "n", 4]}, {"y": [FLOAT, "found", 2]})
    model, feeds = mg.load(path), {"x": np.eye(3, 4, dtype="f4")}
    same(reference(model, feeds), original(path, feeds))
    same(original(written(model, tmp_path / "out"), feeds), original(path, feeds))


def branch(name: str, op: str) -> onnx.GraphProto:
    out = helper.make_tensor_value_info(f"{name}_y", FLOAT, ["n"])
    return helper.make_graph([helper.make_node(op, ["outer", "w"], [f"{name}_y"])], name, [], [out])


def test_a_subgraph_reads_what_stands_outside(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["outer"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("a", "Add"), else_branch=branch("b", "Sub")),
    ]
    inputs = {"x": [FLOAT, "n"], "c": [TensorProto.BOOL]}
    path = save(tmp_path / "m.onnx", nodes, inputs, {"y": [FLOAT, "n"]}, w=np.arange(3, dtype="f4"))
    model = mg.load(path)
    out = written(model, tmp_path / "out")
    for condition in (True, False):
        feeds = {"x": np.array([-1, 2, 3], "f4"), "c": np.array(condition)}
        same(reference(model, feeds), original(path, feeds))
        same(original(out, feeds), original(path, feeds))


def test_a_branch_that_is_known_is_taken(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["outer"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("a", "Add"), else_branch=branch("b", "Sub")),
    ]
    fixed = {"w": np.arange(3, dtype="f4"), "c": np.array(False)}
    path = save(tmp_path / "m.onnx", nodes, {"x": [FLOAT, 3]}, {"y": [FLOAT, 3]}, **fixed)
    assert mg.load(path).graph().counts() == {"relu": 1, "sub": 1}


def test_texts_go_through(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Equal", ["x", "w"], ["same"])]
    path = save(
        tmp_path / "m.onnx",
        nodes,
        {"x": [TEXT, "n"]},
        {"y": [TEXT, "n"], "same": [TensorProto.BOOL, "n"]},
        w=np.array(["a"], object),
    )
    graph = mg.load(path).graph()
    assert [str(v.type) for v in graph.outputs.values()] == ["str[n]", "bool[n]"]


def test_a_graph_that_cannot_be_typed_stays_whole(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["parts"], axis=0),
        helper.make_node("ConcatFromSequence", ["parts"], ["joined"], axis=1),
        helper.make_node("Mul", ["joined", "w"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, {"x": [FLOAT, 2, 3]}, {"y": [FLOAT, 1, 6]}, w=np.full(6, 2, "f4"))
    model, feeds = mg.load(path), {"x": np.arange(6, dtype="f4").reshape(2, 3)}
    assert model.graph().counts()["onnx_node"] == 1
    same(reference(model, feeds), original(path, feeds))
    same(original(written(model, tmp_path / "out"), feeds), original(path, feeds))


def test_a_quantized_weight_becomes_an_encoding(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["f"], axis=1),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    fixed = {"w": rng.integers(-128, 128, (8, 5)).astype(np.int8), "s": rng.random(5).astype("f4")}
    path = save(tmp_path / "m.onnx", nodes, {"x": [FLOAT, "n", 8]}, {"y": [FLOAT, "n", 5]}, **fixed)
    model, feeds = mg.load(path), {"x": rng.normal(size=(2, 8)).astype("f4")}
    assert "dequantize" in model.graph(encoded=True).counts()
    want = feeds["x"] @ (fixed["w"] * fixed["s"])
    same(reference(model, feeds), {"y": want}, 1e-4)
    # Where it fuses the two nodes, ONNX Runtime multiplies by activations in 8 bits.
    for file in (path, written(model, tmp_path / "out")):
        assert np.abs(original(file, feeds)["y"] - want).max() <= 0.01 * np.abs(want).max()
