"""From a graph that somebody exported without a cache to one that `add_state` can give slots."""

from __future__ import annotations

from ...ir.errors import PassError
from ...ir.graph import Graph, Node
from ...ir.slots import Stream
from ..canonicalize import canonicalize, remove_dropout
from ..cse import cse
from ..dce import dce
from ..fold import fold
from ..raising import RaisingReport, raise_graph
from ..raising.constants import Read
from ..raising.layouts import shorten_layouts
from ..state import add_state
from ..token_flow import is_over
from .angles import write_out_frequencies
from .columns import Positions, hide_padding, look_up_slices
from .names import in_words_of
from .past import forget_past
from .rows import unflatten
from .truths import cast_truths
from .uniform import fold_uniform
from .whole_reads import drop_whole_reads


def make_cacheable(
    graph: Graph, stream: Stream, output: str, zeros: tuple[str, ...] = (), read: Read | None = None
) -> RaisingReport:
    """Make a decoder without a cache one whose positions and masks are right behind any past, in place.

    Its tokens, mask and positions get the names of the stream, its output that of the task. Masks become structure of
    attention, tables and counts of columns follow the positions, padding is hidden. Inputs that bring keys and values
    of a past go. zeros: other inputs along the tokens that may stay. read: the arrays of parameters. Raises PassError
    with the node and the reason for a graph that cannot be given a cache.
    """
    _check_mode(graph)
    canonicalize(graph)
    forget_past(graph)
    in_words_of(graph, stream, output, zeros)
    graph.stream = stream
    remove_dropout(graph)
    for step in (canonicalize, fold, cse):
        step(graph)
    batch, symbol = graph.inputs[stream.ids].shape[0], stream.length
    look_up_slices(graph, symbol, squares=False)
    drop_whole_reads(graph)
    fold_uniform(graph)
    report = raise_graph(graph, read)
    look_up_slices(graph, symbol)
    unflatten(graph, batch, symbol)
    Positions(graph, stream).run()
    hide_padding(graph, stream, lambda node: _reads_tokens(node, symbol))
    write_out_frequencies(graph, read)
    for step in (canonicalize, shorten_layouts, cast_truths, cse, dce):
        step(graph)
    graph.inputs = {k: graph.inputs[k] for k in (*stream.names, *zeros) if k in graph.inputs}
    _check(graph, report)
    return report


def _check_mode(graph: Graph) -> None:
    """Raise PassError for dropout that is on: what is served has none, and raising would take it from a trainer."""
    found = next((n for n in graph if n.op.random), None)
    if found is not None:
        hint = "export it in evaluation mode (module.eval()), or without the task to train it with dropout"
        raise PassError(f"{found.op.name} is on: the model is in training mode", place=str(found.location), hint=hint)


def _reads_tokens(node: Node, symbol: str) -> bool:
    """Whether a node is attention whose keys run over tokens."""
    return any(any(is_over(d, symbol) for d in node.value(k).shape) for k in node.op.keys)


def _check(graph: Graph, report: RaisingReport) -> None:
    """Raise PassError for what no slot can carry, with the obstacle at which raising ended there."""
    try:
        add_state(graph.copy())
    except PassError as e:
        obstacles = [str(x) for x in (*report.left, *report.undone) if str(x.location) == e.place]
        raise PassError(f"cannot be given a cache: {e.what}", place=e.place, details=[*e.details, *obstacles]) from None
