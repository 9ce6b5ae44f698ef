"""What the annotations of the library onnx leave open, each thing under one typed name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

_onnx: Any = onnx


def read_graph(path: Path) -> onnx.ModelProto:
    """A model without its weights. Raises what protobuf raises for a file of another kind."""
    return _onnx.load(str(path), load_external_data=False)
