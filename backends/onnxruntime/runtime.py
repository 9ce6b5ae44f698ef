"""ONNX Runtime as this backend uses it: a library without types behind a few typed functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import ort

Array = np.ndarray[Any, Any]
OrtValue = Any
"""A tensor of the runtime."""

_ort = ort.library()
_raised = ort.internals()
_members: list[Any] = [getattr(_raised, n) for n in dir(_raised)]
RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    *(c for c in _members if isinstance(c, type) and issubclass(c, Exception)),
    RuntimeError,
)
"""What ONNX Runtime raises; its classes have no base of their own, and its bindings raise a plain one."""

_ELEMENT = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(bool)": np.dtype(np.bool_),
}


def available_providers() -> list[str]:
    """Execution providers of the installed runtime."""
    return list(_ort.get_available_providers())


def value_of(array: Array) -> OrtValue:
    """A tensor over the memory of a contiguous array on the CPU."""
    return _ort.OrtValue.ortvalue_from_numpy(array)


def array_of(value: OrtValue) -> Array:
    """The memory of a tensor on the CPU."""
    return value.numpy()


class Binding:
    """Tensors that a session reads and writes where they lie."""

    def __init__(self, session: Any, inputs: Mapping[str, OrtValue], outputs: Mapping[str, OrtValue]) -> None:
        self._session, self._binding = session, session.io_binding()
        for name, value in inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self) -> None:
        """Raises one of RUNTIME_ERRORS."""
        self._session.run_with_iobinding(self._binding)


class Loaded:
    """One session of ONNX Runtime with the names, shapes and element types of its inputs and outputs."""

    def __init__(
        self,
        path: Path,
        provider: str,
        *,
        threads: int,
        settings: Mapping[str, str],
        disabled_optimizers: Sequence[str],
    ) -> None:
        """Raises one of RUNTIME_ERRORS."""
        options = _ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        for key, value in settings.items():
            options.add_session_config_entry(key, value)
        self.file = path.name
        self._session = _ort.InferenceSession(
            str(path), options, providers=[provider], disabled_optimizers=list(disabled_optimizers)
        )

    @property
    def providers(self) -> list[str]:
        """Those that it really runs on, the main one first."""
        return list(self._session.get_providers())

    @cached_property
    def inputs(self) -> dict[str, list[Any]]:
        """Shapes by name; symbolic dimensions are text."""
        return {i.name: i.shape for i in self._session.get_inputs()}

    @cached_property
    def outputs(self) -> dict[str, list[Any]]:
        return {o.name: o.shape for o in self._session.get_outputs()}

    @cached_property
    def dtypes(self) -> dict[str, np.dtype[Any]]:
        """Element types of inputs and outputs; `object` for those that no graph of ours has, such as texts."""
        ends = (*self._session.get_inputs(), *self._session.get_outputs())
        return {x.name: _ELEMENT.get(x.type, np.dtype(object)) for x in ends}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name. Raises one of RUNTIME_ERRORS."""
        names = list(self.outputs)
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))

    def run_values(self, feeds: Mapping[str, OrtValue]) -> dict[str, OrtValue]:
        """The same, over tensors of the runtime. Raises one of RUNTIME_ERRORS."""
        names = list(self.outputs)
        return dict(zip(names, self._session.run_with_ort_values(names, dict(feeds)), strict=True))

    def bind(self, inputs: Mapping[str, OrtValue], outputs: Mapping[str, OrtValue]) -> Binding:
        return Binding(self._session, inputs, outputs)
