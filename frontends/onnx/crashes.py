"""Valid uses of operators on which kernels of ONNX Runtime end the process: known before anything runs."""

from __future__ import annotations

from ...ir.errors import RuntimeInputError
from .file import OnnxFile
from .initializers import place_of
from .nested import every_node

NEEDED = {("com.microsoft", "Attention"): (2, "bias")}
"""Operands that a schema lets be left out and a kernel for the CPU reads all the same, by place and name. (1.31)"""


def check_runs(file: OnnxFile) -> None:
    """Raises RuntimeInputError for a node that would end the process in ONNX Runtime."""
    for node in every_node(file.model.graph):
        place, name = NEEDED.get((node.domain, node.op_type), (-1, ""))
        if place >= 0 and (len(node.input) <= place or not node.input[place]):
            what = f"ONNX Runtime crashes on it: operand {place} ({name}) is left out"
            raise RuntimeInputError(what, place=place_of(file.path, node), hint=f"give it a {name} of zeros")
