"""ONNX Runtime, a library without types, imported when it is first asked for."""

from __future__ import annotations

import importlib
import os
from typing import Any

from ..ir.missing import needed

MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))
"""Threads that a session may have: with many more than the machine has cores it hardly goes on."""


def library() -> Any:
    """The package onnxruntime. Raises MissingPackageError where it is not installed."""
    with needed("running a model"):
        return importlib.import_module("onnxruntime")


def internals() -> Any:
    """Its compiled module: what it raises, its kernels and schemas."""
    return importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
