"""Frequencies of rotary positions that a file stores, as constants of the graph: kernels turn by tables of them."""

from __future__ import annotations

import numpy as np

from ...ir.graph import Graph, Value
from ...ir.ops.position import Rope
from ..raising.constants import Read

MOST = 1024
"""Frequencies beyond which they stay a weight."""


def write_out_frequencies(graph: Graph, read: Read | None) -> int:
    """Replace stored frequencies [R/2] that only rotations read by constants. Gives how many.

    read: the arrays of parameters; without it nothing is known of them.
    """
    stored: dict[Value, None] = {n.value("frequencies"): None for n in graph if isinstance(n.op, Rope)}
    written = 0
    for v in stored:
        if read is None or not v.is_param or not isinstance(v.shape[0], int) or v.shape[0] > MOST:
            continue
        if any(not isinstance(n.op, Rope) for n in v.users) or not np.isfinite(numbers := read(v.name)).all():
            continue
        with graph.at(next(iter(v.users))):
            graph.replace(v, graph.constant(tuple(float(x) for x in numbers), v.dtype))
        written += 1
    return written
