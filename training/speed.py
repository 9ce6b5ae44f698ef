"""How much of a device's arithmetic a step uses, by the cost model of the graph."""

from __future__ import annotations

import torch

from ..backends.torch.limits import peak_flops
from ..data.batch import Batch
from ..ir.cost import at, flops_of
from ..ir.dims import bind_dims
from ..ir.graph import Graph
from ..ir.types import Dim
from .settings import PRECISIONS, Settings


class Arithmetic:
    """Operations of a training step on `devices` like this one. peak: operations per second of one, once measured."""

    def __init__(self, graph: Graph, devices: int = 1) -> None:
        self.devices = devices
        self.types = {k: v.type for k, v in graph.inputs.items()}
        self.cost = 3 * flops_of(graph)  # The backward pass multiplies twice for each product of the forward pass.
        self.peak: float | None = None

    def measure_peak(self, settings: Settings) -> None:
        """Measure what the device can do at most, so that steps tell their share of it."""
        self.peak = peak_flops(settings.device or "cpu", PRECISIONS[settings.precision] or torch.float32)

    def of(self, batch: Batch) -> int:
        """Operations of a step on a batch, forward and backward."""
        sizes = bind_dims(self.types, {k: batch[k].shape for k in self.types})
        return at(self.cost.substitute(sizes) if isinstance(self.cost, Dim) else self.cost, sizes)

    def share(self, batch: Batch, seconds: float) -> float | None:
        """Of the peak of all devices; None where it was not measured. A step that beats the peak is the new one."""
        if self.peak is None:
            return None
        found = self.of(batch) / seconds / self.devices
        self.peak = max(self.peak, found)
        return found / self.peak
