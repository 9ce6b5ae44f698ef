"""What makes ONNX Runtime end the process, or take all memory of a machine: known before anything runs."""

from __future__ import annotations

from ...ir.errors import RuntimeInputError
from ...ir.graph import Graph
from ...ir.types import product
from .file import OnnxFile
from .initializers import place_of
from .nested import every_node

NEEDED = {("com.microsoft", "Attention"): (2, "bias")}
"""Operands that a schema lets be left out and a kernel for the CPU reads all the same, by place and name. (1.31)"""
LARGEST = 1 << 30
"""Elements of one tensor, beyond which a file is not run: the runtime computes what is constant when it opens it."""


def check_runs(file: OnnxFile, graph: Graph | None = None) -> None:
    """Raises RuntimeInputError for a node that would end the process in ONNX Runtime. graph: of the file, if known."""
    for node in graph or ():
        for v in node.outputs:
            size = product(v.shape)
            if isinstance(size, int) and size > LARGEST:
                what = f"makes {v.type}, {size} elements, and is not run beyond {LARGEST}"
                raise RuntimeInputError(what, place=f"{file.path} {node.location.scope}".strip())
    for node in every_node(file.model.graph):
        place, name = NEEDED.get((node.domain, node.op_type), (-1, ""))
        if place >= 0 and (len(node.input) <= place or not node.input[place]):
            what = f"ONNX Runtime crashes on it: operand {place} ({name}) is left out"
            raise RuntimeInputError(what, place=place_of(file.path, node), hint=f"give it a {name} of zeros")
