"""Serve a built folder: stateless runs through the mask guard, and generation over a cache."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...frontends.tokenizer import read_json
from ...ir.errors import RuntimeInputError
from .cache import Cache
from .contract import Contract, check_layers
from .growing import GrowingCaches, RecurrentStates
from .guard import Array, checked, token_ids
from .options import Loaded, load
from .shared import SharedBuffers
from .stateless import encode, forward

CAPACITY = 512
"""Tokens a row has room for before buffers grow the first time."""

_TUNE_TOKENS, _TUNE_ROUNDS = 256, 3


class Session:
    """A model that runs.

    config: contents of config.json. `run` is stateless. `prefill`, `append` and `step` keep keys and values, for one
    batch at a time. Not to be used from several threads at once.
    """

    def __init__(
        self, folder: Path, contract: Contract, *, threads: int | None, capacity: int = CAPACITY, flash: bool = True
    ) -> None:
        self.folder, self.contract, self.threads, self.flash = folder, contract, threads, flash
        self.config: dict[str, Any] = read_json(folder / "config.json")
        self._first_capacity = capacity
        self._loaded: dict[str, Loaded] = {}
        self._cache: Cache | None = None
        self._extra: dict[str, Array] = {}
        self.graph(contract.lengths or contract.masked)

    def graph(self, file: str) -> Loaded:
        """One of the graphs of the folder, opened when first needed; all of them read the same data file."""
        if file not in self._loaded:
            # A second graph over the same weights must not cost their memory again: it reads them from the file's
            # pages, and is a fifth slower for it.
            second = bool(self.contract.lengths) and file == self.contract.masked
            loaded = load(self.folder / file, self.contract, self.threads, flash=self.flash, packed=not second)
            if file != self.contract.encoder:
                check_layers(self.contract, loaded.inputs, str(self.folder / file))
            self._loaded[file] = loaded
        return self._loaded[file]

    # -- stateless ---------------------------------------------------------------------------------------------

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """One full forward: outputs by name, logits [B,S,V] at every position.

        inputs: `input_ids` i64 [B,S] and what else the model takes. Left out, `attention_mask` is all ones,
        `position_ids` follow from it, `token_type_ids` are 0 and pasts are empty. A mask may have zeros anywhere.
        Raises RuntimeInputError for anything that does not fit, with names and numbers.
        """
        if self.contract.kind != "decoder":
            return encode(self.graph(self.contract.masked), inputs)
        if not self.contract.encoder:
            return forward(self.graph, self.contract, inputs, {})
        source = {k: v for k, v in inputs.items() if k in self.graph(self.contract.encoder).inputs}
        rest = {k: v for k, v in inputs.items() if k not in source}
        return forward(self.graph, self.contract, rest, self._encoded(source))

    def _encoded(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """What the decoder needs of a source: the encoder's results, and the source mask."""
        ids = checked("input_ids", inputs.get("input_ids", np.zeros((0, 0), np.int64)), np.int64, 2, 1)
        mask = np.asarray(inputs.get("attention_mask", np.ones(ids.shape, np.int64)), np.int64)
        return {"attention_mask": mask, **encode(self.graph(self.contract.encoder), inputs)}

    # -- with state --------------------------------------------------------------------------------------------

    @property
    def lengths(self) -> Array:
        """Tokens each row has so far, i64 [B]; empty before `prefill`."""
        return np.zeros(0, np.int64) if self._cache is None else self._cache.lengths.copy()

    @property
    def capacity(self) -> int:
        """Tokens a row has room for without growing its buffers."""
        if self._cache is not None:
            return self._cache.capacity
        return min(self._first_capacity, self.contract.limit)

    def encode(self, inputs: Mapping[str, Any]) -> None:
        """Read the source of an encoder-decoder: keys and values of cross-attention are computed once. Resets."""
        if not self.contract.encoder:
            raise RuntimeInputError(f"{self.contract.family} has no encoder beside its decoder")
        self.reset()
        self._extra = self._encoded(inputs)

    def prefill(self, tokens: Any, lengths: Any) -> Array:
        """Start anew with prompts i64 [B,S], padded on the right to lengths i64 [B]; logits f32 [B,V] after each.

        Raises RuntimeInputError for a length of 0 or beyond S, or more tokens than the model has positions.
        """
        tokens, lengths = token_ids("tokens", tokens), checked("lengths", lengths, np.int64, 1, 1)
        batch, width = tokens.shape
        if lengths.shape != (batch,) or int(lengths.min()) < 1 or int(lengths.max()) > width:
            what = f"lengths are {lengths.tolist()}, expected {batch} numbers from 1 to {width}"
            raise RuntimeInputError(what)
        self._check_decoder()
        if self.contract.encoder and len(self._extra.get("attention_mask", ())) != batch:
            raise RuntimeInputError(f"{len(self._extra.get('attention_mask', ()))} sources are read for {batch} rows")
        if self._cache is None:
            self._cache = self._new_cache()
        try:
            return self._cache.start(np.ascontiguousarray(tokens[:, : int(lengths.max())]), lengths)
        except RuntimeInputError:
            self._cache = None  # Half a prompt is nothing to go on from.
            raise

    def append(self, tokens: Any) -> Array:
        """Add tokens i64 [B,S] to every row; logits f32 [B,V] after the last. Rows together are fast for B = 1."""
        tokens = token_ids("tokens", tokens)
        return self._running(len(tokens)).extend(tokens)

    def step(self, tokens: Any) -> Array:
        """Add one token a row, i64 [B]; logits f32 [B,V] after it. Raises RuntimeInputError past the positions."""
        tokens = token_ids("tokens", tokens, 1)
        return self._running(len(tokens)).extend(tokens[:, None])

    def truncate(self, lengths: Any) -> None:
        """Forget all but the first lengths[b] tokens of each row, i64 [B], at least 1 of each."""
        lengths = checked("lengths", lengths, np.int64, 1)
        now = self.lengths
        if lengths.shape != now.shape or (lengths > now).any() or (lengths < 1).any():
            raise RuntimeInputError(f"rows of {now.tolist()} tokens cannot be cut to {lengths.tolist()}")
        self._running(len(lengths)).truncate(lengths)

    def reset(self) -> None:
        """Forget everything read; buffers stay for the next `prefill` of as many rows."""
        if self._cache is not None:
            self._cache.lengths = np.zeros(0, np.int64)
        self._extra = {}
        if self.contract.encoder:
            self._cache = None

    def _check_decoder(self) -> None:
        if self.contract.kind != "decoder":
            raise RuntimeInputError(f"{self.contract.family} has no cache: call `run`")

    def _running(self, rows: int) -> Cache:
        self._check_decoder()
        if self._cache is None or len(self._cache.lengths) == 0:
            raise RuntimeInputError("nothing has been read yet: call `prefill` first")
        if len(self._cache.lengths) != rows:
            raise RuntimeInputError(f"{rows} rows were given, but `prefill` began {len(self._cache.lengths)}")
        return self._cache

    def _new_cache(self) -> Cache:
        if self.contract.lengths:
            return SharedBuffers(self.graph(self.contract.lengths), self.contract, self._first_capacity, self._extra)
        if not self.contract.layers:
            return RecurrentStates(self.graph(self.contract.masked), self.contract, self._extra)
        return GrowingCaches(self.graph(self.contract.masked), self.contract, self._extra)


def open(folder: str | Path, *, threads: int | None = None, capacity: int = CAPACITY, tune: bool = False) -> Session:
    """A session for a folder that `build` wrote.

    threads: for the work inside an op (None: one a physical core). capacity: tokens a row gets room for at first;
    buffers double up to the model's positions. tune: measure prompts with and without tiled attention (a second or
    two) and keep the faster. Raises ConfigError, WeightsError or RuntimeInputError for a folder that is damaged,
    contradicts itself, or needs a provider that is not there.
    """
    folder = Path(folder)
    contract = Contract.read(folder)
    if contract.provider != "cpu":
        raise RuntimeInputError(
            f"sessions on {contract.provider} are not supported yet, only on cpu", place=str(folder)
        )
    if capacity < 1:
        raise RuntimeInputError(f"capacity is {capacity}, expected at least 1")
    tiled = Session(folder, contract, threads=threads, capacity=capacity)
    if not tune or not contract.lengths:
        return tiled
    plain = Session(folder, contract, threads=threads, capacity=capacity, flash=False)
    return min((tiled, plain), key=_prompt_seconds)


def _prompt_seconds(session: Session) -> float:
    """Median seconds of a prompt of ordinary length; the session is left empty."""
    length = min(_TUNE_TOKENS, session.contract.limit)
    tokens, lengths = np.ones((1, length), np.int64), np.array([length])
    session.prefill(tokens, lengths)
    seconds: list[float] = []
    for _ in range(_TUNE_ROUNDS):
        start = time.perf_counter()
        session.prefill(tokens, lengths)
        seconds.append(time.perf_counter() - start)
    session.reset()
    return statistics.median(seconds)
