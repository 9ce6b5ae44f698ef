"""The processes of a run: who they are, and how they agree. Alone, all of it is free."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..backends.torch.untyped import all_reduce
from ..ir.errors import ConfigError, MonographError
from .errors import TrainingError
from .settings import Settings

T = TypeVar("T")
_DATA, _TENSOR = "data", "tensor"


def rank_here() -> int:
    """The number of this process among those that `torchrun` started, or of the process group; 0 alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    return int(os.environ.get("RANK", "0"))


def size_here() -> int:
    """How many processes `torchrun` started, or the process group has; 1 alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_lost(e: RuntimeError) -> bool:
    """Whether an error says that another process does not answer; gloo has no class of its own for it."""
    return isinstance(e, distributed.DistError) or "gloo" in str(e)


@contextlib.contextmanager
def left_on_error() -> Generator[None]:
    """Where the block ends in an error, a process group that was made in it is left: others wait for no one in vain."""
    there = distributed.is_available() and distributed.is_initialized()
    try:
        yield
    except BaseException:
        if not there and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
        raise


@dataclass(frozen=True)
class World:
    """`size` processes in `size // tensor` groups of `tensor`: a group shares its layers, the groups share the rows.

    Neighbouring ranks are in one tensor-parallel group. started: the process group was made for this run.
    """

    rank: int = 0
    size: int = 1
    tensor: int = 1
    sharded: bool = False
    mesh: DeviceMesh | None = None
    device: str = "cpu"
    started: bool = False

    @staticmethod
    def of(settings: Settings) -> World:
        """The process group there is, the one that `torchrun` wants, or one process. Raises ConfigError."""
        assert settings.device is not None
        there = distributed.is_available() and distributed.is_initialized()
        if size_here() == 1 and not there:
            _check_alone(settings)
            return World(device=settings.device)
        size, tensor = size_here(), settings.tensor
        _check_layout(settings, size)
        device = _device(settings)
        if not there:
            wait = timedelta(seconds=settings.timeout)
            distributed.init_process_group("nccl" if settings.kind == "cuda" else "gloo", timeout=wait)
        mesh = init_device_mesh(settings.kind, (size // tensor, tensor), mesh_dim_names=(_DATA, _TENSOR))
        return World(distributed.get_rank(), size, tensor, settings.strategy == "fsdp", mesh, device, not there)

    @property
    def alone(self) -> bool:
        return self.mesh is None

    @property
    def first(self) -> bool:
        """Whether this process is the one that speaks and writes for all."""
        return self.rank == 0

    @property
    def data(self) -> int:
        """How many parts the rows of a batch are dealt in."""
        return self.size // self.tensor

    @property
    def data_rank(self) -> int:
        return self.rank // self.tensor

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor

    @property
    def data_mesh(self) -> DeviceMesh:
        assert self.mesh is not None
        return self.mesh[_DATA]

    @property
    def data_group(self) -> Any:
        return self.data_mesh.get_group()

    @property
    def tensor_group(self) -> Any:
        assert self.mesh is not None
        return self.mesh[_TENSOR].get_group()

    def mine(self, parts: Sequence[T]) -> list[T]:
        """This process's share of the parts of a batch; all of a tensor-parallel group have the same."""
        return list(parts[self.data_rank :: self.data])

    def sum(self, *values: float) -> list[float]:
        """Each number added over the parts of the data, the same to the last bit on every process."""
        if self.alone:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device) / self.tensor
        all_reduce(total)
        return [float(x) for x in total]

    def any(self, value: bool) -> bool:
        """Whether it is so on any process."""
        return bool(self.sum(float(value))[0])

    def told(self, function: Callable[[], T]) -> T:
        """What `function` gives on the first process, which alone calls it; its error is raised on all."""
        if self.alone:
            return function()
        result: list[Any] = [None, None]
        if self.first:
            try:
                result[0] = function()
            except Exception as e:
                result[1] = e
        # An error is told by its class and text: not every error can be sent whole.
        sent: list[Any] = [result[0], None if result[1] is None else (type(result[1]).__name__, str(result[1]))]
        distributed.broadcast_object_list(sent, src=0, device=torch.device(self.device))
        if result[1] is not None:
            raise result[1]
        if sent[1] is not None:
            kinds: dict[str, type[MonographError]] = {"ConfigError": ConfigError}
            raise kinds.get(sent[1][0], TrainingError)(sent[1][1])
        return sent[0]

    @contextlib.contextmanager
    def together(self) -> Generator[None]:
        """A block that has worked on all processes or on none: where it did, an error elsewhere is raised too."""
        failed: BaseException | None = None
        try:
            yield
        except Exception as e:
            failed = e
        if self.any(failed is not None) and failed is None:
            raise TrainingError("another process could not do it")
        if failed is not None:
            raise failed

    def close(self) -> None:
        """Leave the process group if this run made it; others that wait for this process then learn of it."""
        if self.started and distributed.is_initialized():
            distributed.destroy_process_group()


def _check_alone(settings: Settings) -> None:
    if settings.tensor > 1:
        hint = f"start it by torchrun --nproc-per-node {settings.tensor} -m monograph train ..."
        raise ConfigError(f"tensor is {settings.tensor}, but there is one process", hint=hint)


def _check_layout(settings: Settings, size: int) -> None:
    s = settings
    if size % s.tensor:
        raise ConfigError(f"{size} processes cannot be divided into tensor-parallel groups of {s.tensor}")
    parts = size // s.tensor * s.accumulate
    if s.batch % parts:
        ways = f"{size // s.tensor} ways, each in {s.accumulate} parts"
        raise ConfigError(f"a batch of {s.batch} rows cannot be shared equally {ways}")
    if s.precision == "f16" and (s.strategy == "fsdp" or s.tensor > 1):
        raise ConfigError("precision f16 needs whole gradients to find the scale of the loss", hint="take bf16")


def _device(settings: Settings) -> str:
    """With several processes on one machine each takes its own GPU."""
    assert settings.device is not None
    if settings.device != "cuda":
        return settings.device
    local = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(local)
    return f"cuda:{local}"
