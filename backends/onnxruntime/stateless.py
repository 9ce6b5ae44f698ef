"""One full forward without state: fill in what was left out, look at the mask, run the graph that is right for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...ir.errors import RuntimeInputError
from ...ir.interpret import bind_dims
from ...ir.slots import TOKENS, Growth
from ...ir.types import TensorType
from ...passes.adapters import ADAPTER
from .contract import Contract, Types
from .feeds import along, counts_of, others, own_inputs, unfolded
from .guard import Array, check_bound, check_names, checked, default_positions, lengths_allowed, token_ids, typed
from .held import shape_of
from .logits import ROWS
from .next_token import NEXT
from .runtime import RUNTIME_ERRORS, Loaded
from .state import check_room, stream_of

Graphs = Callable[[str], Loaded]


def execute(loaded: Loaded, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a graph on the feeds it has inputs for; outputs by name. Raises RuntimeInputError."""
    given = {k: v for k, v in feeds.items() if k in loaded.inputs}
    if lost := [k for k in loaded.inputs if k not in given]:
        raise RuntimeInputError(f"nothing is fed to {', '.join(lost)}, which the graph takes", place=loaded.file)
    try:
        return loaded.run(given)
    except RUNTIME_ERRORS as e:
        raise RuntimeInputError(f"ONNX Runtime: {e}", place=loaded.file) from e


# -- without any state ------------------------------------------------------------------------------------------------


def completed(contract: Contract, file: str, inputs: Mapping[str, Any]) -> dict[str, Array]:
    """Every input of a graph that remembers nothing, checked against what the graph declares.

    Left out, a mask is ones, positions count columns and token types are 0. Raises RuntimeInputError for an input
    that is not known, missing, of another type, or of a shape that does not go with the others.
    """
    types = contract.inputs[file]
    stream = contract.stream if contract.stream is not None and file != contract.encoder else TOKENS
    check_names(inputs, {*types, stream.mask, *contract.unread})
    feeds = {k: typed(k, v, types[k]) for k, v in inputs.items() if k in types}
    if stream.mask not in {*types, *contract.unread} and not np.all(inputs.get(stream.mask, 1)):
        raise RuntimeInputError(f"{stream.mask} hides tokens, but the model has no such input")
    ids = feeds.get(stream.ids)
    if ids is not None and file != contract.encoder:
        check_room(ids.shape[1], contract)
    for name, type in types.items():
        if name in feeds:
            continue
        if name == ADAPTER and contract.adapters and feeds:
            feeds[name] = np.zeros(len(next(iter(feeds.values()))), type.dtype.numpy)
            continue
        defaults = {stream.mask: np.ones, stream.positions: _columns, **dict.fromkeys(contract.zeros, np.zeros)}
        if ids is None or name not in defaults or type.rank != 2:
            raise RuntimeInputError(f"input {name} {type} is missing")
        feeds[name] = np.asarray(defaults[name](ids.shape), type.dtype.numpy)
    bind_dims(types, {k: feeds[k].shape for k in types})
    for name, array in feeds.items():
        _check_some(name, array)
        check_index(contract, name, array)
    return {k: feeds[k] for k in types}


def _check_some(name: str, array: Array) -> None:
    """Raises RuntimeInputError for an axis of length 0, over which ONNX Runtime cannot attend, and reduces wrongly."""
    if 0 in array.shape:
        raise RuntimeInputError(f"{name} has shape {list(array.shape)}, expected at least 1 on every axis")


def check_index(contract: Contract, name: str, array: Array) -> None:
    """Raises RuntimeInputError for numbers outside the table that an input chooses from."""
    stream = contract.stream or TOKENS
    if name in {stream.ids, TOKENS.ids, stream.positions, TOKENS.positions, *contract.zeros, *contract.bounds}:
        bound = contract.bounds.get(name, sys.maxsize)
        check_bound(name, array, min(bound, contract.limit) if name == stream.positions else bound)


def _columns(shape: tuple[int, ...]) -> Array:
    return np.broadcast_to(np.arange(shape[1]), shape)


# -- given pasts ------------------------------------------------------------------------------------------------------


def forward(
    graph: Graphs, contract: Contract, inputs: Mapping[str, Any], source: Mapping[str, Array]
) -> dict[str, Array]:
    """Outputs of a decoder for the tokens given, at every position: by lengths where those say all that the mask
    says, else by the mask. source: results of an encoder and what it was given."""
    stream, types = stream_of(contract), contract.inputs[contract.masked]
    own = own_inputs(contract) | source.keys()
    check_names(inputs, {*types, stream.mask, stream.positions, *contract.unread} - own)
    if stream.ids not in inputs:
        raise RuntimeInputError(f"input {stream.ids} i64 [batch, length] is missing")
    ids = token_ids(stream.ids, inputs[stream.ids], 2, contract.bounds.get(stream.ids))
    batch, rows = ids.shape
    feeds: dict[str, Array] = {**source, stream.ids: ids, **_pasts(contract, inputs, source, batch)}
    feeds |= beside(contract, others(contract, contract.masked), inputs, ids.shape)
    positions = _shaped(stream.positions, inputs, (batch, rows))
    total = _total(contract, inputs, feeds, rows, located=positions is not None)
    check_room(total, contract)
    mask = _shaped(stream.mask, inputs, (batch, total))
    mask = np.ones((batch, total), np.int64) if mask is None else mask
    # A model may read more in a mask than whether it is 0; lengths say no more than that.
    lengths = _lengths(contract, mask, positions, rows) if np.isin(mask, (0, 1)).all() else None
    feeds[stream.positions] = default_positions(mask, rows) if positions is None else positions
    check_index(contract, stream.positions, feeds[stream.positions])
    _check_unread(contract, mask, positions)
    feeds |= {stream.mask: mask} if lengths is None else _counts(contract, feeds, lengths, rows)
    if contract.rows:
        feeds[ROWS] = np.arange(batch * rows)
    loaded = graph(contract.masked if lengths is None else contract.lengths)
    declared = {k: t for k, t in unfolded(contract, contract.inputs[loaded.file]).items() if k in feeds}
    bind_dims(declared, {k: feeds[k].shape for k in declared})
    outputs = execute(loaded, feeds)
    outputs.pop(NEXT, None)
    if contract.rows:
        outputs[contract.output] = outputs[contract.output].reshape(batch, rows, -1)
    return outputs


def beside(contract: Contract, types: Types, inputs: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, Array]:
    """Inputs of these types beside the tokens [B,S] of a decoder. Raises RuntimeInputError for one that is missing,
    or has other rows or tokens."""
    feeds: dict[str, Array] = {}
    for name, type in types.items():
        if name in inputs:
            feeds[name] = typed(name, inputs[name], type)
        elif name in contract.zeros and type.rank == 2:
            feeds[name] = np.zeros(shape, type.dtype.numpy)
        elif name == ADAPTER and contract.adapters:
            feeds[name] = np.zeros(shape[:1], type.dtype.numpy)
        else:
            raise RuntimeInputError(f"input {name} {type} is missing")
        found, wanted = feeds[name].shape, shape[: 2 if along(contract, type) else 1]
        if found[: len(wanted)] != wanted:
            raise RuntimeInputError(f"{name} is {list(found)}, but the tokens are {list(shape)}")
        _check_some(name, feeds[name])
        check_index(contract, name, feeds[name])
    bind_dims(types, {k: feeds[k].shape for k in types})
    return feeds


def _lengths(contract: Contract, mask: Array, positions: Array | None, rows: int) -> Array | None:
    """Valid tokens by row, where the graph for lengths computes the same."""
    if not contract.lengths:
        return None
    # Positions that the graph reads may be any. Beside windows kernels derive some from lengths, and layers with a
    # state which tokens count: then all must be those.
    derived = bool(contract.windows) or any(s.growth is Growth.replace for s in contract.slots)
    name = stream_of(contract).positions
    read = name in contract.inputs[contract.lengths] or name not in contract.inputs[contract.masked]
    return lengths_allowed(mask, None if read and not derived else positions, rows, bool(contract.windows))


def _check_unread(contract: Contract, mask: Array, positions: Array | None) -> None:
    """What a model has no input for can only be given where it changes nothing: padding behind all tokens, and
    positions that follow from the mask."""
    stream, known = stream_of(contract), {*contract.inputs[contract.masked], *contract.unread}
    if stream.mask not in known and bool(((mask[:, 1:] != 0) > (mask[:, :-1] != 0)).any()):
        raise RuntimeInputError(f"{stream.mask} hides tokens before others, but the model has no such input")
    if positions is None or stream.positions in known:
        return
    if not np.array_equal(positions, default_positions(mask, positions.shape[1])):
        raise RuntimeInputError(f"{stream.positions} are not those of the mask, but the model has no such input")


def _counts(contract: Contract, feeds: Mapping[str, Array], lengths: Array, rows: int) -> dict[str, Array]:
    """Inputs of the graph for lengths that say how many tokens each past holds, once the new ones are in."""
    found: dict[str, Array] = {}
    for window in (0, *contract.windows):
        held = [feeds[s.input].shape[s.axis] for s in contract.slots if s.axis is not None and s.window == window
                and s.growth is not Growth.once]  # fmt: skip
        most = (held[0] if held else int(lengths.max()) - rows) + rows if window else int(max(lengths.max(), rows))
        by_row, total = counts_of(window)
        # With a past no row is padded, so that all hold the same.
        found[by_row] = np.minimum(lengths, most).astype(np.int32)
        found[total] = np.array(most, np.int32)
    return found


def _total(
    contract: Contract, inputs: Mapping[str, Any], feeds: Mapping[str, Array], rows: int, *, located: bool
) -> int:
    """All tokens so far: those of a past that keeps all of them, else as the mask says."""
    stream = stream_of(contract)
    pasts = [(s, feeds[s.input].shape[s.axis]) for s in contract.slots if s.axis is not None and s.output]
    said = checked(stream.mask, inputs[stream.mask], np.int64, 2).shape[1:] if stream.mask in inputs else ()
    whole = [n + rows for s, n in pasts if s.growth is Growth.append]
    if whole:
        return whole[0]
    total = said[0] if said else max([rows, *(n + rows for _, n in pasts)])
    for slot, n in pasts:
        if not said and not located and n >= slot.window - 1 > 0:
            what = f"{slot.input} holds {n} tokens, and does not say how many there were before"
            raise RuntimeInputError(f"{what}: give {stream.mask} i64 [batch, all tokens]")
        if n < min(total - rows, slot.window - 1):
            what = f"{slot.input} holds {n} tokens, but {min(total - rows, slot.window - 1)} of {total - rows} count"
            raise RuntimeInputError(what)
    return max(total, rows)


def _pasts(contract: Contract, inputs: Mapping[str, Any], source: Mapping[str, Array], batch: int) -> dict[str, Array]:
    """The array of every slot: what is given; else what an encoder left behind, nothing, or zeros.

    Raises RuntimeInputError where some are given and others are not, or they do not agree.
    """
    types: Types = contract.inputs[contract.masked]
    slots = [s for s in contract.slots if s.input in types]
    given = {s.input: typed(s.input, inputs[s.input], types[s.input]) for s in slots if s.input in inputs}
    found: dict[str, Array] = {}
    for slot in slots:
        first = slot.first or (slot.input if slot.growth is Growth.once else "")
        if slot.input in given:
            found[slot.input] = given[slot.input]
        elif slot.growth is Growth.once:
            if first not in source:
                raise RuntimeInputError(f"input {slot.input} {slot.type} is missing")
            found[slot.input] = source[first]
        elif given.keys() - {s.input for s in slots if s.growth is Growth.once}:
            raise RuntimeInputError(f"input {slot.input} {slot.type} is missing, but other pasts are given")
        elif first in source:
            found[slot.input] = source[first]
        else:
            found[slot.input] = np.zeros(shape_of(slot, batch), slot.type.dtype.numpy)
    declared = {s.input: _batched(s.type, batch) for s in slots}
    bind_dims(declared, {k: found[k].shape for k in declared})
    return found


def _batched(type: TensorType, batch: int) -> TensorType:
    return TensorType(type.dtype, (batch, *type.shape[1:]))


def _shaped(name: str, inputs: Mapping[str, Any], shape: tuple[int, int]) -> Array | None:
    if name not in inputs:
        return None
    x = checked(name, inputs[name], np.int64, 2)
    if x.shape != shape:
        raise RuntimeInputError(f"{name} is {list(x.shape)}, expected {list(shape)}")
    return x
