"""What is trained: the module, its optimizer, the scale of an f16 loss and the running average of the weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator
from typing import Any

import torch

from ..backends.torch import compiled, state_of, to_inputs
from ..backends.torch.allocator import keep_pages
from ..backends.torch.untyped import backward
from ..data.batch import Batch
from ..ir.graph import Graph
from ..ir.tensors import ArrayTensor
from ..ir.weights import Weights
from .average import Average
from .layout import Layout, unread
from .memory import budget
from .schedule import parameter_groups
from .settings import PRECISIONS, Settings
from .trained_weights import TrainedWeights, Tuned
from .world import World

_LEAST_SCALE = 2.0**-14
"""Of the loss in f16: below, something other than its range is wrong."""


class Learner:
    """The module of this process over a graph, with all that an update changes.

    rows: of a batch, over all processes. static: whether every batch has the same shape. updates: that were made;
    in f16 fewer than steps. inputs: names of the graph's inputs.
    """

    def __init__(
        self, graph: Graph, trained: TrainedWeights, settings: Settings, world: World, *, rows: int, static: bool
    ) -> None:
        self.trained, self.settings, self.world, self.static = trained, settings, world, static
        self.layout = Layout(world, graph)
        self.inputs = list(graph.inputs)
        self.weights = trained.initial(settings.seed)
        if settings.kind == "cpu":
            keep_pages()
        self.module: Any = self.layout.shard(self._built(graph, rows))
        self.wrapped = self.layout.parallel(self.module)
        self.forward = compiled(self.wrapped) if settings.compile else self.wrapped
        groups = parameter_groups(self.module, settings.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, settings.learning_rate, settings.betas, fused=True)
        self.scaler = torch.amp.GradScaler(settings.kind, enabled=settings.precision == "f16")
        self.average = Average(self.module, settings.ema) if settings.ema else None
        self.updates = 0

    def _built(self, graph: Graph, rows: int) -> Any:
        """The module, in which only what is trained gets a gradient."""
        world, settings, trains = self.world, self.settings, self.trained.trains
        frozen = [name for name in graph.params if not trains(name)]
        rows = rows // (settings.accumulate * world.data)
        limits = budget(graph, settings, rows, frozen, shared=world.sharded or world.tensor > 1)
        module = self.layout.build(graph, self.weights, static=self.static, **limits)
        idle = unread(module)
        for name, p in module.named_parameters():
            p.requires_grad_(p.requires_grad and trains(name) and name not in idle)
        return module

    # -- computing -------------------------------------------------------------------------------------------------

    def inputs_of(self, batch: Batch, *more: str) -> dict[str, torch.Tensor]:
        """The inputs of the graph, and more of a batch by name, on the device."""
        return to_inputs({k: batch[k] for k in [*self.inputs, *more]}, self.settings.on)

    def autocast(self) -> torch.autocast:
        narrow = PRECISIONS[self.settings.precision]
        return torch.autocast(self.settings.kind, narrow, enabled=narrow is not None)

    # -- an update -------------------------------------------------------------------------------------------------

    @property
    def rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def begin_update(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)

    def gradients(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around forward and backward of one share of a batch: only the last one exchanges gradients."""
        return self.layout.gradients(self.module, self.wrapped, last)

    def backward(self, loss: torch.Tensor) -> None:
        # The processes' gradients are averaged where their losses are to be added.
        backward(self.scaler.scale(loss * self.world.data if self.world.data > 1 else loss))

    def clip(self) -> float:
        """Scale the gradients down to the largest norm there may be; gives the norm before, of all of them."""
        self.scaler.unscale_(self.optimizer)
        if self.world.alone:
            return torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip).item()
        return self.layout.clip(self.module.named_parameters(), self.settings.clip)

    @property
    def may_overflow(self) -> bool:
        """Whether a gradient that is not finite only tells that the scale of the f16 loss is too large."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > _LEAST_SCALE

    def update(self, norm: float) -> None:
        """Take a step of the optimizer; in f16 it leaves out one whose gradient overflowed."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if math.isfinite(norm):
            self.updates += 1
            if self.average is not None:
                self.average.update()

    # -- weights ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def averaged(self) -> Generator[None]:
        """The module computes with the running average inside the block, if there is one."""
        with contextlib.nullcontext() if self.average is None else self.average.applied():
            yield

    def stored(self) -> Weights:
        """The weights of a checkpoint as they are now; of several processes every one must ask, and each gets all."""
        return self.trained.stored(self._now(), self.weights)

    def snapshot(self) -> Tuned:
        """The model with a copy of the weights as they are now."""
        now, here = self.stored(), self.module.state_dict()
        copies = {k: ArrayTensor(t.numpy().copy()) if k in here else t for k, t in now.items()}
        return self.trained.tuned(Weights(copies))

    def _now(self) -> Weights:
        if self.world.alone:
            return state_of(self.module)
        return Weights({k: ArrayTensor(self.layout.whole(k, t)) for k, t in self.module.state_dict().items()})
