"""Rows of arrays under the names of a model's inputs: what a task of one's own is trained on."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from ..data.batch import Batch
from ..data.errors import CorpusError
from ..frontends.dsl import Model
from ..frontends.task import LABELS
from ..ir.dims import bind_dims
from ..ir.display import Shown, Table
from ..ir.documents import parse_json
from ..ir.errors import ConfigError, MonographError, did_you_mean, unreadable
from ..ir.tensors import Array
from ..ir.types import TensorType, f32, i64

Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Rows:
    """Arrays by name, of which the first axis is the rows, equally many in each."""

    arrays: dict[str, Array]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def taken(self, rows: Any) -> Batch:
        return {name: values[rows] for name, values in self.arrays.items()}


@dataclass(frozen=True, repr=False)
class Arrays(Shown):
    """Rows of arrays in a training and a held-out part: a source of batches for a model of any task.

    Either the loss of the model reads the arrays, or one of them is `labels`, with which its logits are compared.
    """

    train: Rows
    held_out: Rows
    task: ClassVar[str] = "arrays"
    static: ClassVar[bool] = True

    @staticmethod
    def of(given: Inputs | Iterable[Inputs], *, held_out: float = 0.05) -> Arrays:
        """Make it from arrays by name [rows, ...], or from one mapping per row. The last share `held_out` is held out.

        Raises CorpusError for arrays of different lengths, or that are not numbers.
        """
        if not 0 <= held_out < 1:
            raise CorpusError(f"the held-out share is {held_out}, expected at least 0 and less than 1")
        arrays = _numbers(cast("Inputs", given) if isinstance(given, Mapping) else _stacked(given))
        counts = {name: len(values) for name, values in arrays.items()}
        if len({*counts.values()}) > 1:
            raise CorpusError(
                f"arrays have different numbers of rows: {_listed(f'{k} {n}' for k, n in counts.items())}"
            )
        rows = next(iter(counts.values()))
        apart = min(max(round(held_out * rows), 1), rows - 1) if held_out and rows > 1 else 0
        if rows - apart < 1:
            raise CorpusError("there are no rows")
        every = Rows(arrays)
        return Arrays(Rows(every.taken(slice(rows - apart))), Rows(every.taken(slice(rows - apart, rows))))

    @staticmethod
    def read(paths: str | Path | Sequence[str | Path], *, held_out: float = 0.05) -> Arrays:
        """Read files, one after another: .npz with one array per name, or .jsonl with one object per row.

        Raises CorpusError naming the file.
        """
        files = [Path(p) for p in ([paths] if isinstance(paths, (str, Path)) else paths)]
        parts = [_read(path) for path in files]
        for path, part in zip(files, parts, strict=True):
            if part.keys() != parts[0].keys():
                raise CorpusError(f"has {_listed(part)}, but {files[0]} has {_listed(parts[0])}", place=str(path))
        try:
            joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            return Arrays.of(joined, held_out=held_out)
        except (ValueError, CorpusError) as e:
            raise CorpusError(str(e), place=", ".join(map(str, files))) from None

    def table(self) -> Table:
        """How much there is on each side, for `repr` and notebooks."""
        rows = [
            ("training", f"{len(self.train):,} rows"),
            ("held out", f"{len(self.held_out):,} rows"),
            *((k, f"{x.dtype}{list(x.shape[1:])} a row") for k, x in self.train.arrays.items()),
        ]
        return Table("arrays", rows)

    @property
    def tokenizer(self) -> None:
        """None: there are no texts."""

    @property
    def vocab(self) -> int:
        """None: there is no tokenizer."""
        return 0

    def sizes(self, length: int) -> dict[str, int]:
        """How many rows each part has."""
        return {"train_rows": len(self.train), "held_out_rows": len(self.held_out)}

    def of_model(self, model: Model, wanted: Mapping[str, TensorType]) -> Arrays:
        """The rows with all `wanted` inputs of a model, in their types; missing masks and positions are computed.
        Other inputs of its task are not read. Raises ConfigError for names and shapes that do not fit.
        """
        for name in self.train.arrays:
            if name not in wanted and name not in model.task.inputs:
                what = f"{model.name} has no input {name!r}{did_you_mean(name, wanted)}"
                raise ConfigError(what, hint=f"training reads: {_listed(wanted)}")
        parts = {part: _fitted(getattr(self, part), model, wanted) for part in ("train", "held_out")}
        return replace(self, **parts)

    def batches(self, batch: int, length: int, seed: int = 0, start: int = 0) -> Iterator[Batch]:
        """Endless batches of `batch` rows from step `start` on; each pass over the rows has its own order."""
        first, count = start, len(self.train)

        @lru_cache(2)
        def order(epoch: int) -> Array:
            return np.random.default_rng([seed, epoch]).permutation(count)

        while True:
            rows = [order(p // count)[p % count] for p in range(first * batch, (first + 1) * batch)]
            yield self.train.taken(np.array(rows))
            first += 1

    def held_out_batches(self, batch: int, length: int) -> Iterator[Batch]:
        """Every held-out row once."""
        for first in range(0, len(self.held_out), batch):
            yield self.held_out.taken(slice(first, first + batch))


def _fitted(rows: Rows, model: Model, wanted: Mapping[str, TensorType]) -> Rows:
    """The rows with every input, in its type."""
    given = {name: _cast(name, values, wanted[name]) for name, values in rows.arrays.items() if name in wanted}
    inputs = [name for name in wanted if name in model.task.inputs]
    missing = [name for name in wanted if name not in given and name not in model.task.inputs]
    if missing:
        raise ConfigError(f"the data has no {_listed(missing)}", hint=f"it has {_listed(given)}")
    try:
        filled = {**given, **model.task.fill(given, inputs)}
        bind_dims(wanted, {name: filled[name].shape for name in wanted})
    except MonographError as e:
        raise ConfigError(f"the data does not fit {model.name}: {e.what}") from None
    ids, vocab = model.task.stream, getattr(model.config, "vocab", None)
    if ids is not None and ids.ids in filled and isinstance(vocab, int) and filled[ids.ids].size:
        low, high = int(filled[ids.ids].min()), int(filled[ids.ids].max())
        if low < 0 or high >= vocab:
            raise ConfigError(f"{ids.ids} has the ids {low} to {high}, but the model has {vocab}")
    return Rows({name: np.ascontiguousarray(filled[name]) for name in wanted})


def _cast(name: str, values: Array, type: TensorType) -> Array:
    """Values in the kind of numbers that an input takes, which must not change them."""
    if type.dtype.is_float:
        if not np.isfinite(values).all():
            raise ConfigError(f"{name} has numbers that are not finite")
        return values.astype(f32.numpy)
    if values.dtype.kind not in "iub":
        raise ConfigError(f"{name} is {values.dtype}, expected {type}")
    return values.astype(type.dtype.numpy)


def wanted_labels(shape: Sequence[Any]) -> dict[str, TensorType]:
    """The type of `labels` for logits of a shape."""
    return {LABELS: TensorType(i64, tuple(shape[:-1]))}


def _read(path: Path) -> dict[str, Array]:
    if path.suffix not in (".npz", ".jsonl"):
        raise CorpusError("is neither .npz nor .jsonl", place=str(path))
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return _numbers({name: file[name] for name in file.files})
        lines = path.read_text(encoding="utf-8").splitlines()
        return _numbers(_stacked(parse_json(line) for line in lines if line.strip()))
    except CorpusError as e:
        raise CorpusError(e.what, place=str(path), hint=e.hint) from None
    except OSError as e:
        raise CorpusError(unreadable(e), place=str(path)) from None
    except (ValueError, EOFError, zipfile.BadZipFile) as e:
        raise CorpusError(f"is damaged: {e}", place=str(path)) from None


def _stacked(rows: Iterable[Inputs]) -> dict[str, list[Any]]:
    """Arrays by name from one mapping a row."""
    found: dict[str, list[Any]] = {}
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - of a file
            raise CorpusError(f"row {i} is {str(row)[:40]!r}, expected inputs by name")
        if i and row.keys() != found.keys():
            raise CorpusError(f"row {i} has {_listed(row)}, but row 0 has {_listed(found)}")
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return found


def _numbers(given: Inputs) -> dict[str, Array]:
    """Arrays of numbers by name. Raises CorpusError for anything else."""
    found: dict[str, Array] = {}
    for name, value in given.items():
        try:
            values = np.asarray(value)
        except ValueError:
            raise CorpusError(f"rows of {name} have different shapes", hint="pad them to one shape") from None
        if values.dtype.kind not in "iubf":
            raise CorpusError(f"{name} is {values.dtype}, expected numbers")
        if values.ndim < 1:
            raise CorpusError(f"{name} is one number, expected rows")
        found[name] = values
    if not found:
        raise CorpusError("there are no rows")
    return found


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(str, names)) or "nothing"
