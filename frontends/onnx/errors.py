"""What goes wrong while an ONNX file is read."""

from __future__ import annotations

from ...ir.errors import MonographError


class OnnxFileError(MonographError):
    """An ONNX file is damaged, lies about sizes, points outside its folder, or breaks the standard."""


class UntypedError(OnnxFileError):
    """Nothing says the rank or the element type of a value, or it is no tensor: the graph stays whole."""


class Unmapped(Exception):
    """A use of an operator has no form in the IR's primitives: the node stays foreign. Its text says why."""
