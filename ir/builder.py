"""Where new nodes go: an insertion point that is current while its `with` block runs. A graph itself has none."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Container, Generator, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import MonographError
from .value import Location, Node, Value

if TYPE_CHECKING:
    from .graph import Graph

_PACKAGE = Path(__file__).parent.parent
_INTERNAL = (
    str(_PACKAGE / "ir") + os.sep,
    str(_PACKAGE / "passes") + os.sep,
    str(_PACKAGE / "backends") + os.sep,
    str(_PACKAGE / "frontends" / "dsl.py"),
    str(_PACKAGE / "frontends" / "layers.py"),
    str(_PACKAGE / "frontends" / "experts.py"),
    str(_PACKAGE / "frontends" / "activations.py"),
    str(_PACKAGE / "frontends" / "recurrent.py"),
    contextlib.__file__,
)


@dataclass(slots=True)
class Point:
    """New nodes of `graph` go before `before` (None: last) and have the place `location` (None: the caller's).

    scope: the layer that is being written, which the caller's place names.
    """

    graph: Graph
    before: Node | None = None
    location: Location | None = None
    outer: Point | None = None
    scope: str = ""


_innermost: ContextVar[Point | None] = ContextVar("monograph_point", default=None)


def point_of(graph: Graph) -> Point:
    """The innermost point of a graph that is current here; without one, its end."""
    point = _innermost.get()
    while point is not None and point.graph is not graph:
        point = point.outer
    return point or Point(graph)


@contextlib.contextmanager
def inserting(graph: Graph, before: Node | None, location: Location | None = None) -> Generator[None, None, None]:
    """Insert before a node (None: at the end) and stamp new nodes with `location` (default: the node's)."""
    here = point_of(graph)
    if location is None:
        location = before.location if before is not None else here.location
    token = _innermost.set(Point(graph, before, location, _innermost.get(), here.scope))
    try:
        yield
    finally:
        _innermost.reset(token)


@contextlib.contextmanager
def building(graph: Graph) -> Generator[Graph, None, None]:
    """Make `graph` the one that operand-free ops (constant, iota) are added to."""
    token = _innermost.set(replace(point_of(graph), outer=_innermost.get()))
    try:
        yield graph
    finally:
        _innermost.reset(token)


def enter_scope(graph: Graph, scope: str) -> str:
    """New nodes at the innermost point of a graph belong to the layer `scope` from now on; gives the layer before."""
    point = point_of(graph)
    before, point.scope = point.scope, scope
    return before


def current_graph(operands: Iterable[Any]) -> Graph:
    """The graph of the first operand, or the one being built. Raises MonographError when there is none."""
    for v in operands:
        if isinstance(v, Value):
            return v.graph
    point = _innermost.get()
    if point is None:
        raise MonographError("an op without operands needs a graph under construction: use `with building(graph):`")
    return point.graph


def place_of(graph: Graph, beyond: Container[str] = ()) -> Location:
    """The place of new nodes: that of the innermost point, else the caller outside this package, and its layer.

    beyond: libraries that are gone past, too, on the way to the caller.
    """
    point = point_of(graph)
    return point.location or _caller(point.scope, beyond)


def _caller(scope: str, beyond: Container[str]) -> Location:
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage] - inspect.stack() reads source files
    while frame is not None:
        file = frame.f_code.co_filename
        library = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if not file.startswith(_INTERNAL) and library not in beyond:
            return Location(file, frame.f_lineno, scope)
        frame = frame.f_back
    return Location("", 0, scope)
