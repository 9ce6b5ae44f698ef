"""What is done to the nodes, attributes, subgraphs and functions of a valid ONNX file: one change each."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import onnx
from mutated_files_cases import value
from onnx import helper

P = onnx.TensorProto
ODD = (-1, 0, 1, 2, 7, 1 << 20, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63))
"""Numbers for sizes, axes and counts."""
FLOATS = (float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e38, 1e-45)

Change = Callable[[onnx.ModelProto, random.Random], bool]
"""Changes a model in place; gives whether it has what is to be changed."""


def graphs(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    found = [model.graph]
    for graph in found:
        found += [a.g for n in graph.node for a in n.attribute if a.HasField("g")]
    return found


def nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [n for g in graphs(model) for n in g.node] + [n for f in model.functions for n in f.node]


def tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    found = [t for g in graphs(model) for t in g.initializer]
    found += [t for s in model.graph.sparse_initializer for t in (s.values, s.indices)]
    return found + [a.t for n in nodes(model) for a in n.attribute if a.HasField("t")]


def attributes(model: onnx.ModelProto, *kinds: str) -> list[onnx.AttributeProto]:
    wanted = {onnx.AttributeProto.AttributeType.Value(k) for k in kinds}
    return [a for n in nodes(model) for a in n.attribute if not wanted or a.type in wanted]


def pick(rng: random.Random, things: Any) -> Any:
    listed = list(things)
    return rng.choice(listed) if listed else None


# -- nodes -----------------------------------------------------------------------------------------------------------


def other_operator(model: onnx.ModelProto, rng: random.Random) -> bool:
    names = (
        "Nonsense",
        "Loop",
        "If",
        "Scan",
        "Constant",
        "Softmax",
        "Shape",
        "Cast",
        "Reshape",
        "Concat",
        "Split",
        "Attention",
        "SequenceAt",
        "Optional",
        "ConstantOfShape",
        "Range",
        "Tile",
        "Expand",
        "LSTM",
        "NonZero",
        "",
        "\u00e9",
    )
    rng.choice(nodes(model)).op_type = rng.choice(names)
    return True


def other_domain(model: onnx.ModelProto, rng: random.Random) -> bool:
    rng.choice(nodes(model)).domain = rng.choice(("com.microsoft", "ai.onnx", "ai.onnx.ml", "nobody", "own", " "))
    return True


def other_opset(model: onnx.ModelProto, rng: random.Random) -> bool:
    if rng.random() < 0.2:
        del model.opset_import[:]
    else:
        rng.choice(list(model.opset_import)).version = rng.choice(
            (0, 1, 6, 7, 9, 11, 13, 18, 24, 26, 28, 29, 999, -1, 1 << 60)
        )
    return True


def other_format(model: onnx.ModelProto, rng: random.Random) -> bool:
    model.ir_version = rng.choice((0, 1, 3, 12, 13, 999, -1))
    return True


def operand(model: onnx.ModelProto, rng: random.Random) -> bool:
    n = pick(rng, [n for n in nodes(model) if n.input])
    if n is None:
        return False
    names = (
        [o for m in nodes(model) for o in m.output if o]
        + [t.name for t in tensors(model)]
        + [v.name for v in model.graph.input]
    )
    what = rng.randrange(5)
    if what == 0:
        n.input[rng.randrange(len(n.input))] = rng.choice(("nowhere", ""))
    elif what == 1:
        del n.input[rng.randrange(len(n.input)) :]
    elif what == 2:
        n.input.extend(rng.choice(names) for _ in range(rng.choice((1, 3))))
    else:
        n.input[rng.randrange(len(n.input))] = rng.choice(names)
    return True


def result(model: onnx.ModelProto, rng: random.Random) -> bool:
    n = rng.choice(nodes(model))
    names = [o for m in nodes(model) for o in m.output if o] + [v.name for v in model.graph.input]
    what = rng.randrange(4)
    if what == 0:
        del n.output[:]
    elif what == 1:
        n.output.extend(f"extra{i}" for i in range(rng.choice((1, 5))))
    else:
        n.output[rng.randrange(len(n.output))] = rng.choice([*names, ""])
    return True


def node_gone_or_twice(model: onnx.ModelProto, rng: random.Random) -> bool:
    graph = rng.choice(graphs(model))
    if not graph.node:
        return False
    if rng.random() < 0.5:
        del graph.node[rng.randrange(len(graph.node))]
    else:
        graph.node.add().CopyFrom(rng.choice(list(graph.node)))
    return True


def cycle(model: onnx.ModelProto, rng: random.Random) -> bool:
    count = rng.choice((1, 2, 5, 300))
    for i in range(count):
        model.graph.node.append(helper.make_node("Relu", [f"c{i}"], [f"c{(i + 1) % count}"]))
    if rng.random() < 0.5:
        model.graph.node[0].input.append("c0")
    return True


def shuffled(model: onnx.ModelProto, rng: random.Random) -> bool:
    graph = rng.choice(graphs(model))
    order = list(graph.node)
    rng.shuffle(order)
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in order]
    del graph.node[:]
    graph.node.extend(copies)
    return True


def nested(model: onnx.ModelProto, rng: random.Random) -> bool:
    """One branch in the other, some of them more than protobuf reads."""
    inner = helper.make_node("Relu", ["x"], ["n0"])
    for i in range(1, rng.choice((3, 12, 20, 24, 26, 29))):
        branch = helper.make_graph([inner], "inner", [], [value(inner.output[0], None)])
        inner = helper.make_node(
            "If", ["nested_c"], [f"n{i}"], then_branch=branch, else_branch=branch if i < 8 else None
        )
    model.graph.node.append(inner)
    model.graph.initializer.append(helper.make_tensor("nested_c", P.BOOL, [], [True]))
    return True


# -- attributes ------------------------------------------------------------------------------------------------------


def attribute_number(model: onnx.ModelProto, rng: random.Random) -> bool:
    a = pick(rng, attributes(model, "INT", "INTS", "FLOAT", "FLOATS"))
    if a is None:
        return False
    if a.type == onnx.AttributeProto.INT:
        a.i = rng.choice(ODD)
    elif a.type == onnx.AttributeProto.FLOAT:
        a.f = rng.choice(FLOATS)
    elif a.type == onnx.AttributeProto.INTS:
        what = rng.randrange(3)
        a.ints[:] = [] if what == 0 else [*a.ints, rng.choice(ODD)] if what == 1 else [rng.choice(ODD) for _ in a.ints]
    else:
        a.floats[:] = [rng.choice(FLOATS)] * rng.choice((0, 1, 9))
    return True


def attribute_type(model: onnx.ModelProto, rng: random.Random) -> bool:
    a = pick(rng, attributes(model))
    if a is None:
        return False
    if rng.random() < 0.5:
        a.type = rng.choice([*onnx.AttributeProto.AttributeType.values(), 99])
    else:
        given: Any = rng.choice(
            (1, 0.5, "text", [1, 2], [0.5], ["a"], helper.make_tensor("t", P.FLOAT, [1], [1.0]), b"\xff\xfe")
        )
        a.CopyFrom(helper.make_attribute(a.name, given))
    return True


def attribute_name(model: onnx.ModelProto, rng: random.Random) -> bool:
    n = pick(rng, [n for n in nodes(model) if n.attribute])
    if n is None:
        return False
    what = rng.randrange(3)
    if what == 0:
        del n.attribute[rng.randrange(len(n.attribute))]
    elif what == 1:
        n.attribute.add().CopyFrom(rng.choice(list(n.attribute)))
    else:
        rng.choice(list(n.attribute)).name = rng.choice(("", "axis", "odd", "body"))
    return True


def reference_attribute(model: onnx.ModelProto, rng: random.Random) -> bool:
    a = pick(rng, attributes(model))
    if a is not None:
        a.ref_attr_name = rng.choice(("slope", "nowhere"))
    return a is not None


def subgraph(model: onnx.ModelProto, rng: random.Random) -> bool:
    """A branch gone, or an input or output too many or too few inside of one."""
    holders = [n for n in nodes(model) if any(a.HasField("g") for a in n.attribute)]
    n = pick(rng, holders)
    if n is None:
        return False
    at = rng.choice([i for i, a in enumerate(n.attribute) if a.HasField("g")])
    g = n.attribute[at].g
    what = rng.randrange(6)
    if what == 0:
        del n.attribute[at]
    elif what == 1 and g.output:
        del g.output[-1]
    elif what == 2 and g.output:
        g.output.add().CopyFrom(g.output[0])
    elif what == 3:
        g.input.append(value("more", [2], P.FLOAT))
    elif what == 4 and g.input:
        del g.input[-1]
    else:
        del g.node[:]
    return True


# -- functions -------------------------------------------------------------------------------------------------------


def function(model: onnx.ModelProto, rng: random.Random) -> bool:
    f = pick(rng, model.functions)
    if f is None:
        return False
    what = rng.randrange(7)
    if what == 0:
        f.node.append(helper.make_node(f.name, list(f.input), ["again"], domain=f.domain))
    elif what == 1:
        f.name = rng.choice(("", "Relu", "inner", "outer"))
    elif what == 2:
        model.functions.add().CopyFrom(f)
    elif what == 3:
        del f.opset_import[:]
    elif what == 4:
        f.input.append("more")
    elif what == 5:
        del f.output[:]
    else:
        model.functions.remove(f)
    return True
