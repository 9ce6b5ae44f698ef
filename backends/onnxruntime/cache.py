"""What every kind of generation state has in common: the protocol, the names of inputs, one checked run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from ...ir.errors import RuntimeInputError
from .contract import Contract
from .options import RUNTIME_ERRORS, Loaded

Array = np.ndarray[Any, Any]
STATE = "past_state."


class Cache(Protocol):
    """What a session needs of its state. lengths: tokens a row has so far, i64 [B]."""

    lengths: Array

    @property
    def capacity(self) -> int: ...

    def start(self, tokens: Array, lengths: Array) -> Array: ...

    def extend(self, tokens: Array) -> Array: ...

    def truncate(self, lengths: Array) -> None: ...


def check_room(needed: int, contract: Contract) -> None:
    """Raises RuntimeInputError if rows of `needed` tokens are longer than the model's positions."""
    if needed > contract.limit:
        what = f"{needed} tokens do not fit: the model was built for at most {contract.positions} positions"
        raise RuntimeInputError(what)


def names_of(loaded: Loaded) -> tuple[str, str, str]:
    """(token ids, attention mask, positions): the names of these inputs in this graph."""
    lead = "decoder_" if "decoder_input_ids" in loaded.inputs else ""
    return f"{lead}input_ids", f"{lead}attention_mask", f"{lead}position_ids"


def first_states(loaded: Loaded, extra: Mapping[str, Array], batch: int) -> dict[str, Array]:
    """past_state.* before the first token: what an encoder left behind, else zeros."""
    found: dict[str, Array] = {}
    for name, shape in loaded.inputs.items():
        if name.startswith(STATE):
            zeros = np.zeros((batch, shape[1]), loaded.dtypes[name])
            found[name] = extra.get(name.replace(STATE, "initial_state."), zeros)
    return found


def execute(loaded: Loaded, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a session on the feeds it has inputs for; outputs by name. Raises RuntimeInputError."""
    names = list(loaded.outputs)
    known = {k: v for k, v in feeds.items() if k in loaded.inputs}
    try:
        return dict(zip(names, loaded.session.run(names, known), strict=True))
    except RUNTIME_ERRORS as e:
        raise RuntimeInputError(f"ONNX Runtime: {e}", place=loaded.file) from e
