"""ONNX Runtime, a library without types, imported when it is first asked for."""

from __future__ import annotations

import importlib
from typing import Any


def library() -> Any:
    """The package onnxruntime."""
    return importlib.import_module("onnxruntime")


def internals() -> Any:
    """Its compiled module: what it raises, its kernels and schemas."""
    return importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
