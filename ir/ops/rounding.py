"""Elementwise primitives that round, and the sign."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backward_reads as reads
from .. import range_rules as rules
from ..op import op
from .elementwise import Signed, Unary


class Ceil(Unary):
    """The smallest integer that is at least x [...]."""

    torch_name, onnx_name = "ceil", "Ceil"
    backward_reads, ranges = reads.nothing, rules.rounded


class Round(Unary):
    """The nearest integer to x [...], of two that are equally near the even one."""

    torch_name, onnx_name = "round", "Round"
    backward_reads, ranges = reads.nothing, rules.rounded


class Sign(Signed):
    """-1, 0 or 1: the sign of x [...]."""

    kept, torch_name, onnx_name = (-1.0, 1.0), "sign", "Sign"
    backward_reads = reads.nothing

    def numpy(self, x: Any) -> Any:
        return np.sign(x).astype(x.dtype)


ceil, round, sign = op(Ceil), op(Round), op(Sign)
