"""ONNX Runtime, where it is installed: to run foreign nodes, and to ask for types of operators of its own."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from ...ir.errors import MonographError, RuntimeInputError
from ...ir.tensors import Array

LONGEST = 600.0
"""Seconds after which a run is ended: a file may hold a loop that goes on for years."""


class UnendedError(MonographError):
    """A run that was ended, since it took too long. Other inputs are not tried."""


CRASHING = ("NchwcTransformer",)
"""Steps of the optimizer that end the process where a product in f16 reads what was transposed. (1.31)"""


def open_session(model: bytes, *, optimized: bool = True) -> Any:
    """A session on the CPU. Raises ImportError without the runtime, RuntimeInputError for what it does not take."""
    ort: Any = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        left_out = list(CRASHING)
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out)
    except failures() as e:
        raise RuntimeInputError(str(e)) from None


def run_within(own: Any, names: Sequence[str], feeds: Mapping[str, Array], place: str) -> list[Any]:
    """Outputs of a session by name. Raises what the runtime raises, UnendedError for a run that does not end."""
    ort: Any = importlib.import_module("onnxruntime")
    options, ended = ort.RunOptions(), threading.Event()

    def end() -> None:
        ended.set()
        options.terminate = True

    timer = threading.Timer(LONGEST, end)
    timer.daemon = True
    timer.start()
    try:
        return own.run(list(names), dict(feeds), options)
    except failures():
        if ended.is_set():
            what = f"ONNX Runtime has not run it in {LONGEST:g} seconds"
            raise UnendedError(what, place=place, hint="a loop in it may not end") from None
        raise
    finally:
        timer.cancel()


def failures() -> tuple[type[Exception], ...]:
    """What the runtime raises: errors of its own, and those of its binding for types and texts."""
    state: Any = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
    return (*(getattr(state, name) for name in names), RuntimeError, ValueError)
