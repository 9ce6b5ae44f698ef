"""What is done to a valid ONNX file: one change each, drawn by a seed, in its bytes, its weights or its graph."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import helper

from mutated_files_cases import value

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


# -- tensors ---------------------------------------------------------------------------------------------------------


def other_size(model: onnx.ModelProto, rng: random.Random) -> bool:
    t = pick(rng, [t for t in tensors(model) if t.dims])
    if t is not None:
        t.dims[rng.randrange(len(t.dims))] = rng.choice(ODD)
    return t is not None


def other_rank(model: onnx.ModelProto, rng: random.Random) -> bool:
    t = pick(rng, tensors(model))
    if t is None:
        return False
    if t.dims and rng.random() < 0.5:
        del t.dims[-1]
    else:
        t.dims.extend([1] * rng.choice((1, 1, 70)))
    return True


def other_type(model: onnx.ModelProto, rng: random.Random) -> bool:
    t = pick(rng, tensors(model))
    if t is not None:
        t.data_type = rng.choice([*P.DataType.values(), 99, -1])
    return t is not None


def raw_length(model: onnx.ModelProto, rng: random.Random) -> bool:
    t = pick(rng, [t for t in tensors(model) if t.raw_data])
    if t is None:
        return False
    t.raw_data = rng.choice((t.raw_data[:-1], t.raw_data[: len(t.raw_data) // 2], t.raw_data * 2, b"\0", b""))
    return True


def both_data(model: onnx.ModelProto, rng: random.Random) -> bool:
    t = pick(rng, [t for t in tensors(model) if t.raw_data])
    if t is not None:
        field = rng.choice(("float_data", "int32_data", "int64_data", "string_data"))
        getattr(t, field).append(b"a" if field == "string_data" else 1)
        if rng.random() < 0.5:
            t.ClearField("raw_data")
    return t is not None


def odd_numbers(model: onnx.ModelProto, rng: random.Random) -> bool:
    t = pick(rng, [t for t in tensors(model) if t.raw_data and t.data_type in (P.FLOAT, P.INT64, P.INT8)])
    if t is None:
        return False
    array = onnx.numpy_helper.to_array(t).copy()
    numbers = FLOATS if t.data_type == P.FLOAT else ODD if t.data_type == P.INT64 else (-128, 127)
    array.reshape(-1)[rng.randrange(array.size)] = rng.choice(numbers)
    t.raw_data = array.tobytes()
    return True


def missing_tensor(model: onnx.ModelProto, rng: random.Random) -> bool:
    graph = pick(rng, [g for g in graphs(model) if g.initializer])
    if graph is not None:
        del graph.initializer[rng.randrange(len(graph.initializer))]
    return graph is not None


def same_tensor_twice(model: onnx.ModelProto, rng: random.Random) -> bool:
    graph = pick(rng, [g for g in graphs(model) if g.initializer])
    if graph is not None:
        graph.initializer.add().CopyFrom(rng.choice(list(graph.initializer)))
    return graph is not None


def renamed_tensor(model: onnx.ModelProto, rng: random.Random) -> bool:
    graph = pick(rng, [g for g in graphs(model) if g.initializer])
    if graph is not None:
        rng.choice(list(graph.initializer)).name = rng.choice(("", "x", "y", graph.initializer[0].name, "a/b\n%x: f32"))
    return graph is not None


def sparse_numbers(model: onnx.ModelProto, rng: random.Random) -> bool:
    found = list(model.graph.sparse_initializer)
    found += [a.sparse_tensor for n in nodes(model) for a in n.attribute if a.HasField("sparse_tensor")]
    s = pick(rng, found)
    if s is None:
        return False
    what = rng.randrange(4)
    if what == 0:
        s.dims[rng.randrange(len(s.dims))] = rng.choice(ODD)
    elif what == 1:
        array = onnx.numpy_helper.to_array(s.indices).copy()
        array.reshape(-1)[rng.randrange(array.size)] = rng.choice(ODD)
        s.indices.raw_data = array.tobytes()
    elif what == 2:
        s.ClearField(rng.choice(("values", "indices", "dims")))
    else:
        s.dims.append(4)
    return True


def moved_data(model: onnx.ModelProto, rng: random.Random) -> bool:
    t = pick(rng, [t for t in tensors(model) if t.external_data])
    if t is None:
        return False
    entry = rng.choice(list(t.external_data))
    places = (
        "../secret.bin",
        "/etc/hostname",
        "link.bin",
        "",
        ".",
        "absent.bin",
        "a\0b",
        "model.onnx",
        "C:\\w.bin",
        "./w.bin",
        "x" * 5000,
    )
    numbers = ("-4", "129", "1e3", "9" * 40, str((1 << 63) - 1), "0x10", "", "64", "\u0664", str(1 << 40))
    entry.value = rng.choice(places if entry.key == "location" else numbers)
    return True


def lied_location(model: onnx.ModelProto, rng: random.Random) -> bool:
    t = pick(rng, tensors(model))
    if t is None:
        return False
    if rng.random() < 0.5:
        t.data_location = P.DEFAULT if t.data_location == P.EXTERNAL else P.EXTERNAL
    else:
        t.external_data.add(
            key=rng.choice(("location", "offset", "length", "checksum", "")), value=rng.choice(("w.bin", "0", "8"))
        )
    return True


# -- types of inputs and outputs -------------------------------------------------------------------------------------


def declared(model: onnx.ModelProto, rng: random.Random) -> onnx.ValueInfoProto:
    graph = rng.choice(graphs(model))
    return rng.choice([*graph.input, *graph.output] or [*model.graph.input])


def declared_size(model: onnx.ModelProto, rng: random.Random) -> bool:
    dims = declared(model, rng).type.tensor_type.shape.dim
    if not dims:
        return False
    d = rng.choice(list(dims))
    if rng.random() < 0.7:
        d.dim_value = rng.choice(ODD)
    else:
        d.dim_param = rng.choice(
            ("n*n*n", "-1", "a+b-c", "9" * 30, "x y", "*" * 50, "(" * 300, "f32", "n" * 5000, "2*")
        )
    return True


def declared_rank(model: onnx.ModelProto, rng: random.Random) -> bool:
    t = declared(model, rng).type.tensor_type
    what = rng.randrange(4)
    if what == 0:
        t.ClearField("shape")
    elif what == 1 and t.shape.dim:
        del t.shape.dim[-1]
    else:
        for _ in range(rng.choice((1, 1, 100))):
            t.shape.dim.add().dim_value = 1
    return True


def declared_type(model: onnx.ModelProto, rng: random.Random) -> bool:
    v = declared(model, rng)
    what = rng.randrange(5)
    if what == 0:
        v.ClearField("type")
    elif what == 1:
        v.type.sequence_type.elem_type.CopyFrom(onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=1)))
    else:
        v.type.tensor_type.elem_type = rng.choice([*P.DataType.values(), 99, -5])
    return True


def declared_name(model: onnx.ModelProto, rng: random.Random) -> bool:
    declared(model, rng).name = rng.choice(("", "x", "y", "nowhere", "a\n%b", "return", "@w"))
    return True


def declared_inside(model: onnx.ModelProto, rng: random.Random) -> bool:
    names = [o for n in model.graph.node for o in n.output if o]
    sizes = [rng.choice([*ODD, "n"]) for _ in range(rng.randrange(5))]
    model.graph.value_info.append(value(rng.choice(names), sizes, rng.choice((1, 7, 9, 99))))
    return True


# -- nodes -----------------------------------------------------------------------------------------------------------


def other_operator(model: onnx.ModelProto, rng: random.Random) -> bool:
    names = ("Nonsense", "Loop", "If", "Scan", "Constant", "Softmax", "Shape", "Cast", "Reshape", "Concat", "Split", "Attention",
             "SequenceAt", "Optional", "ConstantOfShape", "Range", "Tile", "Expand", "LSTM", "NonZero", "", "\u00e9")  # fmt: skip
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


# -- bytes -----------------------------------------------------------------------------------------------------------


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 4))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def repeated(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start : start + rng.choice((1, 20, 400))] * 2 + data[start:]


def filled(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + bytes([rng.choice((0, 0xFF, 0x80))]) * rng.choice((1, 10, 200)) + data[start + 1 :]


def deep(data: bytes, rng: random.Random) -> bytes:
    """Graphs in attributes of nodes in graphs, thousands of times: fields 1 of a graph, 5 of a node, 6 of an attribute."""
    inner = b""
    for _ in range(rng.choice((40, 1000, 20000))):
        for field in (6, 5, 1):
            inner = bytes([field << 3 | 2]) + _varint(len(inner)) + inner
    return data + bytes([7 << 3 | 2]) + _varint(len(inner)) + inner


def _varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found, number = found + bytes([number & 127 | 128]), number >> 7
    return found + bytes([number])


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (cut, flipped, flipped, flipped, repeated, filled, deep)
CHANGES: tuple[Change, ...] = (
    other_size, other_rank, other_type, raw_length, both_data, odd_numbers, missing_tensor, same_tensor_twice, renamed_tensor,
    sparse_numbers, moved_data, moved_data, lied_location, declared_size, declared_rank, declared_type, declared_name, declared_inside,
    other_operator, other_domain, other_opset, other_format, operand, operand, result, node_gone_or_twice, cycle, shuffled, nested,
    attribute_number, attribute_number, attribute_type, attribute_name, reference_attribute, subgraph, subgraph, function, function,
)  # fmt: skip


def damage_data(folder: Path, rng: random.Random) -> str:
    """The file of weights shorter, gone, a folder or a link to itself."""
    data = folder / "w.bin"
    whole = data.read_bytes()
    data.unlink()
    what = rng.choice(("shorter", "gone", "folder", "loop"))
    if what == "shorter":
        data.write_bytes(whole[: rng.randrange(200)])
    elif what == "folder":
        data.mkdir()
    elif what == "loop":
        data.symlink_to(data.name)
    return f"data {what}"


def mutant(bases: dict[str, onnx.ModelProto], seed: int) -> tuple[str, str, bytes, bool]:
    """(name of the valid file, kind of change, bytes, whether the file of weights is damaged, too) of a seed."""
    rng = random.Random(seed)
    while True:
        name = rng.choice(sorted(bases))
        model = onnx.ModelProto()
        model.CopyFrom(bases[name])
        if rng.random() < 0.2:
            how = rng.choice(BYTES)
            return name, how.__name__, how(model.SerializeToString(), rng), False
        if name == "external" and rng.random() < 0.15:
            return name, "data file", model.SerializeToString(), True
        change = rng.choice(CHANGES)
        try:
            done = change(model, rng)
        except (ValueError, DecodeError):  # protobuf refuses the number itself.
            continue
        if done:
            return name, change.__name__, model.SerializeToString(), False
