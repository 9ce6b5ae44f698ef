"""The likeliest token of each row, chosen where the logits are: only its number has to leave the device."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...frontends.task import LOGITS
from ...ir.errors import check
from ...ir.graph import Graph, Value
from ...ir.op import Op, op
from ...ir.ops.elementwise import constant, sub
from ...ir.ops.logic import equal, where
from ...ir.ops.reduce import argmax
from ...ir.ops.reduce import max as max_
from ...ir.types import TensorType, bf16, f32, i64
from ...passes.manager import FunctionPass

NEXT = "next_token"
"""Output i64 of the shape of the logits without their last axis: see `OrtNextToken`."""

NONE = -1
"""Given where no token can be chosen."""

_MOST = 1 << 24
"""Whole numbers up to here are exact in f32."""


class OrtNextToken(Op):
    """Index of the first largest element along the last axis of x [...,V], i64 [...]; -1 where that one is not finite.

    In ops that say what they give for equal elements; neither ArgMax of ONNX Runtime on CUDA nor its TopK does.
    """

    def infer(self, x: Value) -> TensorType:
        width = x.shape[-1]
        check(x.dtype.is_float, f"x is {x.type}, expected floats")
        check(isinstance(width, int) and width < _MOST, f"x is {x.type}, expected a last axis below {_MOST}")
        return TensorType(i64, x.shape[:-1])

    def body(self, x: Value) -> Value:
        largest = max_(x, keepdims=False)
        finite = equal(sub(largest, largest), constant(value=0, dtype=x.dtype))
        return where(finite, argmax(x, keepdims=False), constant(value=NONE, dtype=i64))

    def onnx(self, op: Any, x: Any) -> Any:
        width = x.shape[-1]
        if x.dtype is bf16:  # CUDA compares and reduces none.
            x = op.Cast(x, to=op.element_type(f32), types=[TensorType(f32, x.shape)])
        floats = x.dtype.numpy
        last = op.constant(np.array([-1], np.int64))
        # NaN equals nothing, itself included; as infinity it is the largest, and is refused as that.
        known = op.Where(op.Equal(x, x), x, op.constant(np.array(np.inf, floats)))
        largest = op.ReduceMax(known, last, keepdims=1)
        places = op.constant(np.arange(width, dtype=np.float32))
        beyond = op.constant(np.array(width, np.float32))
        first = op.ReduceMin(op.Where(op.Equal(known, largest), places, beyond), last, keepdims=0)
        finite = op.Less(op.Abs(op.ReduceMax(known, last, keepdims=0)), op.constant(np.array(np.inf, floats)))
        return op.Where(finite, op.Cast(first, to=op.element_type(i64)), op.constant(np.array(NONE, np.int64)))


next_token = op(OrtNextToken)


def choose_tokens(graph: Graph) -> int:
    """Give a graph that remembers what it reads the output `next_token`; 1 if its logits allow it, else 0."""
    logits = graph.outputs.get(LOGITS)
    remembers = any(s.output for s in graph.slots)
    if logits is None or not remembers or not logits.dtype.is_float or not isinstance(logits.shape[-1], int):
        return 0
    if NEXT in graph.outputs or logits.shape[-1] >= _MOST:
        return 0
    with graph.at(None, logits.producer.location if logits.producer is not None else None):
        graph.output(NEXT, next_token(logits))
    return 1


CHOOSE = FunctionPass("choose_tokens", choose_tokens)
