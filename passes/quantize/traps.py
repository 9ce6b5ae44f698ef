"""Layers whose activations do not bear 8 bits, found with the arithmetic of the kernels that round them.

Where one channel is much larger than the others of its block, all of them are rounded to its steps, and what they said
is lost: greedy tokens change without any sign of it. (onnxruntime#29849)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...ir.encodings import Encoding
from ...ir.graph import Graph
from ...ir.tensors import Tensor
from .activations import relative_error, rounded_by_block
from .calibration import matrix
from .scaling import sampled
from .statistics import gathered
from .stream import Group, Sample, Stream

MOST, MOST_BY_ROW = 0.03, 0.1
"""Relative error of a layer's output from which its activations are taken whole: rounded by blocks, by rows. Weights in
4 bits alone make about 0.1 and in 8 bits 0.007; of SmolLM2, over blocks of 32, half of all layers are off by less than
0.008, the worst by 0.031, and those behind a channel that is 200 times larger by 0.03 to 0.09. By rows a quarter of its
layers are off by 0.03 to 0.1, as whoever asks for that form has to expect."""


@dataclass(frozen=True)
class Trap:
    """A layer that rounding its activations changes. error: relative, of its output. channel: the largest one.

    times: by how much that is larger than the median channel.
    """

    weight: str
    error: float
    channel: int
    times: float

    def __str__(self) -> str:
        return (
            f"activations in 8 bits change its output by {self.error:.1%}: "
            f"channel {self.channel} is {self.times:.0f} times the median"
        )


def traps(
    graph: Graph,
    weights: Mapping[str, Tensor],
    encodings: Mapping[str, Encoding],
    samples: Sequence[Sample],
    scratch: Path,
) -> dict[str, Trap]:
    """By name of the weight, the layers among `encodings` that activations in 8 bits change too much.

    encodings: of weights that are multiplied by activations rounded to 8 bits.
    """
    found: dict[str, Trap] = {}

    def watch(group: Group) -> dict[str, Tensor]:
        wanted = [layer for layer in group.layers if layer.weight in encodings]
        if not wanted:
            return {}
        seen = gathered(group)
        for layer in wanted:
            w = sampled(matrix(layer, weights))
            y = seen.rows @ w.T
            block = encodings[layer.weight].block
            error = relative_error(rounded_by_block(seen.rows, block) @ w.T, y)
            if error > (MOST if block else MOST_BY_ROW):
                channel = int(seen.largest.argmax())
                usual = max(float(sorted(seen.largest)[len(seen.largest) // 2]), 1e-30)
                found[layer.weight] = Trap(layer.weight, error, channel, float(seen.largest[channel]) / usual)
        return {}

    Stream(graph, weights, samples, scratch).watch(watch)
    return found
