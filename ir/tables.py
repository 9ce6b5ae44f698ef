"""Tables of numbers that graphs hold as constants: text names the call that makes one, and reads it back."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

from .errors import MonographError, did_you_mean

P = ParamSpec("P")
MOST = 1 << 20
"""Most numbers of a table; more are a mistake, or a text that was written to take memory."""

TABLES: dict[str, Callable[..., Table]] = {}


class Table(tuple[Any, ...]):
    """Nested tuples of numbers that know the call which makes them; equal to plain tuples of the same numbers.

    maker: name of the function. arguments: by name, without those that have their default.
    """

    maker: str
    arguments: dict[str, Any]

    def __new__(cls, numbers: Any, maker: str, arguments: dict[str, Any]) -> Table:
        made = super().__new__(cls, numbers)
        made.maker, made.arguments = maker, arguments
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self), self.maker, self.arguments


def table(function: Callable[P, tuple[Any, ...]], name: str = "") -> Callable[P, Table]:
    """Let text name a pure function that gives nested tuples of numbers. name: by default its own."""
    name = name or function.__name__
    signature = inspect.signature(function)
    if name in TABLES:
        raise MonographError(f"two tables are called {name}")

    def make(*args: P.args, **kwargs: P.kwargs) -> Table:
        given = signature.bind(*args, **kwargs).arguments
        said = {k: v for k, v in given.items() if v != signature.parameters[k].default}
        return Table(function(*args, **kwargs), name, said)

    make.__name__, make.__doc__ = name, function.__doc__
    TABLES[name] = make
    return make


def made(name: str, arguments: dict[str, Any]) -> Table:
    """The table that a call makes. Raises MonographError for an unknown function and for arguments that do not fit."""
    if name not in TABLES:
        raise MonographError(f"no table is called {name!r}{did_you_mean(name, TABLES)}")
    try:
        return TABLES[name](**arguments)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as e:
        raise MonographError(f"table {name}: {e}") from None


def sized(count: int) -> int:
    """The number of rows of a table. Raises MonographError for one that is too large, or not an integer above 0."""
    if not isinstance(count, int) or not 0 < count <= MOST:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise MonographError(f"a table has {count!r} rows, expected 1 to {MOST:,}")
    return count
