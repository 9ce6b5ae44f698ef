"""What a session feeds to each graph of a folder, held against what the graphs declare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...ir.errors import LoweringError, RuntimeInputError
from ...ir.graph import Graph
from ...ir.slots import FOLD, SOURCES, Growth, Slot
from ...ir.types import Dim, DimLike, TensorType, i32, i64
from ..onnx.tensors import dim_names, onnx_dim
from .attention import LENGTHS, TOTAL
from .contract import Contract, Types
from .logits import ROWS
from .runtime import Loaded


def counts_of(window: int = 0) -> tuple[str, str]:
    """Inputs that say how many tokens buffers hold: i32 [B] by row, i32 [] the most. window: 0 for all tokens."""
    return (f"{LENGTHS}.{window}", f"{TOTAL}.{window}") if window else (LENGTHS, TOTAL)


def own_inputs(contract: Contract) -> frozenset[str]:
    """Inputs that only sessions give."""
    counts = [name for window in (0, *contract.windows) for name in counts_of(window)]
    return frozenset({ROWS, *counts})


def unfolded(contract: Contract, types: Types) -> Types:
    """Types of a decoder graph's inputs where one row follows each source: the same for all graphs of a folder."""
    ids = contract.inputs.get(contract.masked, {}).get(contract.stream.ids) if contract.stream is not None else None
    if ids is None or not folded_inputs(contract):
        return types
    sizes: dict[str, DimLike] = {SOURCES: ids.shape[0], FOLD: 1}
    return {k: t.substitute(sizes) for k, t in types.items()}


def folded_inputs(contract: Contract) -> frozenset[str]:
    """Inputs of the graph that takes lengths with a row for each source, which several rows of tokens may follow."""
    once = {s.input for s in contract.slots if s.growth is Growth.once}
    types, source = contract.inputs.get(contract.lengths, {}), Dim.symbol(SOURCES)
    found = frozenset(k for k, t in types.items() if t.rank and t.shape[0] == source)
    return found if once & found else frozenset()


def others(contract: Contract, file: str) -> Types:
    """Inputs of a decoder graph that come with the tokens, or stay for a batch, and are nobody's but the caller's."""
    stream = contract.stream
    known = {*own_inputs(contract), *(s.input for s in contract.slots), *contract.inputs.get(contract.encoder, ())}
    known |= set(stream.names) if stream is not None else set()
    return {k: t for k, t in unfolded(contract, contract.inputs[file]).items() if k not in known}


def along(contract: Contract, type: TensorType) -> bool:
    """Whether an input has one entry a token."""
    length = contract.stream.length if contract.stream is not None else ""
    return type.rank > 1 and length in _symbols(type.shape[1])


def check_feeds(contract: Contract, graphs: Mapping[str, Graph]) -> None:
    """Compare what sessions will feed and keep with the graphs of a build, by file name.

    Raises LoweringError with file, name and both types for every input that no session knows how to feed, and for
    every slot that an input or an output does not agree with.
    """
    found: list[str] = []
    for file, graph in graphs.items():
        inputs = {k: v.type for k, v in graph.inputs.items()}
        outputs = {k: v.type for k, v in graph.outputs.items()}
        promised = contract.inputs.get(file, {})
        found += [f"{file}: {line}" for line in _differences(promised, inputs)]
        if contract.kind == "decoder" and file != contract.encoder:
            found += [f"{file}: {line}" for line in _decoder(contract, file, inputs, outputs)]
    if contract.encoder in graphs:
        inside = graphs[contract.encoder].outputs
        firsts = {s.first or (s.input if s.growth is Growth.once else "") for s in contract.slots} - {""}
        found += [f"{contract.encoder}: there is no output {n}, which a slot begins with" for n in firsts - {*inside}]
    if found:
        what = f"{contract.family}: sessions cannot feed what the graphs declare"
        raise LoweringError(what, details=found)


def check_loaded(contract: Contract, loaded: Loaded, place: str) -> None:
    """Compare the inputs that a contract promises with those of an opened file. Raises RuntimeInputError."""
    file = loaded.file
    promised = contract.inputs.get(file, {})
    names = dim_names(s for t in promised.values() for s in t.symbols)
    expected = {k: _said(t.dtype.numpy, (onnx_dim(d, names) for d in t.shape)) for k, t in promised.items()}
    given = {k: _said(loaded.dtypes[k], shape) for k, shape in loaded.inputs.items()}
    found = _differences(expected, given)
    if contract.kind == "decoder" and file != contract.encoder:
        found += _decoder(contract, file, promised, None)
        if contract.rows != (ROWS in promised):
            found.append(f"{ROWS}: the contract says rows {contract.rows}, and its inputs say otherwise")
        found += [
            f"{n}: the contract has an output, the graph has none"
            for n in (contract.output, *(s.output for s in contract.slots if s.output))
            if n not in loaded.outputs
        ]
    if found:
        raise RuntimeInputError("contract and graph do not agree", place=place, details=found)


def _said(dtype: object, shape: Iterable[object]) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]"


def _differences(promised: Mapping[str, object], given: Mapping[str, object]) -> list[str]:
    names = dict.fromkeys([*promised, *given])
    return [
        f"{k}: the contract has {promised.get(k, 'nothing')}, the graph has {given.get(k, 'nothing')}"
        for k in names
        if promised.get(k) != given.get(k)
    ]


def _decoder(contract: Contract, file: str, inputs: Types, outputs: Types | None) -> list[str]:
    """What is wrong with a graph that reads tokens and remembers them; outputs: None where they are not known."""
    stream, inputs = contract.stream, unfolded(contract, inputs)
    outputs = None if outputs is None else unfolded(contract, outputs)
    if stream is None or stream.ids not in inputs:
        return [f"{stream.ids if stream is not None else 'ids'}: a decoder reads tokens, and the graph reads none"]
    ids = inputs[stream.ids]
    if ids.dtype is not i64 or ids.rank != 2 or not along(contract, ids):
        return [f"{stream.ids}: {ids}, expected i64[B,{stream.length}]"]
    batch, length = ids.shape
    expected = {stream.positions: ids, ROWS: TensorType(i64, (Dim.symbol("R"),))}
    for window in (0, *contract.windows):
        by_row, most = counts_of(window)
        expected |= {by_row: TensorType(i32, (batch,)), most: TensorType(i32, ())}
    expected |= {s.input: s.type for s in contract.slots}
    found = [f"{k}: a session feeds {t}, the graph has {inputs[k]}" for k, t in expected.items()
             if k in inputs and inputs[k] != t]  # fmt: skip
    found += [f"{s.input}: the contract has a slot, the graph has no input" for s in contract.slots
              if s.input not in inputs and s.growth is not Growth.once]  # fmt: skip
    found += _mask(contract, file, inputs)
    for name, type in others(contract, file).items():
        mixed = stream.length in type.symbols and (not along(contract, type) or type.shape[1] != length)
        if type.rank < 1 or type.shape[0] != batch or mixed:
            found.append(f"{name}: {type}, expected one entry a row [{batch},...] or a token [{batch},{length},...]")
    for slot in contract.slots if outputs is not None else ():
        grown, given = grown_type(slot, length), (outputs or {}).get(slot.output)
        if slot.output and given != grown:
            found.append(f"{slot.output}: the slot becomes {grown}, the graph gives {given or 'nothing'}")
    return found


def _mask(contract: Contract, file: str, inputs: Types) -> list[str]:
    assert contract.stream is not None
    name, ids = contract.stream.mask, inputs[contract.stream.ids]
    mask = inputs.get(name)
    if mask is None:
        return []
    if file == contract.lengths:
        return [f"{name}: {mask}, but a graph over buffers has lengths in place of a mask"]
    fits = mask.dtype is i64 and mask.rank == 2 and mask.shape[0] == ids.shape[0] and mask.shape[1] != ids.shape[1]
    return [] if fits else [f"{name}: {mask}, expected i64[{ids.shape[0]},P+{ids.shape[1]}]"]


def grown_type(slot: Slot, length: DimLike) -> TensorType:
    """The type of what a slot is after `length` more tokens."""
    if slot.growth not in (Growth.append, Growth.window) or slot.axis is None:
        return slot.type
    shape = [d + length if i == slot.axis else d for i, d in enumerate(slot.type.shape)]
    return TensorType(slot.type.dtype, tuple(shape))


def _symbols(d: DimLike) -> frozenset[str]:
    return d.symbols if isinstance(d, Dim) else frozenset()
