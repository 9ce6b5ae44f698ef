"""One decoder for the first call and for those after it: keys and values over the source are made once, then kept."""

from __future__ import annotations

import numpy as np
import onnx_ir

from .client_graphs import HIDDEN_STATES

BRANCH = "use_cache_branch"
"""Whether keys and values over the source are given: the name that Optimum and transformers.js know."""
_PREFIX, _LENGTH = "cross/", 2


def merged(decoder: onnx_ir.Model, cross: onnx_ir.Model) -> onnx_ir.Model:
    """The decoder, which takes keys and values over the source from `cross` unless BRANCH says that they are given.

    Both are changed. They become outputs, too, so that a client can give them back on the next call.
    """
    outer, inner = decoder.graph, cross.graph
    hidden = onnx_ir.Value(name=HIDDEN_STATES, type=inner.inputs[0].type, shape=inner.inputs[0].shape)
    flag = onnx_ir.Value(name=BRANCH, type=onnx_ir.TensorType(onnx_ir.DataType.BOOL), shape=onnx_ir.Shape([1]))
    inner.inputs[0].replace_all_uses_with(hidden, replace_graph_outputs=True)
    results = list(inner.outputs)
    names = [str(v.name) for v in results]
    for value in (*inner.initializers.values(), *(v for node in inner for v in node.outputs)):
        value.name = f"{_PREFIX}{value.name}"
    for value in list(inner.initializers.values()):
        inner.initializers.pop(str(value.name))
        outer.initializers[str(value.name)] = value
    nodes = list(inner)
    inner.outputs.clear()
    inner.remove(nodes)
    for node in nodes:
        node.name = f"{_PREFIX}{node.name}"
    made = onnx_ir.Graph([], results, nodes=nodes, name="made")
    given = {n: next(v for v in outer.inputs if v.name == _past(n)) for n in names}
    for past in given.values():
        _of_any_length(past)
    chosen = onnx_ir.Node("", "If", [flag], [], num_outputs=len(names), name="source")
    for (name, past), result, output in zip(given.items(), results, chosen.outputs, strict=True):
        output.name, output.type, output.shape = name, result.type, result.shape
        past.replace_all_uses_with(output, replace_graph_outputs=True)
    copies = [onnx_ir.Node("", "Identity", [v], name=f"kept/{n}") for n, v in given.items()]
    for copy, past, name in zip(copies, given.values(), names, strict=True):
        copy.outputs[0].name, copy.outputs[0].type, copy.outputs[0].shape = f"kept/{name}", past.type, past.shape
    kept = onnx_ir.Graph([], [c.outputs[0] for c in copies], nodes=copies, name="kept")
    chosen.attributes.add(onnx_ir.AttrGraph("then_branch", kept))
    chosen.attributes.add(onnx_ir.AttrGraph("else_branch", made))
    outer.insert_before(outer[0], [chosen, *_emptied(outer, flag)])
    outer.inputs.extend([hidden, flag])
    _by_layer(outer, list(chosen.outputs))
    return decoder


def _emptied(graph: onnx_ir.Graph, flag: onnx_ir.Value) -> list[onnx_ir.Node]:
    """Nodes that cut the pasts of the targets to nothing on the first call: Optimum 1 gives one column of zeros."""
    bounds = {"first": [0], "last": [np.iinfo(np.int64).max], "axis": [_LENGTH]}
    for name, numbers in bounds.items():
        tensor = onnx_ir.tensor(np.array(numbers, np.int64), name=f"past/{name}")
        value = onnx_ir.Value(name=tensor.name, const_value=tensor, shape=onnx_ir.Shape([1]))
        value.type = onnx_ir.TensorType(tensor.dtype)
        graph.initializers[f"past/{name}"] = value
    first, last, axis = (graph.initializers[f"past/{k}"] for k in bounds)
    end = onnx_ir.Node("", "Where", [flag, last, first], name="past/end")
    end.outputs[0].name = "past/end"
    nodes = [end]
    for past in [v for v in graph.inputs if ".decoder." in str(v.name)]:
        cut = onnx_ir.Node("", "Slice", [past, first, end.outputs[0], axis], name=f"past/{past.name}")
        cut.outputs[0].name, cut.outputs[0].type, cut.outputs[0].shape = f"past/{past.name}", past.type, past.shape
        past.replace_all_uses_with(cut.outputs[0], replace_graph_outputs=True)
        cut.replace_input_with(0, past)
        nodes.append(cut)
    return nodes


def _of_any_length(past: onnx_ir.Value) -> None:
    """A past over the source that has nothing in it yet is as good as one of the whole length."""
    assert past.shape is not None
    past.shape = onnx_ir.Shape([d if i != _LENGTH else "encoder_past_length" for i, d in enumerate(past.shape)])


def _by_layer(graph: onnx_ir.Graph, kept: list[onnx_ir.Value]) -> None:
    """Outputs with those of one layer side by side, as clients flatten a past."""
    every = [*graph.outputs, *kept]
    others = [v for v in every if not str(v.name).startswith("present.")]
    state = [v for v in every if str(v.name).startswith("present.")]
    graph.outputs.clear()
    graph.outputs.extend([*others, *sorted(state, key=lambda v: int(str(v.name).split(".")[1]))])


def _past(present: str) -> str:
    return present.replace("present.", "past_key_values.", 1)
