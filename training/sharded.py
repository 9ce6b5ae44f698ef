"""Checkpoints of which every process writes its part, by torch.distributed.checkpoint, in safetensors: no pickles.

Tensors are stored under their whole names and shapes as blocks, so a checkpoint is read into any number of processes
and any layout, and by one process without any.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from ..backends.torch.tensors import dtype_of, to_array, to_tensor
from ..backends.torch.untyped import load_checkpoint, save_checkpoint
from ..ir.errors import WeightsError
from ..ir.tensors import Array, Tensor
from ..ir.types import TensorType
from ..ir.weights import Weights
from .errors import TrainingError
from .layout import Piece

SHARDED = "sharded"
"""Folder of a checkpoint that holds the blocks of all processes."""


class Blocks:
    """The pieces of one tensor on this process, in the form in which torch.distributed.checkpoint asks for them."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, pieces: list[Piece]) -> None:
        self.shape, self.dtype = torch.Size(shape), dtype
        self.pieces = {torch.Size(p.offsets): p.tensor for p in pieces}

    def size(self) -> torch.Size:
        return self.shape

    def fill(self, tensor: Tensor) -> None:
        """Take the pieces from a whole tensor. Raises TrainingError for another shape."""
        if tensor.shape != tuple(self.shape):
            raise TrainingError(f"a tensor is {tensor.type}, expected {list(self.shape)}")
        whole = to_tensor(tensor.numpy())
        for offsets, t in self.pieces.items():
            t.copy_(whole[tuple(slice(o, o + n) for o, n in zip(offsets, t.shape, strict=True))])

    def __create_write_items__(self, fqn: str, item: Any) -> list[WriteItem]:
        properties = TensorProperties(dtype=self.dtype)
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.shape),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(offsets, t.size()) for offsets, t in self.pieces.items()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        return self.pieces[torch.Size(index.offset or ())]


class _SavePlanner(DefaultSavePlanner):
    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        return cast(dict[str, Blocks], self.state_dict)[index.fqn].__get_tensor_shard__(index)


class _LoadPlanner(DefaultLoadPlanner):
    def set_up_planner(self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False) -> None:
        # The default copies whatever is no torch.Tensor, and would fill the copy.
        self.state_dict = self.original_state_dict = state_dict
        self.metadata, self.is_coordinator = metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return cast(dict[str, Blocks], self.state_dict)[index.fqn].__get_tensor_shard__(index)


class _Writer(HuggingFaceStorageWriter):
    """A file holds one block of each tensor: of several on one process, each goes into a file of its own."""

    def _split_by_storage_plan(self, storage_plan: Any, items: list[WriteItem]) -> dict[int, list[WriteItem]]:
        files: dict[int, list[WriteItem]] = {}
        seen: dict[str, int] = {}
        for item in items:
            number = seen[item.index.fqn] = seen.get(item.index.fqn, 0) + 1
            files.setdefault(number, []).append(item)
        return files


class _Reader(HuggingFaceStorageReader):
    """Reads the headers once, however often tensors are asked for."""

    found: Metadata | None = None

    @property
    def place(self) -> str:
        return str(cast(Any, self).path)

    def read_metadata(self) -> Metadata:
        if self.found is None:
            self.found = super().read_metadata()
        return self.found


def write(folder: Path, blocks: Mapping[str, Blocks]) -> None:
    """Every process writes its part. Raises TrainingError on all of them if one cannot."""
    try:
        writer = _Writer(str(folder / SHARDED), save_distributed=True)
        save_checkpoint(blocks, storage_writer=writer, planner=_SavePlanner())
    except CheckpointException as e:
        raise TrainingError("the parts of a checkpoint cannot be written", details=_reasons(e)) from e


def read(folder: Path, blocks: Mapping[str, Blocks]) -> None:
    """Fill the pieces of every process, which must ask for the same names. Raises TrainingError."""
    try:
        planner = _LoadPlanner(flatten_state_dict=False)
        load_checkpoint(blocks, storage_reader=_Reader(str(folder / SHARDED)), planner=planner)
    except (CheckpointException, ValueError) as e:
        details = _reasons(e) if isinstance(e, CheckpointException) else [str(e)]
        raise TrainingError("the checkpoint does not fit the run", place=str(folder), details=details) from e


def _reasons(e: CheckpointException) -> list[str]:
    return [f"process {rank}: {reason[0]}" for rank, reason in sorted(e.failures.items())]


def open_sharded(folder: Path, wanted: Callable[[str], bool]) -> Weights:
    """Tensors of a sharded checkpoint, put together from their blocks one at a time when they are read."""
    reader = _Reader(str(folder / SHARDED))
    found = reader.read_metadata().state_dict_metadata
    return Weights({k: Assembled(reader, k, m) for k, m in found.items() if wanted(k)}, str(folder))


class Assembled(Tensor):
    """One tensor of a sharded checkpoint. Raises WeightsError where blocks are missing or their files are gone."""

    def __init__(self, reader: _Reader, name: str, metadata: Any) -> None:
        self.reader, self.name, self.metadata = reader, name, metadata
        self.type = TensorType(dtype_of(metadata.properties.dtype), tuple(metadata.size))

    def numpy(self) -> Array:
        covered = sum(c.sizes.numel() for c in self.metadata.chunks)
        if covered != self.metadata.size.numel():
            what = f"tensor {self.name} has {covered} of {self.metadata.size.numel()} elements"
            raise WeightsError(what, place=self.reader.place)
        whole = torch.empty(self.metadata.size, dtype=self.metadata.properties.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            try:
                load_checkpoint({self.name: whole}, storage_reader=self.reader, no_dist=True)
            except CheckpointException as e:
                what = f"tensor {self.name} cannot be read"
                raise WeightsError(what, place=self.reader.place, details=_reasons(e)) from e
        return to_array(whole)
