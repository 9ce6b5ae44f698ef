"""The order of raising: one spelling first, then attention, then norms, rotary positions, activations and layers."""

from __future__ import annotations

from collections.abc import Collection

from ...ir.graph import Graph, Value
from ..canonicalize import canonicalize, remove_dropout
from ..cse import cse
from ..dce import dce
from ..fold import fold
from .activations import Activations
from .angle_tables import compute_tables, put_tables_back
from .attention import put_back, raise_attention, take_apart
from .check import Check
from .constants import Read, Reader
from .indexed import gather_rows, write_whole
from .layers import raise_layers
from .masks import Masks
from .neutral import drop_neutral
from .norms import raise_norms
from .report import RaisingReport
from .rotary import Rotations
from .softmaxes import one_softmax


def clean(graph: Graph) -> None:
    """One spelling for each thing; nothing that is not needed."""
    for step in (canonicalize, fold, cse, dce):
        step(graph)


KINDS = ("attention", "norms", "tables", "rotary", "activations", "layers")
"""What is raised, in this order; each can be left out."""


def raise_graph(
    graph: Graph, read: Read | None = None, *, without: Collection[str] = (), every_row: bool = False
) -> RaisingReport:
    """Raise a graph of primitives in place; says what was raised and what was not.

    read: the arrays of parameters, for tables of masks and of angles that a file stores. without: some of KINDS, and
    `places` of an earlier report, that stay as they are. every_row: see `raise_attention`. Every replacement
    is computed beside what it replaces, on padded and holed masks, batches of 1 and 3 and two lengths, before it is
    made.
    """
    report = RaisingReport()
    remove_dropout(graph)
    clean(graph)
    drop_neutral(graph)
    reader = None if read is None else Reader(read)
    check = Check(graph, reader, without=without, accepted=report.places)
    if "attention" not in without:
        write_whole(graph)
        take_apart(graph)
        canonicalize(graph)
        masks = Masks(graph, reader)
        one_softmax(graph, masks, check)
        raise_attention(graph, masks, check, report, every_row=every_row)
        put_back(graph, report)
        dce(graph)
    if "norms" not in without:
        raise_norms(graph, check, report)
    tables: list[tuple[Value, Value]] = []
    if "tables" not in without:
        gather_rows(graph)
        tables = compute_tables(graph, check, reader)
    if "rotary" not in without:
        Rotations(graph, check, report).run()
    put_tables_back(graph, tables)
    dce(graph)
    if "activations" not in without:
        Activations(graph, report).run()
    clean(graph)
    if "layers" not in without:
        raise_layers(graph, report)
    report.read |= set() if reader is None else reader.names
    return report
