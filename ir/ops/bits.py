"""Elementwise primitives on the bits of integers."""

from __future__ import annotations

from typing import Any, ClassVar

from .. import backward_reads as reads
from ..errors import check
from ..graph import Value
from ..op import binary, op
from ..types import TensorType, bool_
from .elementwise import Binary, Unary


def _integers(**operands: Value) -> None:
    for name, v in operands.items():
        check(not v.dtype.is_float and v.dtype != bool_, f"{name} is {v.dtype}, expected an integer type")


class Bitwise(Binary):
    commutative = True
    backward_reads = reads.nothing
    torch_name: ClassVar[str]

    def infer(self, x: Value, y: Value) -> TensorType:
        _integers(x=x)
        return self.broadcast(x, y)


class BitwiseAnd(Bitwise):
    """The bits that are set in x and in y, broadcast."""

    torch_name, onnx_name = "bitwise_and", "BitwiseAnd"


class BitwiseOr(Bitwise):
    """The bits that are set in x or in y, broadcast."""

    torch_name, onnx_name = "bitwise_or", "BitwiseOr"


class BitwiseXor(Bitwise):
    """The bits that are set in one of x and y, broadcast."""

    torch_name, onnx_name = "bitwise_xor", "BitwiseXor"


class BitwiseNot(Unary):
    """The bits that are not set in x [...]."""

    torch_name, onnx_name = "bitwise_not", "BitwiseNot"
    backward_reads = reads.nothing

    def infer(self, x: Value) -> TensorType:
        _integers(x=x)
        return x.type

    def numpy(self, x: Any) -> Any:
        return ~x


bitwise_and, bitwise_or, bitwise_xor = binary(BitwiseAnd), binary(BitwiseOr), binary(BitwiseXor)
bitwise_not = op(BitwiseNot)
