"""Small valid ONNX files of every part that the format has: what `mutated_files.py` damages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

P = onnx.TensorProto
node = helper.make_node
Array = np.ndarray[Any, Any]


def value(name: str, dims: Sequence[int | str] | None, kind: int = P.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims)


def weight(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    drawn = np.random.default_rng(seed + len(name)).standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(drawn, name)


def ints(name: str, *numbers: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(numbers, np.int64), name)


def scalar(name: str, number: Any, kind: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(number, kind), name)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
    **domains: int,
) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(d.replace("_", "."), v) for d, v in domains.items())]
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(initializers))
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def attention() -> onnx.ModelProto:
    """Projections, heads by computed shapes, a padding mask, softmax, a norm in parts, GELU in parts."""
    heads = [node("Shape", ["x"], ["size"]), node("Gather", ["size", "first"], ["b"], axis=0)]
    heads += [
        node("Gather", ["size", "second"], ["s"], axis=0),
        node("Concat", ["b", "s", "two", "four"], ["to"], axis=0),
    ]
    for n in "qkv":
        heads += [node("MatMul", ["x", f"w{n}"], [f"{n}p"]), node("Reshape", [f"{n}p", "to"], [f"{n}r"])]
        heads.append(node("Transpose", [f"{n}r"], [n], perm=[0, 2, 3, 1] if n == "k" else [0, 2, 1, 3]))
    scores = [
        node("MatMul", ["q", "k"], ["qk"]),
        node("Mul", ["qk", "scale"], ["scaled"]),
        node("Unsqueeze", ["mask", "middle"], ["mask4"]),
        node("Equal", ["mask4", "zero"], ["hidden"]),
        node("Where", ["hidden", "lowest", "scaled"], ["kept"]),
        node("Softmax", ["kept"], ["p"], axis=-1),
        node("MatMul", ["p", "v"], ["mixed"]),
        node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        node("Concat", ["b", "s", "eight"], ["flat"], axis=0),
        node("Reshape", ["back", "flat"], ["joined"]),
    ]
    norm = [
        node("Add", ["joined", "x"], ["sum"]),
        node("ReduceMean", ["sum"], ["mean"], axes=[-1]),
        node("Sub", ["sum", "mean"], ["centred"]),
        node("Pow", ["centred", "power"], ["squares"]),
        node("ReduceMean", ["squares"], ["variance"], axes=[-1]),
        node("Add", ["variance", "eps"], ["safe"]),
        node("Sqrt", ["safe"], ["deviation"]),
        node("Div", ["centred", "deviation"], ["normed"]),
        node("Mul", ["normed", "gamma"], ["z"]),
    ]
    gelu = [
        node("Div", ["z", "root"], ["zr"]),
        node("Erf", ["zr"], ["erf"]),
        node("Add", ["erf", "one"], ["more"]),
        node("Mul", ["z", "more"], ["twice"]),
        node("Mul", ["twice", "half"], ["y"]),
    ]
    stored = [*(weight(f"w{n}", 8, 8, seed=i) for i, n in enumerate("qkv")), ints("first", 0), ints("second", 1)]
    stored += [ints("two", 2), ints("four", 4), ints("eight", 8), ints("middle", 1, 2), ints("zero", 0)]
    stored += [scalar("scale", 0.5), scalar("lowest", -3e38), scalar("power", 2.0), scalar("eps", 1e-5)]
    stored += [weight("gamma", 8), scalar("root", 2**0.5), scalar("one", 1.0), scalar("half", 0.5)]
    given = [value("x", ["batch", "tokens", 8]), value("mask", ["batch", "tokens"], P.INT64)]
    return model([*heads, *scores, *norm, *gelu], given, [value("y", ["batch", "tokens", 8])], stored)


def branches() -> onnx.ModelProto:
    """An If on a computed condition with one inside it, and one whose condition is stored."""
    inner = node(
        "If",
        ["c"],
        ["i"],
        name="inner",
        then_branch=helper.make_graph([node("Relu", ["x"], ["ia"])], "ia", [], [value("ia", ["n", 4])]),
        else_branch=helper.make_graph([node("Neg", ["x"], ["ib"])], "ib", [], [value("ib", ["n", 4])]),
    )
    then = helper.make_graph(
        [inner, node("MatMul", ["i", "tw"], ["t"])], "then", [], [value("t", ["n", 4])], [weight("tw", 4, 4)]
    )
    other = helper.make_graph([node("Add", ["x", "ew"], ["e"])], "else", [], [value("e", ["n", 4])], [weight("ew", 4)])
    first = helper.make_graph([node("Tanh", ["o"], ["f"])], "first", [], [value("f", ["n", 4])])
    second = helper.make_graph([node("Exp", ["o"], ["g"])], "second", [], [value("g", ["n", 4])])
    nodes = [
        node("ReduceSum", ["x"], ["total"], keepdims=0),
        node("Greater", ["total", "zero"], ["c"]),
        node("If", ["c"], ["o"], name="outer", then_branch=then, else_branch=other),
        node("If", ["yes"], ["y"], name="stored", then_branch=first, else_branch=second),
    ]
    return model(
        nodes, [value("x", ["n", 4])], [value("y", ["n", 4])], [scalar("zero", 0.0), scalar("yes", True, np.bool_)]
    )


def loops() -> onnx.ModelProto:
    """A Loop with a carried value and a stacked output, and a Scan."""
    body = helper.make_graph(
        [node("Add", ["h", "x"], ["h2"]), node("Mul", ["h2", "small"], ["h3"]), node("Identity", ["go"], ["go2"])],
        "body",
        [value("i", [], P.INT64), value("go", [], P.BOOL), value("h", [2, 4])],
        [value("go2", [], P.BOOL), value("h3", [2, 4]), value("h2", [2, 4])],
        [scalar("small", 0.5)],
    )
    step = helper.make_graph(
        [node("Add", ["sum", "row"], ["sum2"]), node("Relu", ["sum2"], ["out"])],
        "step",
        [value("sum", [4]), value("row", [4])],
        [value("sum2", [4]), value("out", [4])],
    )
    nodes = [
        node("Loop", ["three", "yes", "start"], ["last", "all"], name="loop", body=body),
        node("Scan", ["nothing", "last"], ["end", "rows"], name="scan", body=step, num_scan_inputs=1),
        node("ReduceMean", ["all"], ["mean"], axes=[0], keepdims=0),
        node("Add", ["mean", "rows"], ["y"]),
    ]
    stored = [scalar("three", 3, np.int64), scalar("yes", True, np.bool_), weight("start", 2, 4), weight("nothing", 4)]
    return model(nodes, [value("x", [2, 4])], [value("y", [2, 4]), value("end", [4])], stored)


def functions() -> onnx.ModelProto:
    """A function with an attribute of its own that calls another one."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    scaled = node("Elu", ["a"], ["b"])
    scaled.attribute.append(onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope"))
    inner = helper.make_function("own", "inner", ["a"], ["b"], [scaled], opsets, ["slope"])
    calls = [node("inner", ["p"], ["s"], domain="own", slope=0.5), node("Add", ["s", "q"], ["r"])]
    outer = helper.make_function("own", "outer", ["p", "q"], ["r"], calls, opsets)
    nodes = [
        node("MatMul", ["x", "w"], ["z"]),
        node("outer", ["z", "x"], ["o"], domain="own"),
        node("outer", ["o", "z"], ["y"], domain="own"),
    ]
    found = model(nodes, [value("x", ["n", 4])], [value("y", ["n", 4])], [weight("w", 4, 4)], own=1)
    found.functions.extend([inner, outer])
    return found


def external() -> onnx.ModelProto:
    """Two weights in `w.bin`, which is `DATA`; a norm and a bias inside."""
    nodes = [
        node("MatMul", ["x", "wa"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("Gemm", ["r", "wb", "c"], ["g"], transB=1),
        node("LayerNormalization", ["g", "scale"], ["y"], axis=-1, epsilon=1e-5),
    ]
    stored = [weight("wa", 4, 8), weight("wb", 4, 8), weight("c", 4), weight("scale", 4)]
    for i, t in enumerate(stored[:2]):
        t.ClearField("raw_data")
        t.data_location = P.EXTERNAL
        for key, said in (("location", "w.bin"), ("offset", str(128 * i)), ("length", "128")):
            t.external_data.add(key=key, value=said)
    return model(nodes, [value("x", ["n", 4])], [value("y", ["n", 4])], stored)


DATA = np.random.default_rng(5).standard_normal(64).astype("<f4").tobytes()
"""The bytes of `w.bin`."""


def sparse() -> onnx.ModelProto:
    """A sparse initializer, one in a Constant, constants of all kinds, and text."""

    def thin(name: str, places: Array) -> onnx.SparseTensorProto:
        values = numpy_helper.from_array(np.array([1.5, -2.0, 0.5], np.float32), name)
        return helper.make_sparse_tensor(values, numpy_helper.from_array(places, f"{name}_at"), [4, 4])

    nodes = [
        node("MatMul", ["x", "ws"], ["a"]),
        node("Constant", [], ["cs"], sparse_value=thin("inside", np.array([1, 6, 11]))),
        node("MatMul", ["a", "cs"], ["b"]),
        node("Constant", [], ["f"], value_float=0.5),
        node("Constant", [], ["fs"], value_floats=[1.0, 2.0, 3.0, 4.0]),
        node("Constant", [], ["is"], value_ints=[0, -1]),
        node("Constant", [], ["t"], value_strings=["a", "b"]),
        node("Equal", ["t", "texts"], ["same"]),
        node("Cast", ["same"], ["samef"], to=P.FLOAT),
        node("ReduceMax", ["samef"], ["any"], keepdims=0),
        node("Mul", ["b", "f"], ["c"]),
        node("Add", ["c", "fs"], ["d"]),
        node("Reshape", ["d", "is"], ["e"]),
        node("Mul", ["e", "any"], ["y"]),
    ]
    texts = numpy_helper.from_array(np.array(["a", "c"], object), "texts")
    found = model(nodes, [value("x", ["n", 4])], [value("y", ["n", 4])], [texts])
    found.opset_import[0].version = 19
    found.ir_version = 9
    found.graph.sparse_initializer.append(thin("ws", np.array([[0, 1], [2, 2], [3, 0]])))
    return found


def quantized() -> onnx.ModelProto:
    """A weight of 8 bits, one by channels, activations quantized as they come, products of integers."""
    nodes = [
        node("DequantizeLinear", ["w8", "ws", "wz"], ["wf"], axis=1),
        node("MatMul", ["x", "wf"], ["a"]),
        node("QuantizeLinear", ["a", "as", "az"], ["aq"]),
        node("DequantizeLinear", ["aq", "as", "az"], ["af"]),
        node("DynamicQuantizeLinear", ["af"], ["d", "ds", "dz"]),
        node("MatMulInteger", ["d", "v8", "dz", "vz"], ["m"]),
        node("Cast", ["m"], ["mf"], to=P.FLOAT),
        node("Mul", ["mf", "ds"], ["ms"]),
        node("Mul", ["ms", "vs"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    stored = [
        numpy_helper.from_array(rng.integers(-9, 9, (4, 8)).astype(np.int8), "w8"),
        scalar("ws", [0.1] * 8),
        scalar("wz", [0] * 8, np.int8),
        scalar("as", 0.05),
        scalar("az", 128, np.uint8),
        scalar("vs", 0.02),
        numpy_helper.from_array(rng.integers(-9, 9, (8, 4)).astype(np.int8), "v8"),
        scalar("vz", 0, np.int8),
    ]
    return model(nodes, [value("x", ["n", 4])], [value("y", ["n", 4])], stored)


def vision() -> onnx.ModelProto:
    """Convolution, pooling, padding, resizing, slices, splits, gathers, a scatter, an Einstein sum."""
    nodes = [
        node("Pad", ["x", "pads"], ["p"]),
        node("Conv", ["p", "k", "kb"], ["c"], strides=[1, 1], kernel_shape=[3, 3]),
        node("BatchNormalization", ["c", "g", "gb", "gm", "gv"], ["n"]),
        node("MaxPool", ["n"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Resize", ["m", "", "scales"], ["r"], mode="nearest"),
        node("Slice", ["r", "starts", "ends", "axes"], ["s"]),
        node("Split", ["s", "parts"], ["s1", "s2"], axis=1),
        node("Concat", ["s2", "s1"], ["j"], axis=1),
        node("Flatten", ["j"], ["fl"], axis=1),
        node("Gather", ["fl", "some"], ["ga"], axis=1),
        node("Einsum", ["ga", "mix"], ["ei"], equation="bi,ij->bj"),
        node("TopK", ["ei", "three"], ["top", "at"], axis=-1),
        node("ScatterND", ["top", "where", "what"], ["sc"]),
        node("CumSum", ["sc", "last"], ["cs"]),
        node("Clip", ["cs", "low", "high"], ["y"]),
    ]
    stored = [
        ints("pads", 0, 0, 1, 1, 0, 0, 1, 1),
        weight("k", 4, 2, 3, 3),
        weight("kb", 4),
        weight("g", 4),
        weight("gb", 4),
        weight("gm", 4),
        scalar("gv", [1.0, 2.0, 0.5, 1.5]),
        scalar("scales", [1.0, 1.0, 2.0, 2.0]),
        ints("starts", 1),
        ints("ends", 5),
        ints("axes", 2),
        ints("parts", 1, 3),
        ints("some", 3, 0, 5, 9, 2, 7),
        weight("mix", 6, 5),
        ints("three", 3),
        numpy_helper.from_array(np.array([[0, 1]], np.int64), "where"),
        scalar("what", [0.25]),
        scalar("last", 1, np.int64),
        scalar("low", -2.0),
        scalar("high", 2.0),
    ]
    return model(nodes, [value("x", [2, 2, 6, 6])], [value("y", [2, 3])], stored)


def microsoft() -> onnx.ModelProto:
    """Operators of ONNX Runtime: packed attention, a norm with its sum, GELU, a product with a scale."""
    own = "com.microsoft"
    nodes = [
        node("Attention", ["x", "w", "wb", "lengths"], ["a"], domain=own, num_heads=2),
        node("SkipLayerNormalization", ["a", "x", "g", "gb"], ["n"], domain=own, epsilon=1e-5),
        node("BiasGelu", ["n", "bias"], ["b"], domain=own),
        node("FusedMatMul", ["b", "m"], ["y"], domain=own, alpha=0.5, transB=1),
    ]
    stored = [
        weight("w", 8, 24),
        weight("wb", 24),
        weight("g", 8),
        weight("gb", 8),
        weight("bias", 8),
        weight("m", 8, 8),
    ]
    given = [value("x", ["batch", "tokens", 8]), value("lengths", ["batch"], P.INT32)]
    return model(nodes, given, [value("y", ["batch", "tokens", 8])], stored, com_microsoft=1)


MADE: dict[str, Callable[[], onnx.ModelProto]] = {
    f.__name__: f for f in (attention, branches, loops, functions, external, sparse, quantized, vision, microsoft)
}
"""Files by name."""


def write(found: onnx.ModelProto | bytes, folder: Path) -> Path:
    """A model with its data in a folder; a file beside the folder is there to be reached for."""
    folder.mkdir(parents=True)
    (folder / "w.bin").write_bytes(DATA)
    (folder.parent / "secret.bin").write_bytes(DATA)
    (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
    path = folder / "model.onnx"
    path.write_bytes(found if isinstance(found, bytes) else found.SerializeToString())
    return path
