"""What can be measured: built folders, exported folders and ONNX files of anybody, modules of PyTorch.

Each is opened anew for a measurement and reads prompts and single tokens, or answers one call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .frontends.dsl import Model
from .ir.errors import ConfigError
from .ir.slots import TOKENS, Slot, Stream
from .ir.tensors import Array
from .passes import pipelines
from .portable import first_state, next_state, slots_of, stream_of

if TYPE_CHECKING:
    from .backends.onnxruntime import Session

TORCH = ("eager", "compiled")
"""What stands for the model itself, run by PyTorch."""


_SAMPLED = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32, "tensor(bool)": np.bool_}


class Runs(Protocol):
    """An opened subject. A model that continues no text has `call` alone."""

    def prefill(self, tokens: Array, lengths: Array) -> Any:
        """Read prompts i64 [B,S] anew."""
        ...

    def step(self, tokens: Array) -> Any:
        """Read one more token a row, i64 [B]."""
        ...

    def call(self, inputs: Mapping[str, Array]) -> Any:
        """One forward without state."""
        ...

    def events(self) -> list[dict[str, Any]]:
        """What the runtime noted of every kernel that ran, if it was opened with a profile."""
        ...


@dataclass(frozen=True)
class Subject:
    """Something to measure. nodes: of its main graph (0: not known). flops: of a token, less those of attention.
    moved: bytes of weights that a step reads (0: not known). open: takes a prefix for files of profiles ("": none).
    generates: whether it reads tokens one by one. takes: names, types and shapes of the inputs of a file.
    """

    name: str
    open: Callable[[str], Runs]
    nodes: int = 0
    flops: int = 0
    moved: int = 0
    generates: bool = True
    takes: tuple[tuple[str, str, tuple[Any, ...]], ...] = ()

    def sample(self, batch: int, length: int) -> dict[str, Array]:
        """Inputs whose open lengths are all `length` behind `batch` rows. Raises ConfigError for a type not known."""
        found: dict[str, Array] = {}
        for name, kind, shape in self.takes:
            if kind not in _SAMPLED:
                raise ConfigError(f"input {name} is {kind}, of which no sample is made", place=self.name)
            sizes = [d if isinstance(d, int) else length if i else batch for i, d in enumerate(shape)]
            along = np.broadcast_to(np.arange(sizes[-1] if sizes else 1), sizes)
            if kind == "tensor(float)":
                values: Array = np.sin(along)
            elif "mask" in name or kind == "tensor(bool)":
                values = np.ones(sizes)
            else:
                values = np.zeros(sizes) if "type" in name else along if "position" in name else along % 100
            found[name] = values.astype(_SAMPLED[kind])
        return found


class Built:
    """A folder that `build` wrote, by its session."""

    def __init__(self, folder: Path, threads: int, profile: str) -> None:
        from .backends.onnxruntime import open as open_session

        self.session: Session = open_session(folder, threads=threads, profile=profile)
        self.prefill, self.step, self.call = self.session.prefill, self.session.step, self.session.run

    def events(self) -> list[dict[str, Any]]:
        return [event for file in self.session.profiled() for event in read_events(file)]


class Growing:
    """A portable file: caches are inputs and outputs, handed back without a copy, and grow by one entry a step."""

    def __init__(self, file: Path, threads: int, output: str = "", profile: str = "") -> None:
        from .backends import ort

        library = ort.library()
        options = library.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        self.profile = profile
        self._value = library.OrtValue.ortvalue_from_numpy
        self.session: Any = library.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.outputs: list[str] = [o.name for o in self.session.get_outputs()]
        self.inputs: list[str] = [i.name for i in self.session.get_inputs()]
        self.slots, self.stream = slots_of(self.session), stream_of(self.session) or TOKENS
        self.state: dict[str, Any] = {}
        self.output, self.length = output or self.outputs[0], 0

    def prefill(self, tokens: Array, lengths: Array) -> Array:
        self.length = 0
        self.state = {k: self._value(v) for k, v in first_state(self.session, len(tokens)).items()}
        return self._read(tokens)

    def step(self, tokens: Array) -> Array:
        return self._read(tokens[:, None])

    def _read(self, tokens: Array) -> Array:
        start, self.length = self.length, self.length + tokens.shape[1]
        given = {k: self._value(v) for k, v in token_inputs(self.stream, tokens, start).items()}
        feeds = {k: v for k, v in {**given, **self.state}.items() if k in self.inputs}
        found = dict(zip(self.outputs, self.session.run_with_ort_values(self.outputs, feeds), strict=True))
        self.state = next_state(found, self.slots)
        return found[self.output].numpy()[:, -1]

    def call(self, inputs: Mapping[str, Array]) -> Any:
        return self.session.run(self.outputs, {k: v for k, v in inputs.items() if k in self.inputs})

    def events(self) -> list[dict[str, Any]]:
        return read_events(Path(self.session.end_profiling())) if self.profile else []


class Module:
    """The PyTorch lowering of a model, with a cache that grows where it continues a text."""

    def __init__(self, model: Model, threads: int, *, compiled: bool) -> None:
        import torch

        from .backends import torch as backend

        torch.set_num_threads(threads)
        plain = model.graph()
        decodes = model.task.generates and not model.task.separated
        graph = pipelines.decode(plain) if decodes else pipelines.encode(plain)
        module = backend.to_torch(graph, model.weights).eval()
        self.library, self.graph = torch, graph
        compiler: Any = torch  # its annotations have open parts
        self.module: Any = compiler.compile(module, dynamic=True) if compiled else module
        self.slots: tuple[Slot, ...] = tuple(graph.slots)
        self.stream = graph.stream or TOKENS
        self.state: dict[str, Any] = {}
        self.length = 0

    def prefill(self, tokens: Array, lengths: Array) -> Any:
        shapes = {
            s.input: [len(tokens), *(d if isinstance(d, int) else 0 for d in s.type.shape[1:])] for s in self.slots
        }
        self.length, self.state = 0, {k: self.library.zeros(shape) for k, shape in shapes.items()}
        return self._read(tokens)

    def step(self, tokens: Array) -> Any:
        return self._read(tokens[:, None])

    def _read(self, tokens: Array) -> Any:
        start, self.length = self.length, self.length + tokens.shape[1]
        given = {k: self.library.from_numpy(v) for k, v in token_inputs(self.stream, tokens, start).items()}
        with self.library.no_grad():
            found = self.module(**{k: v for k, v in {**given, **self.state}.items() if k in self.graph.inputs})
        self.state = {s.input: found[s.output] for s in self.slots if s.output}
        return found[next(iter(self.graph.outputs))]

    def call(self, inputs: Mapping[str, Array]) -> Any:
        from .backends.torch import to_inputs

        with self.library.no_grad():
            return self.module(**to_inputs({k: v for k, v in inputs.items() if k in self.graph.inputs}))

    def events(self) -> list[dict[str, Any]]:
        return []


def token_inputs(stream: Stream, tokens: Array, start: int) -> dict[str, Array]:
    """Ids i64 [B,S] behind `start` tokens, with a mask of ones over all of them and the positions that follow."""
    rows, count = tokens.shape
    return {
        stream.ids: np.ascontiguousarray(tokens),
        stream.mask: np.ones((rows, start + count), np.int64),
        stream.positions: np.tile(np.arange(start, start + count, dtype=np.int64), (rows, 1)),
    }


def read_events(path: Path) -> list[dict[str, Any]]:
    """The kernels of a profile of ONNX Runtime, whose file is then removed."""
    found: list[dict[str, Any]] = json.loads(path.read_text())
    path.unlink()
    return [e for e in found if e.get("cat") == "Node" and str(e["name"]).endswith("_kernel_time")]


# -- by name -----------------------------------------------------------------------------------------------------


def is_runnable(path: Path) -> bool:
    """Whether a path is an ONNX file, or a folder that has one."""
    return path.suffix == ".onnx" if path.is_file() else path.is_dir() and any(path.glob("*.onnx"))


def of_path(path: Path, threads: int) -> Subject:
    """A built folder, an exported one, or an ONNX file. Raises ConfigError for any other path."""
    from .backends.onnxruntime.contract import FILE, Contract

    if not is_runnable(path):
        raise ConfigError("is neither an ONNX file nor a folder with one", place=str(path), hint=_instead(path))
    if (path / FILE).is_file():
        contract = Contract.read(path)
        work = work_of(path / (contract.lengths or contract.masked))
        generates = contract.kind == "decoder" and not contract.encoder
        takes = () if generates else _takes(Growing(path / contract.masked, 1).session)
        return Subject(path.name, lambda profile: Built(path, threads, profile), *work, generates, takes)
    file = path if path.is_file() else _main_file(path)
    opened = Growing(file, 1)
    generates = bool(opened.slots) and opened.stream.ids in opened.inputs
    takes = _takes(opened.session)
    return Subject(path.name, lambda profile: Growing(file, threads, "", profile), *work_of(file), generates, takes)


def _instead(path: Path) -> str:
    """What to give in place of a path that has nothing to measure."""
    if str(path) in TORCH:
        return f"{path} runs a model in PyTorch: give its checkpoint, not a built folder, as what is compared with it"
    if path.exists():
        return f"build it first: monograph build {path} FOLDER"
    return "there is no such file or folder"


def _takes(session: Any) -> tuple[tuple[str, str, tuple[Any, ...]], ...]:
    return tuple((i.name, i.type, tuple(i.shape)) for i in session.get_inputs())


def of_module(model: Model, kind: str, threads: int) -> Subject:
    """The model in PyTorch: `eager` or `compiled`."""
    generates = model.task.generates and not model.task.separated
    compiled, nodes = kind == "compiled", len(list(model.graph()))
    return Subject(
        f"PyTorch {kind}", lambda _: Module(model, threads, compiled=compiled), nodes=nodes, generates=generates
    )


def _main_file(folder: Path) -> Path:
    """The graph of an exported folder that is run first."""
    for name in ("model.onnx", "decoder_model.onnx"):
        if (folder / name).is_file():
            return folder / name
    files = sorted(folder.glob("*.onnx"))
    if len(files) != 1:
        raise ConfigError(
            f"has {len(files)} ONNX files, none of which is model.onnx", place=str(folder), hint="name one"
        )
    return files[0]


def work_of(file: Path) -> tuple[int, int, int]:
    """(nodes, float operations a token, bytes of weights that a step reads) of an ONNX file; attention not counted."""
    from .backends.onnx.untyped import read_graph

    graph = read_graph(file).graph
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    kinds = {i.name: i.data_type for i in graph.initializer}
    flops = moved = 0
    for node in graph.node:
        if node.op_type not in _PRODUCTS:
            continue
        stored = [k for k in node.input if len(shapes.get(k, ())) >= 2]
        for name in stored:
            moved += int(np.prod(shapes[name])) * _BITS.get(kinds[name], 32) // 8
        said = {a.name: a.i for a in node.attribute}
        numbers = said["N"] * said["K"] if "N" in said and "K" in said else sum(int(np.prod(shapes[k])) for k in stored)
        flops += 2 * numbers
    return len(graph.node), flops, moved


_PRODUCTS = {"MatMul", "Gemm", "FusedMatMul", "MatMulNBits", "MatMulInteger", "DynamicQuantizeMatMul"}
_BITS = {1: 32, 2: 8, 3: 8, 6: 32, 7: 64, 10: 16, 11: 64, 16: 16, 21: 4, 22: 4}
"""Bits of the element types of ONNX, by number."""
