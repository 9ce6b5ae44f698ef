"""What is done to a valid ONNX file: one change each, drawn by a seed, in its bytes, its weights or its graph."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from mutated_files_cases import value
from mutated_files_nodes import (
    FLOATS,
    ODD,
    Change,
    P,
    attribute_name,
    attribute_number,
    attribute_type,
    cycle,
    function,
    graphs,
    nested,
    node_gone_or_twice,
    nodes,
    operand,
    other_domain,
    other_format,
    other_operator,
    other_opset,
    pick,
    reference_attribute,
    result,
    shuffled,
    subgraph,
    tensors,
)

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
    """Graphs in attributes of nodes in graphs: fields 1 of a graph, 5 of a node, 6 of an attribute."""
    heads: list[bytes] = []
    length = 0
    for _ in range(rng.choice((40, 1000, 20000))):
        for field in (6, 5, 1):
            heads.append(bytes([field << 3 | 2]) + _varint(length))
            length += len(heads[-1])
    return data + bytes([7 << 3 | 2]) + _varint(length) + b"".join(reversed(heads))


def _varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found, number = found + bytes([number & 127 | 128]), number >> 7
    return found + bytes([number])


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (cut, flipped, flipped, flipped, repeated, filled, deep)
CHANGES: tuple[Change, ...] = (
    other_size,
    other_rank,
    other_type,
    raw_length,
    both_data,
    odd_numbers,
    missing_tensor,
    same_tensor_twice,
    renamed_tensor,
    sparse_numbers,
    moved_data,
    moved_data,
    lied_location,
    declared_size,
    declared_rank,
    declared_type,
    declared_name,
    declared_inside,
    other_operator,
    other_domain,
    other_opset,
    other_format,
    operand,
    operand,
    result,
    node_gone_or_twice,
    cycle,
    shuffled,
    nested,
    attribute_number,
    attribute_number,
    attribute_type,
    attribute_name,
    reference_attribute,
    subgraph,
    subgraph,
    function,
    function,
)


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
