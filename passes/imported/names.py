"""An imported graph in the words of a stream: what its tokens, mask, positions and sizes are called."""

from __future__ import annotations

from ...ir.errors import PassError
from ...ir.graph import Graph, Value
from ...ir.slots import Stream
from ...ir.types import Dim, DimLike, TensorType, i64
from ..symbols import substitute_symbols, values_of
from .last_token import give_every_token
from .roles import roles_of


def in_words_of(graph: Graph, stream: Stream, output: str, zeros: tuple[str, ...] = ()) -> None:
    """Rename inputs, the output and symbols of a graph, so that its tokens are `stream.ids` [B,S].

    Tokens, mask and positions are known by their names, or by what becomes of them; the output is that of its name, or
    the only floats by token, of all tokens where it was of the last one alone. Inputs that nothing reads go. zeros:
    other inputs along the tokens that may stay. Raises PassError for what does not fit.
    """
    for old, new in roles_of(graph, stream, output, zeros).items():
        graph.inputs[old].name = new
    graph.inputs = {v.name: v for v in graph.inputs.values() if v.users or v.name == stream.ids}
    ids = graph.inputs[stream.ids]
    batch, length = ids.shape if ids.rank == 2 else (0, 0)
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
    if not any(_by_token(v, ids) for v in graph.outputs.values()):
        give_every_token(graph, ids)
    found = _output(graph, ids, output)
    graph.outputs = {output: graph.outputs[found]}


def _by_token(v: Value, ids: Value) -> bool:
    return v.rank == 3 and v.shape[:2] == ids.shape and v.dtype.is_float and isinstance(v.shape[2], int)


def _output(graph: Graph, ids: Value, output: str) -> str:
    found = [output] if output in graph.outputs else [k for k, v in graph.outputs.items() if _by_token(v, ids)]
    if len(found) != 1 or not _by_token(graph.outputs[found[0]], ids):
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


def _rename_symbols(graph: Graph, ids: Value, stream: Stream) -> None:
    """B for rows and the length of the stream for tokens; what was called so gets another name.

    Where mask and positions count rows and tokens by symbols of their own, these are the same without a past.
    """
    wanted = {d.name: new for d, new in zip(ids.shape, ("B", stream.length), strict=True) if isinstance(d, Dim)}
    used = {s for v in values_of(graph) for s in v.type.symbols}
    renamed: dict[str, DimLike] = {s: Dim.symbol(f"{s}_") for s in used if s in wanted.values()}
    renamed |= {s: Dim.symbol(new) for s, new in wanted.items() if s is not None}
    for name in (stream.mask, stream.positions):
        v = graph.inputs.get(name)
        for d, new in zip(v.shape, ("B", stream.length), strict=True) if v is not None and v.rank == 2 else ():
            if isinstance(d, Dim) and d.name is not None:
                renamed.setdefault(d.name, Dim.symbol(new))
    substitute_symbols(graph, renamed)
