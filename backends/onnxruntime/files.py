"""Write several variants of one model: a small file each, and one data file with every weight once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import onnx_ir

from ...ir.files import Stage
from ...ir.graph import Node, Value
from ...ir.weights import Computed, Mapped, StoredTensor, Tensor
from ..onnx.save import aligned, layout, write_tensor
from ..onnx.tensors import WeightTensor

DATA = "model.onnx.data"

Progress = Callable[[int, int, str], None]


def write_variants(stage: Stage, variants: Mapping[str, onnx_ir.Model], progress: Progress | None = None) -> int:
    """Stage the models by file name and the data file they share; gives the bytes of the data file.

    One tensor is in memory at a time. Raises MonographError if two variants mean different bytes by one name.
    """
    tensors, offsets = _shared(variants)
    total = sum(t.nbytes for t in tensors.values())
    done = 0
    with stage.open(DATA) as file:
        for name, tensor in tensors.items():
            file.write(bytes(offsets[name] - file.tell()))
            write_tensor(file, name, tensor)
            done += tensor.nbytes
            if progress is not None:
                progress(done, total, name)
        size = file.tell()
    for name, model in variants.items():
        _refer(model, offsets)
        with stage.open(name) as file:
            file.write(onnx_ir.to_proto(model).SerializeToString(deterministic=True))
    return size


def _shared(variants: Mapping[str, onnx_ir.Model]) -> tuple[dict[str, Any], dict[str, int]]:
    """Every large initializer by name, and the offset where its bytes go."""
    tensors: dict[str, Any] = {}
    for variant, model in variants.items():
        for placed in layout(model):
            name = placed.name
            if not isinstance(placed.tensor, WeightTensor):
                # A constant is numbered within its own graph; its content is its name here.
                name = f"{variant}:{name}"
            known = tensors.setdefault(name, placed.tensor)
            if known is not placed.tensor and _meaning(known.tensor) != _meaning(placed.tensor.tensor):  # type: ignore[attr-defined]
                name = f"{variant}:{name}"  # The same weight in the order, or the bits, of another kernel.
                tensors[name] = placed.tensor
            placed.value.meta["stored"] = name
    offsets: dict[str, int] = {}
    end = 0
    for name, tensor in tensors.items():
        offsets[name] = aligned(end, tensor.nbytes)
        end = offsets[name] + tensor.nbytes
    return tensors, offsets


def _refer(model: onnx_ir.Model, offsets: Mapping[str, int]) -> None:
    for value in model.graph.initializers.values():
        meta, tensor = cast("Mapping[str, Any]", value.meta), value.const_value
        stored = meta.get("stored")
        if stored is not None and tensor is not None:
            shape = onnx_ir.Shape(tensor.shape.numpy())
            value.const_value = onnx_ir.ExternalTensor(
                DATA, offsets[stored], tensor.nbytes, tensor.dtype, shape=shape, name=value.name or ""
            )


def _meaning(tensor: Tensor) -> object:
    """What a lazy tensor stands for: equal for two that give the same bytes by the same expression."""
    if isinstance(tensor, Computed):
        return "computed", str(tensor.type), _expression(tensor.value)
    if isinstance(tensor, Mapped):
        return "mapped", str(tensor.type), _meaning(tensor.source)
    if isinstance(tensor, StoredTensor):
        return "stored", tensor.name, str(tensor.type), tensor.span
    return id(tensor)


def _expression(v: Value) -> object:
    if v.producer is None:
        return v.name
    node: Node = v.producer
    return node.op.name, str(sorted(node.attributes.items())), tuple(_expression(a) for a in node.arguments)
