"""Generation and embeddings over a data set, as what `ray.data` maps batches with.

ray.data.read_text("prompts.txt").map_batches(
    Generator, fn_constructor_args=("DIR",), fn_constructor_kwargs={"max_new_tokens": 64}, concurrency=4, batch_size=64)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...ir.errors import RuntimeInputError, did_you_mean
from ..engine import Engine
from ..generate import Settings
from ..request import Request
from ..sampling import Array

Columns = Mapping[str, Any]


class Generator:
    """Adds what comes after each text of a batch. Can be pickled; the model is opened where it is called first.

    folder: a built one, at the same path on every machine. column: the texts, or lists of ids. output: the column of
    what was generated; with `ids`, its ids are added as OUTPUT_ids. rows: prompts computed at once. threads: of each
    copy. settings: see `Settings`; with a seed, the result does not depend on how the data is cut into batches only
    where each text has a seed of its own: seed_column names the column that holds them.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        column: str = "text",
        output: str = "generated",
        ids: bool = False,
        rows: int = 8,
        threads: int | None = None,
        seed_column: str | None = None,
        **settings: Any,
    ) -> None:
        Settings.of(settings)  # what is wrong with them is said before anything is sent to a cluster
        self.folder, self.column, self.output, self.ids = Path(folder), column, output, ids
        self.rows, self.threads, self.seed_column, self.settings = rows, threads, seed_column, settings
        self._scheduler: Any = None
        self._engine: Engine | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scheduler": None, "_engine": None}

    def _open(self) -> Engine:
        if self._engine is None:
            self._engine = Engine.open(self.folder, threads=self.threads)
            self._scheduler = self._engine.scheduler(rows=self.rows, queue=1 << 20)
        return self._engine

    def __call__(self, batch: Columns) -> dict[str, Any]:
        """The batch with the new columns. Raises RuntimeInputError for a column that is not there."""
        texts, engine = column_of(batch, self.column), self._open()
        seeds = None if self.seed_column is None else column_of(batch, self.seed_column)
        known = {"context": engine.session.contract.positions or None, "eos": engine.ends, **self.settings}
        requests: list[Request] = []
        for i, text in enumerate(texts):
            given = known if seeds is None else {**known, "seed": int(seeds[i])}
            requests.append(self._scheduler.submit(prompt_of(engine, text, i), Settings.of(given)))
        found = [r.result() for r in requests]
        added: dict[str, Any] = {self.output: np.array([g.text for g in found], object)}
        if self.ids:
            added[f"{self.output}_ids"] = objects([np.array(g.ids, np.int64) for g in found])
        return {**batch, **added}

    def close(self) -> None:
        """Let go of the model."""
        if self._scheduler is not None:
            self._scheduler.close()
        if self._engine is not None:
            self._engine.close()
        self._scheduler = self._engine = None


class Embedder:
    """Adds the vector of each text of a batch. Can be pickled; the model is opened where it is called first."""

    def __init__(
        self,
        folder: str | Path,
        *,
        column: str = "text",
        output: str = "embedding",
        batch: int = 32,
        threads: int | None = None,
        prompt_name: str | None = None,
    ) -> None:
        self.folder, self.column, self.output = Path(folder), column, output
        self.batch, self.threads, self.prompt_name = batch, threads, prompt_name
        self._engine: Engine | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engine": None}

    def __call__(self, batch: Columns) -> dict[str, Any]:
        """The batch with the column of vectors f32 [N,C]."""
        texts = [str(t) for t in column_of(batch, self.column)]
        if self._engine is None:
            self._engine = Engine.open(self.folder, threads=self.threads)
        vectors = self._engine.embed(texts, batch=self.batch, prompt_name=self.prompt_name)
        return {**batch, self.output: np.asarray(vectors, np.float32)}

    def close(self) -> None:
        """Let go of the model."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None


def column_of(batch: Columns, name: str) -> Sequence[Any]:
    """A column. Raises RuntimeInputError that names those there are."""
    if name not in batch:
        what = f"the data has no column {name!r}{did_you_mean(name, batch)}"
        raise RuntimeInputError(what, hint=f"there are: {', '.join(batch)}")
    return batch[name]


def prompt_of(engine: Engine, given: Any, index: int) -> list[int]:
    """The ids of one entry of a column: a text, or ids."""
    if isinstance(given, str):
        if engine.tokenizer is None:
            raise RuntimeInputError(f"row {index} is a text, and the model has no tokenizer")
        return engine.tokenizer.encode(given)
    ids = np.asarray(given)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise RuntimeInputError(f"row {index} is {type(given).__name__}, expected a text or a list of ids")
    return [int(i) for i in ids]


def objects(arrays: Sequence[Array]) -> Array:
    """A column of arrays of different lengths."""
    found = np.empty(len(arrays), object)
    for i, x in enumerate(arrays):
        found[i] = x
    return found
