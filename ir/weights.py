"""Weights: lazy tensors by checkpoint name, opened from and saved as safetensors, and expressions over them."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from .display import Shown, Table
from .errors import WeightsError, did_you_mean
from .files import Stage, staged
from .graph import Graph, Node, Value
from .init import Init
from .interpret import evaluate
from .safetensors import Unreadable, read_file, read_index, write_file
from .tensors import Array as Array
from .tensors import ArrayTensor as ArrayTensor
from .tensors import Mapped as Mapped
from .tensors import Random, convert, held
from .tensors import StoredTensor as StoredTensor
from .tensors import Tensor as Tensor
from .types import Dim, DType, TensorType
from .value import ancestors, leaves, type_of

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NO_WEIGHTS = "load a checkpoint, train it, or begin with random ones: mg.init(model), --random on the command line"
"""What to do about a model that has no weights yet."""

_HINTS = 8


class MissingTensorError(WeightsError, KeyError):
    """A tensor was asked for that the checkpoint does not have."""

    __str__ = Exception.__str__


class Weights(Shown, Mapping[str, Tensor]):
    """Tensors by checkpoint name, read when they are needed. `place` says where they come from, for messages."""

    def __init__(
        self, tensors: Mapping[str, Tensor], place: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        self._tensors, self.place, self.metadata = dict(tensors), place, dict(metadata or {})

    @staticmethod
    def of(arrays: Mapping[str, Array]) -> Weights:
        """Weights from arrays in memory, which are not copied."""
        return Weights({k: ArrayTensor(v) for k, v in arrays.items()})

    @staticmethod
    def open(path: str | Path) -> Weights:
        """A .safetensors file, or a folder with model.safetensors or its index; nothing but headers is read.

        Raises WeightsError naming file, tensor and numbers for anything damaged, missing or outside the folder.
        """
        path = Path(path)
        if not path.is_dir():
            return Weights(*_single(path)) if path.name != INDEX else _sharded(path)
        if (path / SINGLE).exists():
            return Weights(*_single(path / SINGLE))
        if (path / INDEX).exists():
            return _sharded(path / INDEX)
        raise WeightsError(f"has neither {SINGLE} nor {INDEX}", place=str(path), hint=_pickle_hint(path))

    @staticmethod
    def initialize(graph: Graph, seed: int = 0, default: Init | None = None) -> Weights:
        """Random weights for training from nothing, by each parameter's `Init` (None: `default`).

        A parameter's values depend on its name, shape and the seed only. Raises WeightsError listing the
        parameters that have no Init when there is no default. Buffers and frozen parameters are not drawn.
        """
        drawn = {k: v for k, v in graph.params.items() if v.init is None or v.init.trains}
        found = {k: v.init or default for k, v in drawn.items()}
        lost = [k for k, init in found.items() if init is None]
        if lost:
            raise WeightsError(f"{len(lost)} parameters of {graph.name} do not say how they start", details=lost)
        return Weights({k: Random(k, graph.params[k].type, init, seed) for k, init in found.items() if init})

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            what = f"no tensor is called {name!r}{did_you_mean(name, self._tensors)}"
            raise MissingTensorError(what, place=self.place) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __or__(self, other: Mapping[str, Tensor]) -> Weights:
        """These weights with those of `other` added or put in their place."""
        return Weights({**self._tensors, **other}, self.place, self.metadata)

    def table(self) -> Table:
        """How many tensors there are, how large, in which types; nothing is read."""
        from .summary import weights_table

        return weights_table(self)

    @property
    def bytes(self) -> int:
        """Bytes of all tensors, as they are stored."""
        return sum(t.bytes for t in self._tensors.values())

    def numpy(self, name: str, dtype: DType | None = None) -> Array:
        """The values of one tensor, converted to another float (or integer) width if asked. Raises WeightsError."""
        x = self[name].numpy()
        return x if dtype is None else convert(x, dtype)

    def cast(self, dtype: DType) -> Weights:
        """The same weights with every float tensor converted to `dtype` when read."""
        cast = {k: t.cast(dtype) if t.dtype.is_float else t for k, t in self._tensors.items()}
        return Weights(cast, self.place, self.metadata)

    def renamed(self, name: Callable[[str], str]) -> Weights:
        """The same tensors under the names that `name` gives. Raises WeightsError if two get the same."""
        found: dict[str, Tensor] = {}
        for old, tensor in self._tensors.items():
            if name(old) in found:
                raise WeightsError(f"tensor {old} would be a second {name(old)}", place=self.place)
            found[name(old)] = tensor
        return Weights(found, self.place, self.metadata)

    def check(self, graph: Graph, ignore: Iterable[str] = ()) -> None:
        """Raise one WeightsError that lists every missing tensor, every unexpected one and every wrong shape.

        ignore: shell patterns of names that may be present without being used, such as "lm_head.*".
        """
        patterns = tuple(ignore)
        missing = [k for k in graph.params if k not in self]
        extra = [k for k in self if k not in graph.params and not any(fnmatch.fnmatchcase(k, p) for p in patterns)]
        lines = [f"missing: {k}: {graph.params[k].type}" for k in missing]
        for i, k in enumerate(extra):
            lines.append(f"unexpected: {k}: {self[k].type}{did_you_mean(k, missing) if i < _HINTS else ''}")
        for k, v in graph.params.items():
            tensor = self._tensors.get(k)
            if isinstance(tensor, Unreadable):
                lines.append(f"unreadable: {k} {tensor.why}")
            elif tensor is not None and not fits(tensor.type, v.type):
                lines.append(f"wrong: {k} is {self[k].type}, expected {v.type}")
        if lines:
            what = f"weights do not fit graph {graph.name}: {len(lines)} differences"
            raise WeightsError(what, place=self.place, details=lines)

    def save(
        self,
        folder: str | Path,
        max_shard_bytes: int = 5_000_000_000,
        done: Callable[[str, int], None] | None = None,
    ) -> list[Path]:
        """Write model.safetensors, or shards with their index, into `folder`; gives the files written.

        One tensor is in memory at a time, and nothing is visible before everything is written. `done` is called
        with the name and the bytes of each tensor, for progress bars.
        """
        with staged(folder) as stage:
            return self.write(stage, max_shard_bytes, done)

    def write(
        self,
        stage: Stage,
        max_shard_bytes: int = 5_000_000_000,
        done: Callable[[str, int], None] | None = None,
    ) -> list[Path]:
        """`save` as a part of files that appear together; shards of an older checkpoint disappear with them."""
        shards = self._shards(max_shard_bytes)
        metadata = {"format": "pt", **self.metadata}
        for file, names in shards.items():
            with stage.open(file) as f:
                write_file(f, {k: self._tensors[k] for k in names}, metadata, done)
        if len(shards) > 1:
            where = {k: file for file, names in shards.items() for k in names}
            index = {"metadata": {"total_size": self.bytes}, "weight_map": where}
            with stage.open(INDEX) as f:
                f.write(json.dumps(index, indent=2).encode())
        written = [stage.folder / name for name in (*shards, *([INDEX] if len(shards) > 1 else []))]
        stage.stale |= _checkpoint_files(stage.folder) - set(written)
        return written

    def _shards(self, limit: int) -> dict[str, list[str]]:
        groups: list[list[str]] = [[]]
        size = 0
        for name, tensor in self._tensors.items():
            if groups[-1] and size + tensor.bytes > limit:
                groups.append([])
                size = 0
            groups[-1].append(name)
            size += tensor.bytes
        if len(groups) == 1:
            return {SINGLE: groups[0]}
        return {f"model-{i:05}-of-{len(groups):05}.safetensors": names for i, names in enumerate(groups, 1)}


def _single(path: Path) -> tuple[dict[str, Tensor], str, dict[str, str]]:
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise WeightsError("is a pickle, which can run code when it is read", place=str(path), hint=_CONVERT)
    tensors, metadata = read_file(path)
    return tensors, str(path), metadata


def _sharded(index: Path) -> Weights:
    where = read_index(index)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for shard in dict.fromkeys(where.values()):
        found, metadata = read_file(shard)
        for name in found:
            if name in tensors and not _same(found[name], tensors[name]):
                what = f"tensor {name} is in {shard.name} and in another shard, with other values"
                raise WeightsError(what, place=str(index))
        tensors |= found
    for name, shard in where.items():
        if name not in tensors:
            raise WeightsError(f"places tensor {name} in {shard.name}, which does not have it", place=str(index))
    return Weights(tensors, str(index), metadata)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.type == b.type and a.numpy().tobytes() == b.numpy().tobytes()


_CONVERT = "convert it to safetensors where it was made"


def _pickle_hint(folder: Path) -> str:
    pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt"))
    if not pickles and any(folder.glob("*.onnx")):
        return "this folder was built or exported: load the checkpoint that it was made from"
    return f"{pickles[0]} is a pickle, which is never read; {_CONVERT}" if pickles else ""


def _checkpoint_files(folder: Path) -> set[Path]:
    """What an earlier `save` left in the folder: it would contradict the new checkpoint."""
    found = {folder / SINGLE} if (folder / SINGLE).exists() else set[Path]()
    if (folder / INDEX).exists():
        try:
            found |= {folder / INDEX, *read_index(folder / INDEX).values()}
        except WeightsError:
            found.add(folder / INDEX)
    return found


def fits(have: TensorType, want: TensorType) -> bool:
    """Whether a tensor can be the values of a parameter: one shape, both floats or both not, and the same blocks."""
    same_bytes = want.encoding is None or want.encoding == have.encoding
    return same_bytes and have.shape == want.shape and have.dtype.is_float == want.dtype.is_float


def param_only(graph: Graph) -> set[Value]:
    """Parameters and everything computed from nothing but parameters and constants of fixed size.

    Not what is dequantized, and what follows from it: encoded weights stay encoded.
    """
    found: set[Value] = set(graph.params.values())
    for node in graph:
        if not node.op.folds:
            continue
        fixed = not any(v.type.symbols for v in node.outputs) and not any(map(_symbolic, node.attributes.values()))
        if fixed and not node.op.random and all(v in found for v in node.arguments):
            found.update(node.outputs)
    return found


def is_computed(value: Value) -> bool:
    """Whether `value` is an expression over at least one parameter and no input."""
    nodes, read = ancestors(value), leaves(value)
    return bool(nodes and read) and all(v.is_param for v in read) and not any(_open(node) for node in nodes)


def _open(node: Node) -> bool:
    symbolic = any(map(_symbolic, node.attributes.values())) or any(v.type.symbols for v in node.outputs)
    return node.op.random or not node.op.folds or symbolic


def _symbolic(attribute: object) -> bool:
    if isinstance(attribute, tuple):
        return any(map(_symbolic, attribute))  # pyright: ignore[reportUnknownArgumentType]
    return isinstance(attribute, Dim)


class Computed(Tensor):
    """A value that depends on parameters only, evaluated when read.

    Each parameter is read when a node first needs it and each intermediate is freed after its last reader, so the
    peak is that of one expression. Raises WeightsError when made if the value depends on an input.
    """

    def __init__(self, value: Value, weights: Mapping[str, Tensor]) -> None:
        if not is_computed(value) and not value.is_param:
            raise WeightsError(f"{value!r} depends on more than parameters")
        self.value, self.weights, self.type = value, weights, value.type

    def numpy(self) -> Array:
        nodes = ancestors(self.value)
        remaining: dict[Value, int] = {self.value: 1}
        for node in nodes:
            for v in node.arguments:
                remaining[v] = remaining.get(v, 0) + 1
        values: dict[Value, Array] = {}
        for node in nodes:
            operands = [None if v is None else self._read(v, values) for v in node.operands]
            results = evaluate(node.op, operands, node.attributes, {}, [type_of(v) for v in node.operands])
            del operands
            values |= {v: x for v, x in zip(node.outputs, results, strict=True) if v in remaining}
            del results
            for v in node.arguments:
                remaining[v] -= 1
                if not remaining[v]:
                    del values[v]
        return self._read(self.value, values)

    def _read(self, value: Value, values: dict[Value, Array]) -> Array:
        if value not in values:
            values[value] = held(self.weights[value.name], value.type, value.name)
        return values[value]
