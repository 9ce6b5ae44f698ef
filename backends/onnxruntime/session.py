"""Serve a built folder: stateless runs through the mask guard, and generation over slots."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...frontends.tokenizer import read_json
from ...ir.errors import RuntimeInputError
from ...ir.slots import Growth
from .capture import Captured, Captures, refused
from .compact import Compact
from .contract import Contract, Types
from .feeds import along, check_loaded, others
from .guard import Array, by_name, check_names, checked, token_ids
from .memory import Memory
from .memory_cpu import CpuMemory
from .memory_cuda import CudaMemory
from .options import load
from .padded import Padded
from .paired import Paired
from .pool import Pool
from .results import EVERYTHING, MOST_BEST, TOKEN, Want
from .runtime import Loaded
from .state import NOTHING, State, check_room
from .stateless import beside, completed, execute, forward

CAPACITY = 512
"""Tokens a row has room for before buffers grow the first time."""

MEMORIES: dict[str, Callable[[], Memory]] = {"cpu": CpuMemory, "cuda": CudaMemory}
"""Where the buffers of slots lie, by provider."""


class Session:
    """A model that runs: its contract, its graphs, and one buffer for each of its slots.

    config: contents of config.json. `run` is stateless. `prefill`, `append` and `step` remember what they read, for
    one batch at a time. owner: a token that is another one whenever a new batch begins; whoever holds an old one
    knows that the session reads something else now. `run` may be called from several threads at once; what remembers
    is for one thread, and `another` is for the next one.
    """

    def __init__(
        self,
        folder: Path,
        contract: Contract,
        *,
        threads: int | None,
        capacity: int = CAPACITY,
        flash: bool | None = None,
        exact: bool = False,
        capture: bool | Literal["check"] = True,
        profile: str = "",
    ) -> None:
        self.profile = profile
        self.folder, self.contract, self.threads, self.flash, self.exact = folder, contract, threads, flash, exact
        self.config: dict[str, Any] = read_json(folder / "config.json")
        self.memory = MEMORIES[contract.provider]()
        self._captures = Captures(refused(contract, self.memory, asked=bool(capture)), strict=capture == "check")
        self.owner: object = object()
        self._first_capacity = capacity
        self._loaded: dict[str, Loaded] = {}
        self._opening = threading.Lock()
        self._cache: State | None = None
        self._source: dict[str, Array] = {}
        self._file = contract.lengths or contract.masked
        self._beside: Types = others(contract, self._file) if contract.kind == "decoder" else {}
        self._ids = contract.stream.ids if contract.stream is not None else ""
        self.graph(self._file)

    def graph(self, file: str) -> Loaded:
        """One of the graphs of the folder, opened when first needed; all of them read the same data file."""
        if file in self._loaded:
            return self._loaded[file]
        with self._opening:
            return self._opened(file)

    def _opened(self, file: str) -> Loaded:
        if file not in self._loaded:
            loaded = load(
                self.folder / file,
                self.contract,
                self.threads,
                flash=self.flash,
                packed=file not in self.contract.mapped and not self.exact,
                captures=self._captures if file == self.contract.lengths else None,
                profile=self.profile,
            )
            check_loaded(self.contract, loaded, str(self.folder / file))
            if file == self.contract.lengths and self.contract.prompts and not self.exact:
                loaded = Paired(loaded, functools.partial(self.graph, self.contract.prompts), self._ids)
            self._loaded[file] = loaded
        return self._loaded[file]

    def another(self) -> Session:
        """A session over the same opened graphs with a state of its own, which another thread may use meanwhile."""
        session = copy.copy(self)
        session._cache, session._source, session.owner = None, {}, object()
        return session

    # -- stateless ---------------------------------------------------------------------------------------------

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """One full forward: outputs by name, at every position.

        inputs: all that the model takes, by name: token ids i64 [B,S], floats in the model's dtype. Left out, a mask
        is all ones, positions follow from it, token types are 0 and pasts are empty. A mask may have zeros anywhere.
        Raises RuntimeInputError for anything that does not fit, with names and numbers.
        """
        inputs = by_name(inputs)
        if self.contract.kind != "decoder":
            file = self.contract.masked
            return execute(self.graph(file), completed(self.contract, file, inputs))
        if not self.contract.encoder:
            return forward(self.graph, self.contract, inputs, {})
        source = {k: v for k, v in inputs.items() if k in self.contract.inputs[self.contract.encoder]}
        rest = {k: v for k, v in inputs.items() if k not in source}
        encoded = self._encoded(source)
        carried = {s.first or s.input for s in self.contract.slots}
        own = [k for k in self.graph(self.contract.encoder).outputs if k not in carried]
        return {k: encoded[k] for k in own} | forward(self.graph, self.contract, rest, encoded)

    def _encoded(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """What the decoder needs of a source: the encoder's results, and what they were made from."""
        given = completed(self.contract, self.contract.encoder, inputs)
        return given | execute(self.graph(self.contract.encoder), given)

    # -- with state --------------------------------------------------------------------------------------------

    @property
    def lengths(self) -> Array:
        """Tokens each row has so far, i64 [B]; empty before `prefill`."""
        return NOTHING.copy() if self._cache is None else self._cache.lengths.copy()

    @property
    def capacity(self) -> int:
        """Tokens a row has room for without growing its buffers."""
        if self._cache is not None:
            return self._cache.capacity
        return min(self._first_capacity, self.contract.limit)

    @property
    def state_bytes(self) -> int:
        """Bytes of the buffers of all slots; 0 before `prefill`."""
        return 0 if self._cache is None else self._cache.bytes

    def encode(self, inputs: Mapping[str, Any]) -> None:
        """Read the source of an encoder-decoder: keys and values of cross-attention are computed once. Resets."""
        if not self.contract.encoder:
            raise RuntimeInputError(f"{self.contract.family} has no encoder beside its decoder")
        self.reset()
        self._source = self._encoded(by_name(inputs))

    def prefill(self, tokens: Any, lengths: Any, inputs: Mapping[str, Any] | None = None) -> Array:
        """Start anew with prompts i64 [B,S], padded on the right to lengths i64 [B]; logits f32 [B,V] after each.

        inputs: what a model takes beside tokens, by name: [B,S,...] along with them, or [B,...] for the whole batch.
        Raises RuntimeInputError for a length of 0 or beyond S, or more tokens than the model has positions.
        """
        self._check_decoder()
        tokens = self._tokens(tokens)
        lengths = self._counts("lengths", lengths, *tokens.shape)
        source = next(iter(self._source.values()), None)
        if self.contract.encoder and (source is None or len(source) != len(tokens)):
            raise RuntimeInputError(f"{0 if source is None else len(source)} sources are read for {len(tokens)} rows")
        given, fixed = self._split(tokens, {} if inputs is None else inputs)
        fixed |= self._carried(self._source)
        check_room(int(lengths.max()), self.contract)
        if self._cache is None:
            self._cache = self.new_state()
        self.owner = object()
        rows = int(lengths.max())
        return self._cache.start({k: v[:, :rows] for k, v in given.items()}, lengths, fixed)

    def append(
        self, tokens: Any, lengths: Any = None, inputs: Mapping[str, Any] | None = None, *, every: bool = False
    ) -> Array:
        """Add tokens i64 [B,S] to every row, or the first lengths[b] of them; logits f32 [B,V] after the last.

        inputs: what comes along with tokens [B,S,...], by name. every: logits [B,S,V] after every token, of which a
        row has its first lengths[b]. Raises RuntimeInputError past the positions, and where the runtime fails; the
        error says what has become of the state.
        """
        tokens = self._tokens(tokens)
        state = self._running(len(tokens))
        batch, rows = tokens.shape
        counts = np.full(batch, rows) if lengths is None else self._counts("lengths", lengths, batch, rows)
        given = self._along(tokens, inputs)
        longest = int(counts.max())
        return state.extend({k: v[:, :longest] for k, v in given.items()}, counts, every=every)

    def step(self, tokens: Any, inputs: Mapping[str, Any] | None = None) -> Array:
        """Add one token a row, i64 [B]; logits f32 [B,V] after it. inputs: as for `append`, [B,1,...]."""
        return self._step(tokens, inputs, EVERYTHING)

    def step_greedy(self, tokens: Any, inputs: Mapping[str, Any] | None = None) -> Array:
        """`step`, of which only the likeliest next token of each row leaves the device, i64 [B].

        Of equal ones it is the first, and -1 where the largest logit is not finite.
        """
        return self._step(tokens, inputs, TOKEN)

    def step_best(self, tokens: Any, k: int, inputs: Mapping[str, Any] | None = None) -> Array:
        """`step`, of which only some logits leave the device; f32 [B,V], the others -inf.

        Those are the k largest of each row, k from 1 to 64, all that equal the least of them, and perhaps more.
        """
        if not 1 <= k <= MOST_BEST:
            raise RuntimeInputError(f"k is {k}, expected 1 to {MOST_BEST}")
        return self._step(tokens, inputs, Want("best", k))

    def _step(self, tokens: Any, inputs: Mapping[str, Any] | None, want: Want) -> Array:
        ids = token_ids("tokens", tokens, 1, self.contract.bounds.get(self._ids))[:, None]
        if inputs is None and not self._beside:
            return self._running(len(ids)).extend({self._ids: ids}, np.ones(len(ids), np.int64), want=want)
        state = self._running(len(ids))
        given = self._along(ids, inputs)
        return state.extend(given, np.ones(len(ids), np.int64), want=want)

    @property
    def captured(self) -> Captured:
        """Whether steps are captured as CUDA graphs and replayed, and if not, why not."""
        return self._captures.state

    def truncate(self, lengths: Any) -> None:
        """Forget all but the first lengths[b] tokens of each row, i64 [B], at least 1 of each.

        Raises RuntimeInputError naming a slot that cannot be cut: a recurrent state, or a window that would need
        tokens which it has dropped.
        """
        lengths = checked("lengths", lengths, np.int64, 1)
        now = self.lengths
        if lengths.shape != now.shape or (lengths > now).any() or (lengths < 1).any():
            raise RuntimeInputError(f"rows of {now.tolist()} tokens cannot be cut to {lengths.tolist()}")
        self._running(len(lengths)).truncate(lengths)

    def reorder(self, parents: Any, common: Any = None) -> None:
        """Row b becomes what row parents[b] has read, i64 [N]; another number of rows than before is allowed.

        In buffers that are written in place only rows that change are copied. common: i64 [N], how many first tokens
        row b has read in common with parents[b], which are not copied. Raises RuntimeInputError for a row that is not
        there.
        """
        rows = len(self.lengths)
        parents = token_ids("parents", parents, 1, rows or None)
        alike = np.zeros_like(parents) if common is None else checked("common", common, np.int64, 1)
        if alike.shape != parents.shape:
            raise RuntimeInputError(f"common is {list(alike.shape)}, expected one number for each of {len(parents)}")
        self._running(rows).reorder(parents, alike)

    @property
    def uncut(self) -> str:
        """Why rows cannot be cut after a few more tokens, naming the slot; "" where they can."""
        return self.contract.uncut

    def reset(self) -> None:
        """Forget everything read; buffers stay for the next `prefill` of as many rows."""
        if self._cache is not None:
            self._cache.lengths = NOTHING
        self._source = {}
        self.owner = object()

    # -- checks ------------------------------------------------------------------------------------------------

    def _tokens(self, tokens: Any) -> Array:
        return token_ids("tokens", tokens, 2, self.contract.bounds.get(self._ids))

    def _counts(self, name: str, counts: Any, batch: int, rows: int) -> Array:
        counts = checked(name, counts, np.int64, 1, 1)
        if counts.shape != (batch,) or int(counts.min()) < 1 or int(counts.max()) > rows:
            raise RuntimeInputError(f"{name} are {counts.tolist()}, expected {batch} numbers from 1 to {rows}")
        return counts

    def _split(
        self, tokens: Array, inputs: Mapping[str, Any], *, begun: bool = False
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """(what comes along with tokens, the tokens included; what stays for the batch). begun: the latter is known."""
        types, inputs = self._beside, by_name(inputs)
        check_names(inputs, {*types})
        wanted = {k: t for k, t in types.items() if not begun or k in inputs or along(self.contract, t)}
        found = beside(self.contract, wanted, inputs, tokens.shape)
        given = {k: v for k, v in found.items() if along(self.contract, types[k])}
        return {self._ids: tokens, **given}, {k: v for k, v in found.items() if k not in given}

    def _along(self, tokens: Array, inputs: Mapping[str, Any] | None) -> dict[str, Array]:
        """Tokens [B,S] of a batch that has begun, with what comes along with them."""
        given, fixed = self._split(tokens, {} if inputs is None else inputs, begun=True)
        if fixed:
            raise RuntimeInputError(f"{next(iter(fixed))} stays for a batch: give it to `prefill`")
        return given

    def _check_decoder(self) -> None:
        if self.contract.kind != "decoder":
            raise RuntimeInputError(f"{self.contract.family} has no cache: call `run`")

    def _running(self, rows: int) -> State:
        self._check_decoder()
        if self._cache is None or len(self._cache.lengths) == 0:
            raise RuntimeInputError("nothing has been read yet: call `prefill` first")
        if len(self._cache.lengths) != rows:
            raise RuntimeInputError(f"{rows} rows were given, but `prefill` began {len(self._cache.lengths)}")
        return self._cache

    # -- parts for rows that come and go -------------------------------------------------------------------------

    def fixed(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """What stays for a row, [1,...] by name: inputs beside its tokens, and what the encoder makes of a source."""
        self._check_decoder()
        inputs = by_name(inputs)
        first = self.contract.inputs.get(self.contract.encoder, {})
        own = {k: t for k, t in self._beside.items() if not along(self.contract, t)}
        check_names(inputs, {*own, *first})
        found = beside(self.contract, own, {k: v for k, v in inputs.items() if k in own}, (1, 1))
        if not self.contract.encoder:
            return found
        return found | self._carried(self._encoded({k: v for k, v in inputs.items() if k in first}))

    @property
    def with_tokens(self) -> list[str]:
        """Inputs that have to be given with every token."""
        types = self._beside.items()
        return [k for k, t in types if along(self.contract, t) and (k not in self.contract.zeros or t.rank != 2)]

    def read_with(self, tokens: Array, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Tokens i64 [B,S] with what comes along with each of them, by name."""
        tokens = self._tokens(tokens)
        types = {k: t for k, t in self._beside.items() if along(self.contract, t)}
        check_names(inputs, {*types})
        return {self._ids: tokens, **beside(self.contract, types, inputs, tokens.shape)}

    def _carried(self, source: dict[str, Array]) -> dict[str, Array]:
        """A source with its results under the names of the slots that they begin."""
        once = (s for s in self.contract.slots if s.growth is Growth.once and s.first)
        return source | {s.input: source[s.first] for s in once if s.first in source}

    def profiled(self) -> list[Path]:
        """End the profiles of all graphs that were opened, and give their files."""
        found = (loaded.profiled() for loaded in self._loaded.values())
        return [path for path in found if path is not None]

    def reload(self) -> None:
        """Open the graphs of the folder again, after a failure that may have left them unusable. Resets."""
        self.reset()
        self._cache = None
        self._loaded.clear()
        self.graph(self._file)

    def new_state(self) -> State:
        """A state over the graph that generates, without any tokens."""
        if self.contract.lengths:
            return Compact(self.graph(self._file), self.contract, self.memory, self._first_capacity, self._captures)
        return self.new_padded()

    def new_padded(self) -> Padded:
        """A state over the graph that takes masks, without any tokens."""
        return Padded(self.graph(self._file), self.contract, self.memory)

    def new_pool(self, most: int, fixed: Mapping[str, Array]) -> Pool:
        """Places for `most` rows over the graph that takes lengths. fixed: what stays for a row, of such shapes."""
        loaded, room = self.graph(self._file), self._first_capacity
        return Pool(loaded, self.contract, self.memory, most, room, fixed, self._captures)
