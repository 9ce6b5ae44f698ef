"""An imported graph in the words of a stream: what its tokens, mask, positions and sizes are called."""

from __future__ import annotations

from ...ir.errors import PassError
from ...ir.graph import Graph, Value
from ...ir.slots import Stream
from ...ir.types import Dim, DimLike, TensorType, i64
from ..symbols import substitute_symbols, values_of


def in_words_of(graph: Graph, stream: Stream, output: str, zeros: tuple[str, ...] = ()) -> None:
    """Rename inputs, the output and symbols of a graph, so that its tokens are `stream.ids` [B,S].

    The tokens are the input of that name, or the only integers [rows, tokens] there are; the output is that of its
    name, or the only floats by token. zeros: other inputs along the tokens that may stay. Raises PassError for what
    does not fit.
    """
    ids = _ids(graph, stream)
    _rename(graph.inputs, ids.name, stream.ids)
    ids.name = stream.ids
    batch, length = ids.shape
    for d, what in ((batch, "rows"), (length, "tokens")):
        if not isinstance(d, Dim) or d.name is None:
            hint = "export it with dynamic rows and tokens: dynamic_shapes of torch.export, dynamic_axes of torch.onnx"
            raise PassError(f"{stream.ids} is {ids.type}: the number of {what} is fixed", place=graph.name, hint=hint)
    for name, v in graph.inputs.items():
        if name not in (*stream.names, *zeros):
            hint = f"a causal decoder takes {', '.join((*stream.names, *zeros))}"
            raise PassError(f"takes {name} {v.type}, which nothing would fill in", place=graph.name, hint=hint)
    _rename_symbols(graph, ids, stream)
    for name, v in graph.inputs.items():
        if v.shape != ids.shape or v.dtype.is_float:
            what = f"{name} is {v.type}, expected one integer for each token, [{','.join(map(str, ids.shape))}]"
            raise PassError(what, place=graph.name)
    _take_i64(graph)
    ids = graph.inputs[stream.ids]
    found = _output(graph, ids, output)
    graph.outputs = {output: graph.outputs[found]}


def _ids(graph: Graph, stream: Stream) -> Value:
    if stream.ids in graph.inputs:
        found = [graph.inputs[stream.ids]]
    else:
        plain = [v for k, v in graph.inputs.items() if k not in stream.names]
        found = [v for v in plain if v.rank == 2 and not v.dtype.is_float]
    if len(found) != 1 or found[0].rank != 2 or found[0].dtype.is_float:
        has = ", ".join(f"{k} {v.type}" for k, v in graph.inputs.items())
        raise PassError(f"takes {has or 'nothing'}: which of it are tokens [rows, tokens] is open", place=graph.name)
    return found[0]


def _output(graph: Graph, ids: Value, output: str) -> str:
    def by_token(v: Value) -> bool:
        return v.rank == 3 and v.shape[:2] == ids.shape and v.dtype.is_float and isinstance(v.shape[2], int)

    found = [output] if output in graph.outputs else [k for k, v in graph.outputs.items() if by_token(v)]
    if len(found) != 1 or not by_token(graph.outputs[found[0]]):
        gives = ", ".join(f"{k} {v.type}" for k, v in graph.outputs.items())
        what = f"gives {gives}, expected one of [{ids.shape[0]},{ids.shape[1]},vocabulary], which is {output}"
        raise PassError(what, place=graph.name)
    return found[0]


def _take_i64(graph: Graph) -> None:
    """Every input becomes i64, as those of a stream are, cast to what the graph reads."""
    first = next(iter(graph), None)
    for name, v in list(graph.inputs.items()):
        if v.dtype is not i64:
            graph.inputs[name] = Value(graph, TensorType(i64, v.shape), name)
            with graph.at(first):
                graph.replace(v, graph.inputs[name].cast(v.dtype))


def _rename(names: dict[str, Value], old: str, new: str) -> None:
    items = [(new if k == old else k, v) for k, v in names.items()]
    names.clear()
    names.update(items)


def _rename_symbols(graph: Graph, ids: Value, stream: Stream) -> None:
    """B for rows and the length of the stream for tokens; what was called so gets another name.

    Where the mask counts tokens by a symbol of its own, it is the same without a past.
    """
    wanted = {d.name: new for d, new in zip(ids.shape, ("B", stream.length), strict=True) if isinstance(d, Dim)}
    used = {s for v in values_of(graph) for s in v.type.symbols}
    renamed: dict[str, DimLike] = {s: Dim.symbol(f"{s}_") for s in used if s in wanted.values()}
    renamed |= {s: Dim.symbol(new) for s, new in wanted.items() if s is not None}
    mask = graph.inputs.get(stream.mask)
    last = mask.shape[-1] if mask is not None and mask.rank == 2 else None
    if isinstance(last, Dim) and last.name is not None:
        renamed.setdefault(last.name, Dim.symbol(stream.length))
    substitute_symbols(graph, renamed)
