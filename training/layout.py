"""How one model lies over the processes of a run: whose part of which parameter is where, and how parts are joined."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ..backends.torch import to_torch
from ..backends.torch.tensors import to_array
from ..backends.torch.untyped import all_gather, all_reduce, scale_all, square_of_norm
from ..ir.graph import Graph
from ..ir.tensors import Array
from ..ir.weights import Weights
from ..passes.pipelines import train as train_pipeline
from ..passes.shard import Plan, plan
from ..passes.shard_apply import local_graph
from .world import World


@dataclass(frozen=True)
class Piece:
    """A block of a parameter that lies here: where it begins in the whole tensor, and its elements (a view)."""

    offsets: tuple[int, ...]
    tensor: torch.Tensor


def local(t: torch.Tensor) -> torch.Tensor:
    """The elements of a tensor that lie on this process, not copied."""
    return t.to_local() if isinstance(t, DTensor) else t


class Layout:
    """The parameters of `graph` over the processes of `world`: cut by tensor parallelism, then sharded by FSDP."""

    def __init__(self, world: World, graph: Graph) -> None:
        self.world = world
        self.plan: Plan | None = plan(graph, world.tensor) if world.tensor > 1 else None

    # -- the module ------------------------------------------------------------------------------------------------

    def build(self, graph: Graph, weights: Weights, **how: Any) -> nn.Module:
        """What this process computes of the graph, with its part of the weights, on its device.

        how: arguments of `to_torch`.
        """
        if self.plan is not None:
            group: str = self.world.tensor_group.group_name
            graph, weights = local_graph(self.plan, self.world.tensor_rank, group), self.take(weights)
        module = to_torch(train_pipeline(graph), weights, blocks=self.world.sharded, **how)
        return module.to(self.world.device)

    def take(self, weights: Weights) -> Weights:
        """Of whole weights the parts that lie here, before FSDP."""
        return weights if self.plan is None else Weights(self.plan.take(weights, self.world.tensor_rank))

    def shard(self, module: Any) -> Any:
        """Under FSDP: every layer, and what is left, keeps a part of each parameter and gathers it when it runs."""
        if self.world.sharded:
            mesh = self.world.data_mesh
            layers = [m for k, m in module.named_modules() if k and isinstance(m, fx.GraphModule)]
            for m in [*layers, module]:
                fully_shard(m, mesh=mesh)
        return module

    def parallel(self, module: Any) -> Any:
        """What is called in training: adds the gradients of all parts of a batch."""
        if self.world.data == 1 or self.world.sharded:
            return module
        ids = [torch.device(self.world.device)] if self.world.device.startswith("cuda") else None
        # Buffers are constants and frozen codes: the same everywhere, and in QLoRA most of the model.
        group = self.world.data_group
        return DistributedDataParallel(module, device_ids=ids, process_group=group, broadcast_buffers=False)

    @contextlib.contextmanager
    def gradients(self, module: Any, wrapped: Any, last: bool) -> Generator[None]:
        """Around forward and backward of one part of a batch: only the last one exchanges gradients."""
        if self.world.sharded:
            module.set_requires_gradient_sync(last)
        wait = isinstance(wrapped, DistributedDataParallel) and not last
        with wrapped.no_sync() if wait else contextlib.nullcontext():
            yield

    def clip(self, named: Iterable[tuple[str, nn.Parameter]], most: float) -> float:
        """Scale gradients so that the norm over all processes is at most `most`; gives the norm before."""
        found = [(k, local(p.grad)) for k, p in named if p.grad is not None]
        squares = torch.zeros(2, dtype=torch.float64, device=self.world.device)
        for k, g in found:
            squares[int(self.is_cut(k))] += square_of_norm(g)
        if self.world.sharded:
            all_reduce(squares, self.world.data_group)
        if self.plan is not None:
            all_reduce(squares[1:], self.world.tensor_group)
        norm = squares.sum().sqrt()
        scale = torch.clamp(most / (norm + 1e-6), max=1.0).float()
        scale_all([g for _, g in found], scale)
        return norm.item()

    def is_cut(self, name: str) -> bool:
        return self.plan is not None and name in self.plan.splits

    # -- parts and wholes --------------------------------------------------------------------------------------------

    def whole(self, name: str, t: torch.Tensor) -> Array:
        """A parameter, or a tensor like one, with all its parts. Every process must ask for it."""
        t = t.detach()
        here = t.full_tensor() if isinstance(t, DTensor) else t
        if self.plan is None or name not in self.plan.splits:
            return to_array(here)
        parts = [torch.empty_like(here, memory_format=torch.contiguous_format) for _ in range(self.world.tensor)]
        all_gather(parts, here.contiguous(), self.world.tensor_group)
        return self.plan.splits[name].join([to_array(p) for p in parts])

    def shape(self, name: str, t: torch.Tensor) -> tuple[int, ...]:
        """Of the whole parameter."""
        if self.plan is None or name not in self.plan.splits:
            return tuple(t.shape)
        return tuple(d for d in self.plan.splits[name].type.shape if isinstance(d, int))

    def pieces(self, name: str, t: torch.Tensor) -> list[Piece]:
        """The blocks of the whole parameter that lie here."""
        here = local(t.detach())
        begin = self._first_row(t) if isinstance(t, DTensor) else 0
        if self.plan is None or name not in self.plan.splits:
            return _piece((begin,) + (0,) * (here.ndim - 1), here) if here.ndim else [Piece((), here)]
        split, found, at = self.plan.splits[name], list[Piece](), 0
        for start, length in split.pieces(self.world.tensor_rank, self.world.tensor):
            offsets = [begin] + [0] * (here.ndim - 1)
            if split.axis:
                offsets[split.axis], low, size = start, at, length
            else:
                low, high = max(at, begin), min(at + length, begin + len(here))
                offsets[0], low, size = start + low - at, low - begin, high - low
            if size > 0:
                found += _piece(tuple(offsets), here.narrow(split.axis, low, size))
            at += length
        return found

    def _first_row(self, t: DTensor) -> int:
        """FSDP deals the rows of a parameter like torch.chunk."""
        each = -(-t.shape[0] // self.world.data)
        return min(self.world.data_rank * each, t.shape[0])


def _piece(offsets: tuple[int, ...], t: torch.Tensor) -> list[Piece]:
    return [Piece(offsets, t)] if t.numel() else []


def unread(module: nn.Module) -> set[str]:
    """Parameters that belong to the checkpoint but not to the computation: no gradient ever reaches them."""
    modules = cast(Iterable[tuple[str, nn.Module]], module.named_modules())
    inner = [(k, m) for k, m in modules if isinstance(m, fx.GraphModule)]
    names = ((k, n) for k, m in inner for n in m.graph.nodes if n.op == "get_attr" and not n.users)
    return {f"{k}.{n.target}" if k else str(n.target) for k, n in names}
