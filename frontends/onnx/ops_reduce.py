"""Reductions, products and norms of ONNX in primitives and composites."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...ir import ops
from ...ir.graph import Value
from ...ir.types import DType, f32, i32, i64, product
from .errors import Unmapped
from .use import Handler, Handlers, Use

Step = Callable[..., Value]


def over(x: Value, axes: Sequence[int], step: Step, *, keep: bool) -> Value:
    """A reduction over several axes, one after the other."""
    y = x
    for axis in axes:
        y = step(y, axis=axis, keepdims=True)
    if keep:
        return y
    return ops.reshape(y, shape=tuple(d for i, d in enumerate(y.shape) if i not in axes))


def _axes(use: Use, since: int, rank: int) -> Sequence[int] | None:
    """Axes to reduce: all where none are given; None: none at all."""
    axes, keep = use.axes(1, since, rank), bool(use.attribute("noop_with_empty_axes", 0))
    if axes:
        return axes
    return None if keep else range(rank)


def _reduction(step: Step, since: int = 18, before: Step | None = None, after: Step | None = None) -> Handler:
    def handler(use: Use) -> Value:
        x = use[0]
        axes, keep = _axes(use, since, x.rank), bool(use.attribute("keepdims", 1))
        narrow = x.dtype == i32 and (before is None or step in (ops.sum, ops.prod))
        wide = x.cast(i64) if narrow and step in (ops.sum, ops.prod) else x
        y = wide if before is None else before(wide)
        if axes is not None:
            y = over(y, axes, step, keep=keep)
        y = y if after is None else after(y)
        return y.cast(x.dtype) if y.dtype != x.dtype else y

    return handler


def _square(x: Value) -> Value:
    return x * x


def _log_sum_exp(use: Use) -> Value:
    x = use[0]
    axes, keep = _axes(use, 18, x.rank), bool(use.attribute("keepdims", 1))
    if axes is None:
        return x
    most = over(x, axes, ops.max, keep=True)
    y = ops.log(over(ops.exp(x - most), axes, ops.sum, keep=True)) + most
    if keep:
        return y
    return ops.reshape(y, shape=tuple(d for i, d in enumerate(y.shape) if i not in axes))


def _extreme(sign: int) -> Handler:
    def handler(use: Use) -> Value:
        if use.attribute("select_last_index", 0):
            raise Unmapped("of equal elements the last is asked for")
        x = use[0] if sign > 0 else ops.neg(use[0])
        return ops.argmax(x, axis=use.attribute("axis", 0), keepdims=bool(use.attribute("keepdims", 1)))

    return handler


def _softmax_of(function: Callable[[Value, int], Value]) -> Handler:
    """Along an axis; before version 13, over all axes from that one on."""

    def handler(use: Use) -> Value:
        x = use[0]
        axis = use.axis(use.attribute("axis", -1 if use.version >= 13 else 1), x.rank)
        if use.version >= 13 or axis == x.rank - 1:
            return function(x, axis)
        flat = ops.reshape(x, shape=(product(x.shape[:axis]), product(x.shape[axis:])))
        return ops.reshape(function(flat, 1), shape=x.shape)

    return handler


def _softmax(x: Value, axis: int) -> Value:
    return ops.softmax(x, axis=axis)


def _log_softmax(x: Value, axis: int) -> Value:
    centred = x - ops.max(x, axis=axis)
    return centred - ops.log(ops.sum(ops.exp(centred), axis=axis))


def _hardmax(x: Value, axis: int) -> Value:
    places = ops.argmax(x, axis=axis)
    shape = tuple(d if i == axis else 1 for i, d in enumerate(x.shape))
    return ops.equal(places, ops.reshape(ops.iota(start=0, length=x.shape[axis]), shape=shape)).cast(x.dtype)


def _cumsum(use: Use) -> Value:
    x, axis = use[0], use.axis(use.ints(1)[0], use[0].rank)
    wide = x.cast(i64) if x.dtype == i32 else x
    y = ops.cumsum(wide, axis=axis)
    if use.attribute("reverse", 0):
        y = ops.sum(wide, axis=axis) - y
        y = y if use.attribute("exclusive", 0) else y + wide
    elif use.attribute("exclusive", 0):
        y = y - wide
    return y if x.dtype == y.dtype else y.cast(x.dtype)


def _topk(use: Use) -> tuple[Value, Value]:
    x = use[0]
    use.skip("sorted")  # Without it any order is right, and so is the sorted one.
    k = use.attribute("k") if use.version < 10 else use.ints(1)[0]
    axis = use.axis(use.attribute("axis", -1), x.rank)
    order = [i for i in range(x.rank) if i != axis] + [axis]
    back = tuple(order.index(i) for i in range(x.rank))
    moved = ops.transpose(x, permutation=tuple(order)) if axis != x.rank - 1 else x
    largest = bool(use.attribute("largest", 1))
    values, indices = ops.topk(moved if largest else ops.neg(moved), k=k)
    values = values if largest else ops.neg(values)
    if axis != x.rank - 1:
        values, indices = (ops.transpose(v, permutation=back) for v in (values, indices))
    return values, indices


def matmul(x: Value, y: Value) -> Value:
    """As NumPy multiplies, vectors too."""
    a = ops.reshape(x, shape=(1, *x.shape)) if x.rank == 1 else x
    b = ops.reshape(y, shape=(*y.shape, 1)) if y.rank == 1 else y
    z = ops.matmul(a, b)
    shape = z.shape
    if y.rank == 1:
        shape = shape[:-1]
    if x.rank == 1:
        shape = (*shape[:-2], *shape[-1:]) if y.rank > 1 else shape[:-1]
    return z if shape == z.shape else ops.reshape(z, shape=shape)


def _gemm(use: Use) -> Value:
    a, b, c = use[0], use[1], use.get(2)
    alpha, beta = use.attribute("alpha", 1.0), use.attribute("beta", 1.0)
    a = ops.transpose(a, permutation=(1, 0)) if use.attribute("transA", 0) else a
    turned = bool(use.attribute("transB", 0))
    width = b.shape[0 if turned else 1]
    plain = alpha == 1.0 and (c is None or (beta == 1.0 and c.shape == (width,)))
    if plain and a.dtype.is_float:
        return ops.linear(a, b, c, transposed=not turned)
    y = ops.matmul(a, ops.transpose(b, permutation=(1, 0)) if turned else b)
    y = y if alpha == 1.0 else y * _factor(alpha, y.dtype)
    if c is None:
        return y
    return y + (c if beta == 1.0 else c * _factor(beta, c.dtype))


def _factor(number: float, dtype: DType) -> Value:
    if not dtype.is_float and number != int(number):
        raise Unmapped(f"integers are multiplied by {number}")
    return ops.constant(value=number if dtype.is_float else int(number), dtype=dtype)


def normed(x: Value, axes: Sequence[int], eps: float, *, centred: bool) -> Value:
    """x with mean 0 (if `centred`) and mean square 1 over axes, without a weight."""
    wide = x.cast(f32) if x.dtype.bits < 32 else x
    if centred:
        wide = wide - over(wide, axes, ops.mean, keep=True)
    y = wide * ops.rsqrt(over(wide * wide, axes, ops.mean, keep=True) + eps)
    return y if y.dtype == x.dtype else y.cast(x.dtype)


def layer_norm(use: Use) -> Value:
    if use.outputs(1, 2):
        raise Unmapped("its mean or its deviation is read")
    x, w, b = use[0], use[1], use.get(2)
    axis, eps = use.axis(use.attribute("axis", -1), x.rank), use.attribute("epsilon", 1e-5)
    if axis == x.rank - 1 and w.shape == x.shape[-1:] and (b is None or b.shape == w.shape):
        return ops.layer_norm(x, w, b, eps=eps)
    y = normed(x, range(axis, x.rank), eps, centred=True) * w
    return y if b is None else y + b


def rms_norm(use: Use) -> Value:
    if use.outputs(1):
        raise Unmapped("its deviation is read")
    x, w = use[0], use[1]
    axis, eps = use.axis(use.attribute("axis", -1), x.rank), use.attribute("epsilon", 1e-5)
    if w.dtype != x.dtype:
        raise Unmapped(f"x is {x.dtype} and its weight {w.dtype}")
    if axis == x.rank - 1 and w.shape == x.shape[-1:]:
        return ops.rms_norm(x, w, eps=eps)
    return normed(x, range(axis, x.rank), eps, centred=False) * w


def _by_channel(v: Value, x: Value) -> Value:
    return ops.reshape(v, shape=(1, v.shape[0], *(1,) * (x.rank - 2)))


def _batch_norm(use: Use) -> Value:
    if use.attribute("training_mode", 0) or use.outputs(1, 2, 3, 4):
        raise Unmapped("it is in training mode")
    x, w, b, mean, variance = (use[i] for i in range(5))
    if any(v.dtype != x.dtype for v in (w, b, mean, variance)):
        raise Unmapped("its operands are of several types")
    factor = w * ops.rsqrt(variance + use.attribute("epsilon", 1e-5))
    return (x - _by_channel(mean, x)) * _by_channel(factor, x) + _by_channel(b, x)


def _instance_norm(use: Use) -> Value:
    x, w, b = use[0], use[1], use[2]
    y = normed(x, range(2, x.rank), use.attribute("epsilon", 1e-5), centred=True)
    return y * _by_channel(w, x) + _by_channel(b, x)


def _group_norm(use: Use) -> Value:
    x, w, b, groups = use[0], use[1], use[2], use.attribute("num_groups")
    split = ops.reshape(x, shape=(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]))
    y = normed(split, range(2, split.rank), use.attribute("epsilon", 1e-5), centred=True)
    if use.version < 21:
        one = (1, groups, 1, *(1,) * (x.rank - 2))
        return ops.reshape(y * ops.reshape(w, shape=one) + ops.reshape(b, shape=one), shape=x.shape)
    return ops.reshape(y, shape=x.shape) * _by_channel(w, x) + _by_channel(b, x)


def _lp_norm(use: Use) -> Value:
    x, p = use[0], use.attribute("p", 2)
    axis = use.attribute("axis", -1)
    if p not in (1, 2):
        raise Unmapped(f"a norm of order {p}")
    size = ops.sum(ops.abs(x), axis=axis) if p == 1 else ops.sqrt(ops.sum(x * x, axis=axis))
    return x / ops.where(ops.equal(size, ops.constant(value=0.0, dtype=x.dtype)), 1.0, size)


def _mean_variance(use: Use) -> Value:
    x = use[0]
    axes = [use.axis(a, x.rank) for a in use.attribute("axes", (0, 2, 3))]
    centred = x - over(x, axes, ops.mean, keep=True)
    return centred / (ops.sqrt(over(centred * centred, axes, ops.mean, keep=True)) + 1e-9)


def _global_pool(step: Step) -> Handler:
    def handler(use: Use) -> Value:
        x = use[0]
        return over(x, range(2, x.rank), step, keep=True)

    return handler


REDUCTIONS: Handlers = {
    "ReduceSum": _reduction(ops.sum, 13),
    "ReduceMean": _reduction(ops.mean),
    "ReduceMax": _reduction(ops.max),
    "ReduceMin": _reduction(ops.min),
    "ReduceProd": _reduction(ops.prod),
    "ReduceL1": _reduction(ops.sum, before=ops.abs),
    "ReduceL2": _reduction(ops.sum, before=_square, after=ops.sqrt),
    "ReduceSumSquare": _reduction(ops.sum, before=_square),
    "ReduceLogSum": _reduction(ops.sum, after=ops.log),
    "ReduceLogSumExp": _log_sum_exp,
    "ArgMax": _extreme(1),
    "ArgMin": _extreme(-1),
    "Softmax": _softmax_of(_softmax),
    "LogSoftmax": _softmax_of(_log_softmax),
    "Hardmax": _softmax_of(_hardmax),
    "CumSum": _cumsum,
    "TopK": _topk,
    "MatMul": lambda use: matmul(use[0], use[1]),
    "Gemm": _gemm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": rms_norm,
    "SimplifiedLayerNormalization": rms_norm,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LpNormalization": _lp_norm,
    "MeanVarianceNormalization": _mean_variance,
    "GlobalAveragePool": _global_pool(ops.mean),
    "GlobalMaxPool": _global_pool(ops.max),
}
"""By op type of the standard domain."""
