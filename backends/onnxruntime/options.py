"""Open ONNX Runtime sessions: threads, optimizers, and whether the provider that was asked for is really there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from ...ir.errors import RuntimeInputError, WeightsError
from ..target import PROVIDERS
from .contract import Contract

FLASH_OFF = "ORT_GQA_DISABLE_FLASH_ATTENTION"
"""Read when a kernel is made. Without it prompts are computed in tiles, which on small CPUs is up to twice as slow in
f32; with it scores take S*T numbers a head at once. So it is off by default, and `tune` measures."""

_ERRORS = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented", "EPFail")
RUNTIME_ERRORS: tuple[type[Exception], ...] = tuple(getattr(runtime, n) for n in (*_ERRORS, "RuntimeException"))
"""What ONNX Runtime raises; its classes have no base of their own."""
BINDING_ERRORS = (*RUNTIME_ERRORS, RuntimeError)
"""What a run over bindings raises."""

ELEMENT = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(bool)": np.dtype(np.bool_),
}


@dataclass
class Loaded:
    """One ONNX Runtime session with the names and shapes of its inputs and outputs."""

    session: ort.InferenceSession
    file: str

    @cached_property
    def inputs(self) -> dict[str, list[Any]]:
        """Shapes by name; symbolic dimensions are text."""
        return {i.name: i.shape for i in self.session.get_inputs()}

    @cached_property
    def dtypes(self) -> dict[str, np.dtype[Any]]:
        """Element types of inputs and outputs."""
        return {x.name: ELEMENT[x.type] for x in (*self.session.get_inputs(), *self.session.get_outputs())}

    @cached_property
    def outputs(self) -> dict[str, list[Any]]:
        return {o.name: o.shape for o in self.session.get_outputs()}


def physical_cores() -> int:
    """Cores this process may use; two hardware threads of one core count once where the system tells them apart."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set[object]()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(cpu)
    return max(1, len(cores))


def load(
    path: Path, contract: Contract, threads: int | None = None, *, flash: bool = True, packed: bool = True
) -> Loaded:
    """A session for one file of a built folder.

    threads: for the work inside an op (None: one a physical core). flash: tiled attention for prompts. packed: keep
    copies of the weights in the order that kernels read them; without, they are read where the file is mapped.
    Raises RuntimeInputError if the provider cannot be used, WeightsError for a damaged file.
    """
    provider = PROVIDERS.get(contract.provider)
    if provider not in ort.get_available_providers():
        available = ", ".join(ort.get_available_providers())
        what = f"the model was built for {contract.provider}, which this ONNX Runtime does not have"
        raise RuntimeInputError(what, place=str(path), details=[f"available: {available}"])
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads or physical_cores()
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    if not packed:
        settings.add_session_config_entry("session.disable_prepacking", "1")
    with _environment(FLASH_OFF, None if flash else "1"):
        try:
            session = ort.InferenceSession(
                str(path), settings, providers=[provider], disabled_optimizers=list(contract.disabled_optimizers)
            )
        except RUNTIME_ERRORS as e:
            raise WeightsError(f"ONNX Runtime cannot open it: {e}", place=str(path)) from e
    # A provider that fails to start is left out in silence, and everything runs on the CPU.
    if session.get_providers()[0] != provider:
        what = f"{provider} was asked for, but the session runs on {', '.join(session.get_providers())}"
        raise RuntimeInputError(what, place=str(path))
    return Loaded(session, path.name)


@contextlib.contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """Set a variable for the time of the block; None leaves it as it is."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if value is not None:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before
