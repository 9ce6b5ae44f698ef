"""How much of a device's arithmetic a step uses, by the cost model of the graph."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..backends.torch.limits import peak_flops
from ..data.batch import Batch
from ..ir.cost import at, flops_of
from ..ir.dims import bind_dims
from ..ir.graph import Graph
from ..ir.ops.linear import Linear, Matmul
from ..ir.types import Dim, DimLike
from .settings import PRECISIONS, Settings


def _backward(graph: Graph, trains: Callable[[str], bool]) -> DimLike:
    """Operations of the backward pass: each product of the forward pass again for either factor that gets a gradient.

    trains: whether a parameter gets one, by its name.
    """
    alive = {v for name, v in graph.params.items() if trains(name)}
    total: DimLike = 0
    for node in graph:
        count = sum(v in alive for v in node.arguments)
        if count:
            alive.update(node.outputs)
            forward = node.op.flops(*node.operands, **node.attributes)
            total = total + forward * (min(count, 2) if isinstance(node.op, (Linear, Matmul)) else 2)
    return total


class Arithmetic:
    """Operations of a training step on `devices` like this one. peak: operations per second of one, once measured.

    trains: whether a parameter gets a gradient, by its name.
    """

    def __init__(self, graph: Graph, devices: int = 1, trains: Callable[[str], bool] = lambda name: True) -> None:
        self.devices = devices
        self.types = {k: v.type for k, v in graph.inputs.items()}
        self.cost = flops_of(graph) + _backward(graph, trains)
        self.peak: float | None = None

    def measure_peak(self, settings: Settings) -> None:
        """Measure what the device can do at most, so that steps tell their share of it."""
        self.peak = peak_flops(settings.device or "cpu", PRECISIONS[settings.precision] or torch.float32)

    def of(self, batch: Batch) -> int:
        """Operations of a step on a batch, forward and backward."""
        sizes = bind_dims(self.types, {k: batch[k].shape for k in self.types})
        return at(self.cost.substitute(sizes) if isinstance(self.cost, Dim) else self.cost, sizes)

    def raise_peak(self, batch: Batch, seconds: float) -> None:
        """Take a step that was faster than the measured peak for a better measurement of it."""
        if self.peak is not None:
            self.peak = max(self.peak, self.of(batch) / seconds / self.devices)

    def share(self, batch: Batch, seconds: float) -> float | None:
        """Of the peak of all devices; None where it was not measured. A step that beats the peak is the new one."""
        if self.peak is None:
            return None
        found = self.of(batch) / seconds / self.devices
        self.peak = max(self.peak, found)
        return found / self.peak
