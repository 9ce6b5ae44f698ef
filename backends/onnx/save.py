"""Write an ONNX model: a small model file and its external data, tensor by tensor, whole or not at all."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import onnx
import onnx_ir

from ...ir.errors import LoweringError, WeightsError
from ...ir.files import staged
from ...ir.graph import Graph
from ...ir.weights import Tensor
from ...passes.manager import Pipeline
from .lower import lower
from .rewrites import PORTABLE

_checker: Any = onnx.checker
Progress = Callable[[int, int, str], None]

INLINE_BYTES = 1024
"""Tensors up to this size are written into the model file: shapes and scalars, which readers look at."""
_LARGE, _LARGE_ALIGNMENT, _ALIGNMENT = 1 << 20, 1 << 16, 64
"""Large tensors start on an allocation unit (64 KiB on Windows), so that every runtime can map them."""


@dataclass(frozen=True)
class Placed:
    """An initializer and where its bytes lie in the data file."""

    value: onnx_ir.Value
    tensor: Any
    offset: int

    @property
    def name(self) -> str:
        return self.value.name or ""


_BASE, _FACTOR = 300_000_000, 3


def memory_bound(models: Iterable[onnx_ir.Model], read: Iterable[Tensor]) -> int:
    """Most bytes of resident memory for writing models: 300 MB and three times the largest tensor.

    read: the tensors that they are made of. A tensor counts in the widest form it takes on its way: four bytes a
    number, or as it is stored.
    """
    stored = max((placed.tensor.nbytes for model in models for placed in layout(model)), default=0)
    return max(bound_of(read), _BASE + _FACTOR * stored)


def bound_of(read: Iterable[Tensor]) -> int:
    """Most bytes of resident memory for reading tensors one at a time and making others of them."""
    return _BASE + _FACTOR * max((max(t.bytes, t.bytes * 32 // t.dtype.bits) for t in read), default=0)


def aligned(end: int, size: int) -> int:
    """The first offset from `end` on at which a tensor of `size` bytes may start."""
    unit = _LARGE_ALIGNMENT if size >= _LARGE else _ALIGNMENT
    return -(-end // unit) * unit


def layout(model: onnx_ir.Model) -> list[Placed]:
    """The initializers that go to the data file, in order, each at its aligned offset."""
    placed: list[Placed] = []
    end = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= INLINE_BYTES:
            continue
        offset = aligned(end, tensor.nbytes)
        placed.append(Placed(value, tensor, offset))
        end = offset + tensor.nbytes
    return placed


def save(model: onnx_ir.Model, path: str | Path, progress: Progress | None = None, *, data: str = ".data") -> Path:
    """Write `path` (or model.onnx in it, when it is a folder) and `<name>.data` beside it; gives the model's path.

    data: another end of the data file's name. One tensor is in memory at a time. progress(bytes done, bytes in all,
    tensor just written). After an error nothing new is left and an older model is untouched; errors of the tensors
    come through as they are.
    """
    path = Path(path)
    path = path if path.suffix == ".onnx" else path / "model.onnx"
    data = f"{path.name}{data}"
    placed = layout(model)
    with staged(path.parent) as stage:
        if placed:
            with stage.open(data) as file:
                _write(file, placed, progress)
        with _external(placed, data, path.parent), stage.open(path.name) as file:
            file.write(onnx_ir.to_proto(model).SerializeToString(deterministic=True))
    if not placed:
        (path.parent / data).unlink(missing_ok=True)
    return path


def _write(file: BinaryIO, placed: list[Placed], progress: Progress | None) -> None:
    total = sum(p.tensor.nbytes for p in placed)
    done = 0
    for p in placed:
        file.write(bytes(p.offset - file.tell()))
        write_tensor(file, p.name, p.tensor)
        done += p.tensor.nbytes
        if progress is not None:
            progress(done, total, p.name)


def write_tensor(file: BinaryIO, name: str, tensor: Any) -> None:
    """Write the bytes of an ONNX tensor. Raises WeightsError unless it gives as many as it says."""
    start = file.tell()
    tensor.tofile(file)
    if file.tell() != start + tensor.nbytes:
        raise WeightsError(f"tensor {name} gave {file.tell() - start} bytes, expected {tensor.nbytes}")


@contextlib.contextmanager
def _external(placed: list[Placed], data: str, folder: Path) -> Generator[None]:
    """For the time of the block, the model's large tensors are references into the data file."""
    try:
        for p in placed:
            p.value.const_value = onnx_ir.ExternalTensor(
                data, p.offset, p.tensor.nbytes, p.tensor.dtype, shape=p.tensor.shape, name=p.name, base_dir=folder
            )
        yield
    finally:
        for p in placed:
            p.value.const_value = p.tensor


def export(
    graph: Graph,
    weights: Mapping[str, Tensor],
    folder: str | Path,
    opset: int = 23,
    *,
    pipeline: Pipeline = PORTABLE,
    progress: Progress | None = None,
) -> Path:
    """Lower and save, then have ONNX's own checker read the result; gives the path of model.onnx."""
    return checked(save(lower(graph, weights, opset, pipeline=pipeline), folder, progress))


def checked(path: Path) -> Path:
    """The path of a written model that ONNX's own checker has read. Raises LoweringError with what that says."""
    try:
        _checker.check_model(str(path), full_check=True)
    except (_checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        raise LoweringError(f"is not what the standard allows: {e}", place=path.name) from None
    return path


def count(model: onnx_ir.Model) -> dict[str, int]:
    """Nodes by op type, the most frequent first; those of branches and loops among them."""
    counts = Counter(node.op_type for node in model.graph.all_nodes())
    return dict(sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])))
