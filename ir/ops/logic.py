"""Elementwise primitives that decide: comparison, logic, selection."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backward_reads as reads
from .. import range_rules as rules
from ..errors import check
from ..flow import Links
from ..graph import Node, Operand, Value
from ..op import Op, OpFunction, binary, op
from ..types import DimLike, DType, TensorType, bool_, broadcast, product
from .checks import same_dtype
from .elementwise import Binary, Unary, elementwise_links, shown

_python: Any = operator
_where: Any = np.where


def _of_a_choice(node: Node) -> Value | None:
    """where(condition, a, b) compared with c, all three numbers: the condition or its opposite, if it decides."""
    for at, v in enumerate(node.arguments):
        chosen, other = v.producer, node.arguments[1 - at].number
        if chosen is None or not isinstance(chosen.op, Where) or other is None:
            continue
        numbers = [x.number for x in chosen.arguments[1:]]
        if None in numbers:
            continue
        pairs = [np.array([n, other][:: -1 if at else 1], v.dtype.numpy) for n in numbers]
        assert node.op.numpy is not None
        told = [bool(node.op.numpy(*pair)) for pair in pairs]
        condition = chosen.value("condition")
        if told[0] != told[1] and condition.type == node.output.type:
            return condition if told[0] else logical_not(condition)
    return None


class Comparison(Binary):
    backward_reads = reads.nothing
    canonical = (*Binary.canonical, _of_a_choice)

    def result(self, dtype: DType) -> DType:
        return bool_


class Equal(Comparison):
    """x == y, bool; also of bools."""

    commutative = True
    torch_name, onnx_name = "eq", "Equal"
    operator = _python.eq

    def infer(self, x: Value, y: Value) -> TensorType:
        return self.broadcast(x, y)

    def numpy(self, x: Any, y: Any) -> Any:
        return np.equal(x, y)


class Less(Comparison):
    """x < y, bool."""

    torch_name, onnx_name = "less", "Less"
    operator = _python.lt


class LessEqual(Comparison):
    """x <= y, bool."""

    torch_name, onnx_name = "less_equal", "LessOrEqual"
    operator = _python.le


class Logical(Binary):
    backward_reads = reads.nothing

    def infer(self, x: Value, y: Value) -> TensorType:
        check(x.dtype == bool_, f"x is {x.dtype}, expected bool")
        return self.broadcast(x, y)


class LogicalAnd(Logical):
    """x and y."""

    commutative = True
    torch_name, onnx_name = "logical_and", "And"


class LogicalOr(Logical):
    """x or y."""

    commutative = True
    torch_name, onnx_name = "logical_or", "Or"


class LogicalNot(Unary):
    """not x."""

    torch_name, onnx_name = "logical_not", "Not"
    backward_reads = reads.nothing

    def infer(self, x: Value) -> TensorType:
        check(x.dtype == bool_, f"x is {x.dtype}, expected bool")
        return x.type


def _same_choice(node: Node) -> Value | None:
    """where(condition, x, x) is x."""
    x = node.value("x")
    return x if x is node.value("y") and x.type == node.output.type else None


class Where(Op):
    """x where condition, else y; all broadcast."""

    elementwise = True
    canonical = (_same_choice,)
    own_dtype = frozenset({"condition"})
    backward_reads = reads.first

    def infer(self, condition: Value, x: Value, y: Value) -> TensorType:
        check(condition.dtype == bool_, f"condition is {condition.dtype}, expected bool")
        same_dtype(x.dtype, y=y)
        shape = broadcast(condition.shape, x.shape, y.shape)
        check(shape is not None, f"shapes {shown(condition)}, {shown(x)} and {shown(y)} do not broadcast")
        return TensorType(x.dtype, shape or ())

    ranges = rules.chosen

    def flops(self, condition: Value, x: Value, y: Value) -> DimLike:
        return product(broadcast(condition.shape, x.shape, y.shape) or ())

    def links(self, condition: Value, x: Value, y: Value) -> Links:
        return elementwise_links(condition, x, y)

    def numpy(self, condition: Any, x: Any, y: Any) -> Any:
        return _where(condition, x, y)

    def torch(self, torch: Any, condition: Any, x: Any, y: Any) -> Any:
        return torch.where(condition, x, y)

    def onnx(self, op: Any, condition: Any, x: Any, y: Any) -> Any:
        if x.dtype == bool_:  # The standard has it, and ONNX Runtime no kernel for it.
            return op.Or(op.And(condition, x), op.And(op.Not(condition), y))
        return op.Where(condition, x, y)


class WhereFunction(OpFunction[..., Value]):
    """`where`, of which x and y may be plain numbers."""

    if TYPE_CHECKING:

        def __call__(self, condition: Value | bool, x: Operand, y: Operand) -> Value: ...


equal, less, less_equal = binary(Equal), binary(Less), binary(LessEqual)
logical_and, logical_or, logical_not = binary(LogicalAnd), binary(LogicalOr), op(LogicalNot)
where = WhereFunction(op(Where).op)
