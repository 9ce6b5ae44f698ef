"""What `x[...]` means on a value: NumPy's basic indexing, and integer indices along one axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from . import ops
from .errors import MonographError, OpError
from .types import Dim, DimLike, bool_, exact_div, i64
from .value import Index, Value


def item(x: Value, key: Index | tuple[Index, ...]) -> Value:
    """x[key], as NumPy gives it.

    Integers drop an axis; slices may be negative, have a step, and go over symbolic axes; None makes an axis of 1;
    one integer value, list or array chooses along its axis. Raises OpError for anything else, and for an index that
    is known to be outside.
    """
    keys = key if isinstance(key, tuple) else (key,)
    _check(keys)
    keys = _without_ellipsis(x, keys)
    axis = 0
    for i, k in enumerate(keys):
        if k is None:
            x = _reshaped(x, (*x.shape[:axis], 1, *x.shape[axis:]))
            axis += 1
        elif isinstance(k, slice):
            x = _sliced(x, axis, k)
            axis += 1
        elif isinstance(k, (int, np.integer, Dim)):
            x = _one(x, axis, k if isinstance(k, Dim) else int(cast("Any", k)))
        else:
            chosen = _chosen(x, axis, cast("Value | Sequence[int]", k))
            x = ops.gather(x, chosen, axis=axis)
            axis += chosen.rank
            _check_order(keys, i)
    return x


def _check(keys: tuple[Any, ...]) -> None:
    for k in keys:
        if _is_bool(k):
            what = "a bool index gives a shape that depends on the numbers, and a graph has none such"
            raise OpError(what, hint="choose by `ops.where(mask, x, y)`, which keeps the shape")
        if not (k is None or k is ... or isinstance(k, (int, np.integer, Dim, slice, Value, list, np.ndarray))):
            shown = repr(k) if isinstance(k, (str, float)) else f"a {type(k).__name__}"
            raise OpError(f"{shown} is no index: expected an integer, a slice, None, `...`, or integers")


def _is_bool(key: Any) -> bool:
    if isinstance(key, Value):
        return key.dtype == bool_
    if isinstance(key, (bool, np.bool_, list, np.ndarray)):
        return np.asarray(cast("Any", key)).dtype.kind == "b"
    return False


def _without_ellipsis(x: Value, keys: tuple[Index, ...]) -> tuple[Index, ...]:
    """Keys with one slice for each axis that `...` stands for."""
    taken = sum(k is not None and k is not ... for k in keys)
    at = [i for i, k in enumerate(keys) if k is ...]
    if len(at) > 1:
        raise OpError("`...` stands twice in one index")
    if taken > x.rank:
        raise OpError(f"{taken} indices for the {x.rank} axes of {x.type}")
    if not at:
        return keys
    return (*keys[: at[0]], *[slice(None)] * (x.rank - taken), *keys[at[0] + 1 :])


def _check_order(keys: tuple[Any, ...], at: int) -> None:
    """NumPy moves axes to the front where integers and an array are apart; that is refused, not guessed."""
    others = [i for i, k in enumerate(keys) if i != at and k is not None and not isinstance(k, slice)]
    if any(not isinstance(keys[i], (int, np.integer, Dim)) for i in others):
        raise OpError("integers along two axes at once", hint="index one axis, and then the other")
    if any(isinstance(k, slice) or k is None for i in others for k in keys[min(i, at) : max(i, at)]):
        raise OpError("an integer and an array of integers, apart", hint="index one axis, and then the other")


def _one(x: Value, axis: int, index: DimLike) -> Value:
    size = x.shape[axis]
    start = size + index if isinstance(index, int) and index < 0 else index
    if isinstance(size, int) and isinstance(start, int) and not 0 <= start < size:
        raise OpError(f"index {index} is outside the {size} elements of axis {axis} of {x.type}")
    return _reshaped(_part(x, axis, start, 1), (*x.shape[:axis], *x.shape[axis + 1 :]))


def _sliced(x: Value, axis: int, key: slice) -> Value:
    step = 1 if key.step is None else key.step
    if not isinstance(step, (int, np.integer)) or isinstance(step, bool) or step == 0:
        raise OpError(f"the step of a slice is {key.step!r}, expected an integer other than 0")
    step, size = int(cast("Any", step)), x.shape[axis]
    start, stop = (_bound(b, size, step, axis) for b in (key.start, key.stop))
    if start is None:
        start = 0 if step > 0 else size - 1
    if stop is None:
        stop = size if step > 0 else -1
    span = stop - start if step > 0 else start - stop
    if isinstance(span, int) and span < 0:
        span = 0
    if step == 1:
        return _part(x, axis, start, span)
    return _strided(x, axis, start, span, step)


def _bound(given: Any, size: DimLike, step: int, axis: int) -> DimLike | None:
    """A start or an end counted from the left; cut off at the ends of an axis whose size is a number."""
    if given is None or isinstance(given, Dim):
        return given
    if isinstance(given, bool) or not isinstance(given, (int, np.integer)):
        shown = repr(given) if isinstance(given, (bool, float, str)) else f"a {type(given).__name__}"
        raise OpError(f"a bound of axis {axis} is {shown}, expected an integer or a dimension")
    bound = int(cast("Any", given))
    if isinstance(size, int):
        low, high = (0, size) if step > 0 else (-1, size - 1)
        return max(low, min(bound + size if bound < 0 else bound, high))
    return size + bound if bound < 0 else bound


def _part(x: Value, axis: int, start: DimLike, length: DimLike) -> Value:
    if start == 0 and length == x.shape[axis]:
        return x
    return ops.slice_(x, axis=axis, start=start, length=length)


def _strided(x: Value, axis: int, start: DimLike, span: DimLike, step: int) -> Value:
    """Every `step`-th element: by a view where the axis falls apart into rows of `step`, else by their places."""
    size = x.shape[axis]
    if step > 1 and isinstance(start, int) and start < step and start + span == size:
        rows = _divided(size, step)
        if rows is not None:
            apart = _reshaped(x, (*x.shape[:axis], rows, step, *x.shape[axis + 1 :]))
            return _one(apart, axis + 1, start)
    length = -(-span // abs(step)) if isinstance(span, int) else _divided(span, abs(step))
    if length is None:
        what = f"a step of {step} over {span} elements: no dimension says how many that are"
        raise OpError(what, hint=f"slice a multiple of {abs(step)} elements")
    places = ops.iota(start=0, length=length) * step + start
    return ops.gather(x, places, axis=axis)


def _divided(size: DimLike, by: int) -> DimLike | None:
    try:
        return exact_div(size, by)
    except MonographError:
        return None


def _chosen(x: Value, axis: int, key: Value | Sequence[int]) -> Value:
    """Integer indices as a value; those that are written out are checked, and counted from the left."""
    if isinstance(key, Value):
        return key
    places, size = np.asarray(key), x.shape[axis]
    if places.dtype.kind not in "iu" and places.size:
        raise OpError(f"an index is an array of {places.dtype}, expected integers")
    if isinstance(size, int):
        outside = places[(places < -size) | (places >= size)]
        if outside.size:
            raise OpError(f"index {outside.flat[0]} is outside the {size} elements of axis {axis} of {x.type}")
        places = np.where(places < 0, places + size, places)
    elif (places < 0).any():
        raise OpError(f"negative indices in a list over {size} elements", hint="write them as x[-1], one by one")
    return x.graph.constant(places.astype(np.int64).tolist(), i64)


def _reshaped(x: Value, shape: tuple[DimLike, ...]) -> Value:
    return x if shape == x.shape else ops.reshape(x, shape=shape)
