"""What only gradients see."""

from __future__ import annotations

from typing import Any

from .. import backward_reads as reads
from ..flow import Links
from ..graph import Node, Value
from ..op import Op, op, unmoved
from ..range_rules import known
from ..ranges import Range
from ..types import TensorType
from .checks import floating
from .elementwise import elementwise_links


class Detach(Op):
    """x [...], through which no gradient flows back. Outside training it is x."""

    elementwise = True
    backward_reads = reads.nothing
    flops = unmoved

    def infer(self, x: Value) -> TensorType:
        floating(x=x)
        return x.type

    def links(self, x: Value) -> Links:
        return elementwise_links(x)

    def ranges(self, node: Node, *given: Range | None) -> tuple[Range, ...]:
        return tuple(known(given))

    def numpy(self, x: Any) -> Any:
        return x

    def torch(self, torch: Any, x: Any) -> Any:
        return torch.detach(x)

    def onnx(self, op: Any, x: Any) -> Any:
        return op.Identity(x)

    def view(
        self, node: Node, strides: reads.Strides, old: tuple[int, ...], new: tuple[int, ...]
    ) -> reads.Strides | None:
        return strides


detach = op(Detach)
