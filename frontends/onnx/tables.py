"""The operators that have a form in the IR, by domain and op type."""

from __future__ import annotations

from collections.abc import Mapping

from .ops_attention import ATTENTION
from .ops_elementwise import ELEMENTWISE
from .ops_microsoft import MICROSOFT
from .ops_products import PRODUCTS
from .ops_quantized import MICROSOFT_QUANTIZED, QUANTIZED
from .ops_reduce import REDUCTIONS
from .ops_shape import MOVES
from .use import Handler, Handlers


def _of(domain: str, handlers: Handlers) -> dict[tuple[str, str], Handler]:
    return {(domain, name): handler for name, handler in handlers.items()}


HANDLERS: Mapping[tuple[str, str], Handler] = {
    **_of("", ELEMENTWISE),
    **_of("", MOVES),
    **_of("", REDUCTIONS),
    **_of("", PRODUCTS),
    **_of("", ATTENTION),
    **_of("", QUANTIZED),
    **_of("com.microsoft", MICROSOFT),
    **_of("com.microsoft", MICROSOFT_QUANTIZED),
}
