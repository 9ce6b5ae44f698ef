"""Foreign nodes: operators of another format that the IR does not know, carried as they are."""

from __future__ import annotations

from typing import Any, ClassVar

from .. import backward_reads as reads
from .. import shard_rules
from ..errors import LoweringError, check
from ..flow import Link, Links
from ..graph import Attributes, Value
from ..op import Op, unmoved
from ..types import Dim, DType, TensorType

Fields = tuple[tuple[str, Any], ...]
"""Attributes of a node by name, in the order of its file."""
Types = tuple[tuple[DType, tuple[int | Dim, ...]], ...]


class Foreign(Op):
    """An operator `name` of `domain` at `version` that the IR does not know, with attributes as its file has them.

    The frontend that reads the format derives from this class and says how such a node runs. types: of the outputs; a
    symbol that no operand has is a size that only the result shows. absent: places of inputs that are left out, which
    the operands skip; skipped: those of outputs that nobody asked for. captures: names by which subgraphs read the
    last operands, if there are subgraphs.
    """

    folds: ClassVar[bool] = False
    as_typed: ClassVar[bool] = True
    unresolved: ClassVar[frozenset[str]] = frozenset({"types"})
    backward_reads = reads.everything
    shard = shard_rules.needs_all
    flops = unmoved

    def infer(
        self,
        x: Value | None = None,
        *xs: Value,
        domain: str,
        name: str,
        version: int,
        fields: Fields,
        types: Types,
        absent: tuple[int, ...] = (),
        skipped: tuple[int, ...] = (),
        captures: tuple[str, ...] = (),
    ) -> tuple[TensorType, ...]:
        check(bool(types), f"{name} has no outputs")
        check(version >= 1, f"{name} is of version {version}, expected at least 1")
        return tuple(TensorType(dtype, shape) for dtype, shape in types)

    def links(self, *xs: Value | None, **attributes: Any) -> Links:
        """Every element may read everything."""
        outputs = range(len(attributes["types"]))
        given = [(i, axis) for i, v in enumerate(xs) if v is not None for axis in range(v.rank)]
        return tuple(Link(i, axis, None, output) for i, axis in given for output in outputs)

    def numpy(self, *xs: Any, **attributes: Any) -> Any:
        raise LoweringError(f"nothing here says how {_shown(attributes)} runs: import the frontend that brought it")

    def torch(self, torch: Any, *xs: Any, **attributes: Any) -> Any:
        raise LoweringError(f"{_shown(attributes)} is a foreign node, which PyTorch has no form of")

    def onnx(self, op: Any, *xs: Any, **attributes: Any) -> Any:
        return op.foreign(xs, **attributes)


def _shown(attributes: Attributes) -> str:
    return f"{attributes['domain']}.{attributes['name']}".lstrip(".")
