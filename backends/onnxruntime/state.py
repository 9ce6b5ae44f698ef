"""What both kinds of generation state have in common: their protocol, how a call that dies is told, limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from ...ir.errors import RuntimeInputError
from ...ir.slots import Slot, Stream
from .contract import Contract
from .memory import Array
from .results import EVERYTHING, Want

NOTHING: Array = np.zeros(0, np.int64)
"""The lengths of a batch without rows."""

Along = Mapping[str, Array]
"""Token ids [B,S] and what comes along with each token [B,S,...], by input name; padded on the right."""


class State(Protocol):
    """What has been read. lengths: tokens a row has so far, i64 [B]; empty where there is nothing to go on from."""

    lengths: Array

    @property
    def capacity(self) -> int:
        """Tokens a row has room for before buffers grow."""
        ...

    @property
    def bytes(self) -> int:
        """Bytes of the buffers of all slots."""
        ...

    def start(self, along: Along, lengths: Array, fixed: Mapping[str, Array]) -> Array:
        """Forget everything and read prompts; output [B,V] after the last token of each. fixed: what stays for the
        batch, by input or by output of the encoder."""
        ...

    def extend(self, along: Along, counts: Array, *, every: bool = False, want: Want = EVERYTHING) -> Array:
        """Read counts[b] more tokens a row, 1 to S; what is wanted of the output [B,V] after the last of each, or all
        of it after every one, [B,S,V]."""
        ...

    def truncate(self, lengths: Array) -> None: ...

    def reorder(self, parents: Array, common: Array) -> None:
        """Row b becomes what row parents[b] is; they have their first common[b] tokens alike."""
        ...


def stream_of(contract: Contract) -> Stream:
    assert contract.stream is not None, "a decoder reads tokens"
    return contract.stream


def check_room(needed: int, contract: Contract) -> None:
    """Raises RuntimeInputError if rows of `needed` tokens are longer than the model's positions."""
    if needed > contract.limit:
        what = f"{needed} tokens do not fit: the model was built for at most {contract.positions} positions"
        raise RuntimeInputError(what)


def told(e: RuntimeInputError, *, kept: bool) -> RuntimeInputError:
    """The error with what has become of the state."""
    after = "what was read before stays" if kept else "everything read is forgotten: call `prefill` first"
    return RuntimeInputError(f"{e.what} ({after})", place=e.place, details=e.details, hint=e.hint)


def check_cut(refusals: Iterable[tuple[Slot, str]]) -> None:
    """Raises RuntimeInputError naming the first slot that cannot be cut, and why."""
    for slot, reason in refusals:
        if reason:
            raise RuntimeInputError(f"{slot.input} {reason}")
