"""The operators that have a form in the IR, by domain and op type."""

from __future__ import annotations

from collections.abc import Mapping

from .ops_elementwise import ELEMENTWISE
from .ops_reduce import REDUCTIONS
from .ops_shape import MOVES
from .use import Handler, Handlers


def _of(domain: str, handlers: Handlers) -> dict[tuple[str, str], Handler]:
    return {(domain, name): handler for name, handler in handlers.items()}


HANDLERS: Mapping[tuple[str, str], Handler] = {
    **_of("", ELEMENTWISE),
    **_of("", MOVES),
    **_of("", REDUCTIONS),
}
