"""ONNX Runtime as this backend uses it: a library without types behind a few typed functions."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
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
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(bfloat16)": np.dtype(ml_dtypes.bfloat16),
}
_CODES: dict[np.dtype[Any], int] = {np.dtype(ml_dtypes.bfloat16): 16}
"""ONNX's numbers for element types that the runtime does not know as types of NumPy."""

CAPTURE, GRAPH = "enable_cuda_graph", "gpu_graph_id"
"""Option of the CUDA provider, and of a run: which captured graph it is; UNCAPTURED: an ordinary run."""
UNCAPTURED = -1


def available_providers() -> list[str]:
    """Execution providers of the installed runtime."""
    return list(_ort.get_available_providers())


@cache
def missing_libraries() -> tuple[str, ...]:
    """Load the libraries of CUDA, those of installed packages first; the names of those that are nowhere."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        _ort.preload_dlls()
    return tuple(dict.fromkeys(re.findall(r"Failed to load (\S+?):", said.getvalue())))


def value_of(array: Array) -> OrtValue:
    """A tensor over the memory of a contiguous array on the CPU."""
    if array.dtype in _CODES:
        return _ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _CODES[array.dtype])
    return _ort.OrtValue.ortvalue_from_numpy(array)


def array_of(value: OrtValue, dtype: np.dtype[Any] | None = None) -> Array:
    """The memory of a tensor on the CPU; a copy of it where NumPy's own types have not its `dtype`."""
    return value.numpy() if dtype is None or dtype not in _CODES else content_of(value, dtype)


def uninitialized(shape: tuple[int, ...], dtype: np.dtype[Any], device: str) -> OrtValue:
    """A tensor on a device whose content is whatever was there."""
    return _ort.OrtValue.ortvalue_from_shape_and_type(list(shape), _CODES.get(dtype, dtype.type), device, 0)


def replace_content(value: OrtValue, array: Array) -> None:
    """Give a tensor on a device the content of an array of the same shape and element type."""
    value.update_inplace(_on_host(array))


def content_of(value: OrtValue, dtype: np.dtype[Any]) -> Array:
    """The content of a tensor on a device, in an array of its own."""
    if dtype not in _CODES:
        return np.array(value.numpy())
    found = np.zeros(tuple(value.shape()), dtype)
    _on_host(found).update_inplace(value)
    return found


def _on_host(array: Array) -> Any:
    """What `update_inplace` takes for an array: itself, or a tensor over its memory."""
    array = np.ascontiguousarray(array)
    return value_of(array) if array.dtype in _CODES else array


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: a part of another one's memory, or all of it in another shape or element type."""

    device: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    address: int


class Binding:
    """Tensors that a session reads and writes where they lie. options: of every run."""

    def __init__(
        self,
        session: Any,
        inputs: Mapping[str, OrtValue | Place],
        outputs: Mapping[str, OrtValue | Place | str],
        options: Any = None,
    ) -> None:
        self._session, self._binding, self._options = session, session.io_binding(), options
        for name, value in inputs.items():
            if isinstance(value, Place):
                self._binding.bind_input(name, *_place(value))
            else:
                self._binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            if isinstance(value, Place):
                self._binding.bind_output(name, *_place(value))
            elif isinstance(value, str):  # The name of a device: the runtime allocates there.
                self._binding.bind_output(name, value)
            else:
                self._binding.bind_ortvalue_output(name, value)

    def run(self) -> None:
        """Raises one of RUNTIME_ERRORS."""
        self._session.run_with_iobinding(self._binding, self._options)

    def outputs(self) -> list[OrtValue]:
        """The results of the run before, in the order they were bound."""
        return list(self._binding.get_outputs())


def _place(place: Place) -> tuple[Any, ...]:
    return place.device, 0, _CODES.get(place.dtype, place.dtype.type), list(place.shape), place.address


def _run_options(graph: int) -> Any:
    options = _ort.RunOptions()
    options.add_run_config_entry(GRAPH, str(graph))
    return options


class Loaded:
    """One session of ONNX Runtime with the names, shapes and element types of its inputs and outputs."""

    def __init__(
        self,
        path: Path | bytes,
        provider: str,
        *,
        threads: int = 1,
        settings: Mapping[str, str] | None = None,
        disabled_optimizers: Sequence[str] = (),
        provided: Mapping[str, str] | None = None,
        profile: str = "",
    ) -> None:
        """path: a file, or what one holds. provided: options of the provider. profile: how the name of the file begins
        in which the runtime notes when every kernel ran ("": it notes nothing). Raises one of RUNTIME_ERRORS."""
        options = _ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        self.profile = profile
        for key, value in (settings or {}).items():
            options.add_session_config_entry(key, value)
        self.file, given = (path.name, str(path)) if isinstance(path, Path) else ("", path)
        provided = dict(provided or {})
        self._session = _ort.InferenceSession(
            given, options, providers=[(provider, provided)], disabled_optimizers=list(disabled_optimizers)
        )
        self.captures = provided.get(CAPTURE) == "1"
        """Whether runs may be captured; then all others have to say that they are not."""
        self._plain = _run_options(UNCAPTURED) if self.captures else None

    def profiled(self) -> Path | None:
        """End the profile and give its file; None if it was opened without one."""
        return Path(self._session.end_profiling()) if self.profile else None

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
        if any(dtype in _CODES for dtype in self.dtypes.values()):
            found = self.run_values({k: value_of(np.ascontiguousarray(v)) for k, v in feeds.items()})
            return {k: array_of(v, self.dtypes[k]) for k, v in found.items()}
        names = list(self.outputs)
        return dict(zip(names, self._session.run(names, dict(feeds), self._plain), strict=True))

    def run_values(self, feeds: Mapping[str, OrtValue]) -> dict[str, OrtValue]:
        """The same, over tensors of the runtime. Raises one of RUNTIME_ERRORS."""
        names = list(self.outputs)
        return dict(zip(names, self._session.run_with_ort_values(names, dict(feeds), self._plain), strict=True))

    def bind(
        self,
        inputs: Mapping[str, OrtValue | Place],
        outputs: Mapping[str, OrtValue | Place | str],
        graph: int = UNCAPTURED,
    ) -> Binding:
        """outputs: tensors, or names of devices to allocate them on. graph: the captured graph that its runs are."""
        options = self._plain if graph == UNCAPTURED else _run_options(graph)
        return Binding(self._session, inputs, outputs, options)

    def release(self, graph: int) -> None:
        """Let go of a captured graph."""
        self._session.release_captured_graph(graph)
