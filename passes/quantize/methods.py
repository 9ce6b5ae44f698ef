"""Methods of rounding by name."""

from __future__ import annotations

from ...ir.errors import ConfigError, did_you_mean
from .hqq import HalfQuadratic
from .plan import Method
from .rounding import Fitted, Nearest

PLAIN: tuple[Method, ...] = (Nearest(), Fitted(), HalfQuadratic())
"""Those that look at nothing but the weight."""


def plain_method(name: str) -> Method:
    """A method that looks at nothing but the weight. Raises ConfigError for another name."""
    known = {m.name: m for m in PLAIN}
    if name not in known:
        meant = did_you_mean(name, known)
        raise ConfigError(f"no method that rounds without text is called {name!r}{meant}", place="quantize")
    return known[name]
