"""How a batch is decoded: token by token, by guesses, or by beams; under constraints, and with adapters by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, cast

import numpy as np

from ..frontends.tokenizer import Tokenizer
from ..ir.errors import RuntimeInputError, did_you_mean
from .beams import Beams, BeamSearch
from .constraint import Constraint
from .generate import Decoding, Settings
from .grammar import Asked, Grammars
from .guesses import LONGEST, Draft, Drafter, Lookup
from .sampling import Array, is_whole
from .speculative import Speculative

Read = Callable[[Array, Array], Array]
DRAFT_TOKENS = 5


class Drafting(Protocol):
    """An engine whose model guesses for another one's."""

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def session(self) -> Any: ...

    def reader(self, source: Mapping[str, Any], session: Any) -> Read:
        """What reads prompts, after the source of an encoder-decoder."""
        ...


@dataclass(frozen=True)
class Strategy:
    """Keywords of `generate` beside those of `Settings`.

    draft: an engine with the same vocabulary that guesses; draft_tokens: most tokens it guesses at once. lookup: most
    tokens guessed at once from the text so far. num_beams and what follows: see `Beams`. schema, json, regex, grammar:
    what the text has to look like, or a list with one for each row (None: anything); json: any object. adapter: a name,
    or a list with one for each row (None: the base).
    """

    draft: Drafting | None = None
    draft_tokens: int = DRAFT_TOKENS
    lookup: int | None = None
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: Any = False
    min_new_tokens: int = 0
    schema: Any = None
    json: bool = False
    regex: Any = None
    grammar: Any = None
    adapter: Any = None

    @staticmethod
    def of(given: Mapping[str, Any]) -> tuple[Strategy, dict[str, Any]]:
        """(the strategy, the other keywords)."""
        known = {f.name for f in fields(Strategy)}
        own = {k: v for k, v in given.items() if k in known and v is not None}
        strategy = Strategy(**own)
        strategy.check()
        return strategy, {k: v for k, v in given.items() if k not in known}

    def check(self) -> None:
        """Raises RuntimeInputError for values out of range, and for what does not go together."""
        counts: dict[str, Any] = {"lookup": self.lookup, "draft_tokens": self.draft_tokens}
        for name, value in counts.items():
            if value is not None and not (is_whole(value) and 1 <= int(value) <= LONGEST):
                raise RuntimeInputError(f"{name} is {value!r}, expected a whole number from 1 to {LONGEST}")
        if self.draft is not None and not callable(getattr(self.draft, "reader", None)):
            raise RuntimeInputError(f"draft is {type(self.draft).__name__}, expected an engine")
        if self.draft is not None and self.lookup is not None:
            raise RuntimeInputError("draft and lookup were both given: guesses come from one of them")
        beams = self.beams
        plain = Beams(1)
        if beams is None:
            wrong = [f.name for f in fields(Beams) if getattr(self, f.name) != getattr(plain, f.name)]
            if wrong:
                raise RuntimeInputError(f"{', '.join(wrong)}: for beams only, and num_beams is 1")
        elif self.draft is not None or self.lookup is not None:
            raise RuntimeInputError(f"num_beams is {self.num_beams}, but beams are not guessed")
        elif self.constrained:
            raise RuntimeInputError(f"num_beams is {self.num_beams}, but beams do not follow a schema or grammar")

    @property
    def beams(self) -> Beams | None:
        """The settings of beam search, if that was asked for."""
        given = {f.name: getattr(self, f.name) for f in fields(Beams)}
        return None if Beams(**given).num_beams == 1 else Beams(**given)

    @property
    def constrained(self) -> bool:
        return self.json or any(x is not None for x in (self.schema, self.regex, self.grammar))

    def adapters(self, names: Sequence[str], rows: int) -> Array | None:
        """The number of the adapter of each row, i64 [rows]; None where none was asked for."""
        if self.adapter is None:
            return None
        given: Any = self.adapter
        asked = list(cast("Sequence[Any]", given)) if isinstance(given, (list, tuple)) else [given] * rows
        if len(asked) != rows:
            raise RuntimeInputError(f"{len(asked)} adapters were given for {rows} rows")
        return np.array([adapter_number(names, name) for name in asked], np.int64)

    def constraints(self, grammars: Callable[[], Grammars], rows: int, ends: frozenset[int]) -> list[Constraint | None]:
        """A constraint for each row. Raises GrammarError for what is no schema, regex or grammar."""
        if not self.constrained:
            return []
        found: list[Constraint | None] = []
        for row in range(rows):
            schema, regex, grammar = (self._of_row(n, row, rows) for n in ("schema", "regex", "grammar"))
            asked = Asked.of(schema, self.json, regex, grammar)
            found.append(None if asked is None else grammars().constraint(asked, ends))
        return found

    def _of_row(self, name: str, row: int, rows: int) -> Any:
        given: Any = getattr(self, name)
        if not isinstance(given, (list, tuple)):
            return given
        several = cast("Sequence[Any]", given)
        if len(several) != rows:
            raise RuntimeInputError(f"{name} is a list of {len(several)}, but there are {rows} rows")
        return several[row]

    def decoding(
        self,
        session: Any,
        tokenizer: Tokenizer | None,
        rows: Sequence[list[int]],
        settings: Settings,
        read: Read | None,
        *,
        grammars: Callable[[], Grammars],
        source: Mapping[str, Any],
        suppress: Sequence[int] = (),
        suppress_first: Sequence[int] = (),
    ) -> Decoding | BeamSearch:
        """The batch on its way. source: what an encoder-decoder reads, for a draft to read, too."""
        beams = self.beams
        if beams is not None:
            return BeamSearch(
                session, tokenizer, rows, settings, read, beams, suppress=suppress, suppress_first=suppress_first
            )
        constraints = self.constraints(grammars, len(rows), settings.ends(tokenizer))
        drafter, longest = self._drafter(tokenizer, settings, source)
        if drafter is None:
            return Decoding(session, tokenizer, rows, settings, read, constraints)
        return Speculative(session, tokenizer, rows, settings, read, constraints, drafter=drafter, longest=longest)

    def _drafter(
        self, tokenizer: Tokenizer | None, settings: Settings, source: Mapping[str, Any]
    ) -> tuple[Drafter | None, int]:
        if self.lookup is not None:
            return Lookup(), self.lookup
        if self.draft is None:
            return None, 0
        draft = self.draft
        if tokenizer is not None and draft.tokenizer is not None and (why := tokenizer.difference(draft.tokenizer)):
            raise RuntimeInputError(f"the draft has another vocabulary: {why}")
        # Buffers of its own: whoever generates with the draft itself, or in another thread, is not disturbed.
        session = draft.session.another()
        contract = session.contract
        bound = contract.bounds.get(contract.stream.ids) if contract.stream is not None else None
        return Draft(session, draft.reader(source, session), settings, contract.limit, bound), self.draft_tokens


def adapter_number(names: Sequence[str], name: str | None) -> int:
    """The number of an adapter, 0 for None. Raises RuntimeInputError for a name that there is not."""
    if name is None:
        return 0
    if name not in names:
        known = f"known: {', '.join(names)}" if names else "the folder was built without adapters"
        raise RuntimeInputError(f"no adapter is called {name!r}{did_you_mean(str(name), list(names))}", hint=known)
    return list(names).index(name) + 1
