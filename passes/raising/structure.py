"""The parts of a mask as structure: causal, window, lengths; what is left is a bool operand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...ir.graph import Value
from ...ir.ops.logic import Less
from ...ir.types import DimLike, i32
from .affine import affine, band
from .constants import Read
from .views import flat, view_of


@dataclass(frozen=True)
class Structure:
    """Mask operands and attributes of an attention."""

    mask: Value | None = None
    lengths: Value | None = None
    causal: bool = False
    window: int | None = None


def structured(parts: Sequence[Value], sizes: Sequence[DimLike], read: Read | None) -> Structure:
    """Bools that broadcast to [B,H,S,T], all to be true, as structure. sizes: B, H, S, T."""
    batch, _, rows, keys = sizes
    causal, window, lengths = False, None, None
    windows: list[tuple[int, Value]] = []
    rest: list[Value] = []
    for part in parts:
        found = band(part, rows, keys, read)
        if found is None:
            counted = _lengths(part, batch, keys)
            if counted is not None and lengths is None:
                lengths = counted
            else:
                rest.append(part)
        elif found.window is not None:
            windows.append((found.window, part))
        causal = causal or (found is not None and found.causal)
    for size, part in windows:
        if causal:
            window = size if window is None else min(size, window)
        else:
            rest.append(part)  # The op has a window for causal attention only.
    mask: Value | None = None
    for part in dict.fromkeys(rest):
        mask = part if mask is None else mask & part
    return Structure(mask, lengths, causal, window)


def _lengths(part: Value, batch: DimLike, keys: DimLike) -> Value | None:
    """`lengths` of a part [B,1,1,T] that is true for the first lengths[b] keys."""
    node = part.producer
    if node is None or not isinstance(node.op, Less) or part.rank != 4 or part.shape[1:3] != (1, 1):
        return None
    place, count = node.arguments
    found = affine(place)
    if found is None or found.offset != 0 or place.shape[-1:] != (keys,):
        return None
    if found.slopes[-1] != 1 or any(found.slopes[:-1]):
        return None
    if count.dtype.is_float or count.shape[-1:] != (1,) or count.type.elements != batch:
        return None
    view = view_of(count)
    if len(flat(view.order)) > 1:
        return None
    return count.reshape(batch).cast(i32)
