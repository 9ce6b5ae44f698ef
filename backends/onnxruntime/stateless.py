"""One full forward without state: fill in what was left out, look at the mask, run the graph that is right for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...ir.errors import RuntimeInputError
from .attention import LENGTHS, TOTAL
from .cache import check_room, execute, first_states, names_of
from .contract import Contract
from .guard import Array, check_names, checked, default_positions, lengths_allowed, token_ids
from .logits import ROWS
from .options import Loaded

_OWN = {LENGTHS, TOTAL, ROWS}
"""Inputs that only sessions give."""


def encode(loaded: Loaded, inputs: Mapping[str, Any]) -> dict[str, Array]:
    """Outputs of a graph without a cache. Left out, masks are ones, positions count columns, token types are 0."""
    check_names(inputs, loaded.inputs)
    if "input_ids" not in inputs:
        raise RuntimeInputError("input input_ids i64 [batch, length] is missing")
    ids = token_ids("input_ids", inputs["input_ids"])
    defaults: dict[str, Callable[[], Array]] = {
        "attention_mask": lambda: np.ones(ids.shape, np.int64),
        "token_type_ids": lambda: np.zeros(ids.shape, np.int64),
        "position_ids": lambda: np.broadcast_to(np.arange(ids.shape[1]), ids.shape),
    }
    feeds = {"input_ids": ids}
    for name in loaded.inputs:
        if name != "input_ids":
            given = inputs[name] if name in inputs else defaults[name]() if name in defaults else None
            if given is None:
                raise RuntimeInputError(f"input {name} {loaded.inputs[name]} is missing")
            feeds[name] = checked(name, given, np.int64, 2, 1) if name in defaults else np.asarray(given)
            if name in defaults and feeds[name].shape != ids.shape:
                raise RuntimeInputError(f"{name} is {list(feeds[name].shape)} but input_ids is {list(ids.shape)}")
    return execute(loaded, feeds)


def forward(
    graph: Callable[[str], Loaded], contract: Contract, inputs: Mapping[str, Any], extra: Mapping[str, Array]
) -> dict[str, Array]:
    """Outputs of a graph with a cache for the tokens given, logits [B,S,V]: by lengths where those say all that
    the mask says, else by the mask. `extra`: results of an encoder."""
    loaded = graph(contract.lengths or contract.masked)
    ids_name, mask_name, position_name = names_of(loaded)
    check_names(inputs, {*loaded.inputs, mask_name, position_name} - _OWN - extra.keys())
    if ids_name not in inputs:
        raise RuntimeInputError(f"input {ids_name} i64 [batch, length] is missing")
    ids = token_ids(ids_name, inputs[ids_name])
    batch, rows = ids.shape
    pasts = _pasts(contract, loaded, inputs, batch)
    states = {k: np.asarray(inputs.get(k, v)) for k, v in first_states(loaded, extra, batch).items()}
    # A recurrence reads the end of a mask over everything so far.
    longer = np.shape(inputs.get(mask_name))[1:] if states else ()
    total = next(iter(pasts.values())).shape[2] + rows if pasts else max([rows, *longer])
    check_room(total, contract)
    mask = _shaped(mask_name, inputs, (batch, total))
    positions = _shaped(position_name, inputs, (batch, rows))
    mask = np.ones((batch, total), np.int64) if mask is None else (mask != 0).astype(np.int64)
    feeds: dict[str, Array] = {**extra, ids_name: ids, **pasts, **states}
    # Positions that the graph reads may be any; those a kernel derives from lengths must be what was asked for.
    fixed = None if position_name in loaded.inputs else positions
    lengths = lengths_allowed(mask, fixed, rows, contract.windowed) if contract.lengths else None
    feeds[position_name] = default_positions(mask, rows) if positions is None else positions
    if lengths is None:
        loaded = graph(contract.masked)
        feeds[mask_name] = mask
    else:
        feeds |= {LENGTHS: lengths.astype(np.int32), TOTAL: np.array(total, np.int32)}
    if contract.rows:
        feeds[ROWS] = np.arange(batch * rows)
    outputs = execute(loaded, feeds)
    if contract.rows:
        outputs["logits"] = outputs["logits"].reshape(batch, rows, -1)
    return outputs


def _pasts(contract: Contract, loaded: Loaded, inputs: Mapping[str, Any], batch: int) -> dict[str, Array]:
    """All past_key_values.*, empty where none is given. Raises RuntimeInputError unless all agree."""
    pasts: dict[str, Array] = {}
    given = {k: np.asarray(v) for k, v in inputs.items() if k.startswith("past_key_values.")}
    length = next((x.shape[2] for x in given.values() if x.ndim == 4), 0)
    for i, (heads, key, value) in enumerate(contract.layers):
        for name, width in (("key", key), ("value", value)):
            label = f"past_key_values.{i}.{name}"
            shape, dtype = (batch, heads, length, width), loaded.dtypes[label]
            if given and label not in given:
                raise RuntimeInputError(f"input {label} {dtype}{list(shape)} is missing, but other pasts are given")
            x = given.get(label, np.zeros(shape, dtype))
            if x.shape != shape or x.dtype != dtype:
                raise RuntimeInputError(f"{label} is {x.dtype}{list(x.shape)}, expected {dtype}{list(shape)}")
            pasts[label] = np.ascontiguousarray(x)
    return pasts


def _shaped(name: str, inputs: Mapping[str, Any], shape: tuple[int, int]) -> Array | None:
    if name not in inputs:
        return None
    x = checked(name, inputs[name], np.int64, 2)
    if x.shape != shape:
        raise RuntimeInputError(f"{name} is {list(x.shape)}, expected {list(shape)}")
    return x
