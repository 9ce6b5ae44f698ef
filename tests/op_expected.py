"""What each op must give, written a second time and another way: loops, complex numbers, integrals. Slow and plain."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def erf(x: Array) -> Array:
    """2/sqrt(pi) times the integral of exp(-t^2) from 0 to x, by Simpson's rule."""
    t = np.linspace(0, 1, 2001)
    weights = np.full(2001, 2.0)
    weights[1::2] = 4.0
    weights[[0, -1]] = 1.0
    return 2 / math.sqrt(math.pi) * x * (np.exp(-((x[..., None] * t) ** 2)) * weights).sum(-1) / 6000


def sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(x / 2))


def gelu(x: Array, tanh: bool = False) -> Array:
    if tanh:
        return x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return x * (1 + erf(x / math.sqrt(2))) / 2


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: gelu(x, tanh=True),
    "silu": lambda x: x * sigmoid(x),
    "relu": lambda x: np.clip(x, 0, None),
}


def where(condition: Array, x: Array, y: Array) -> Array:
    shape = np.broadcast_shapes(condition.shape, x.shape, y.shape)
    condition, x, y = (np.broadcast_to(a, shape) for a in (condition, x, y))
    return np.array([a if c else b for c, a, b in zip(condition.flat, x.flat, y.flat, strict=True)]).reshape(shape)


def softmax(x: Array, axis: int = -1) -> Array:
    return np.apply_along_axis(lambda row: [1 / np.exp(np.clip(row - v, None, 700)).sum() for v in row], axis, x)


def gather(x: Array, indices: Array, axis: int = 0) -> Array:
    slices = np.moveaxis(x, axis, 0)
    rows = [slices[int(i)] for i in indices.flat]
    stacked = np.array(rows).reshape(*indices.shape, *slices.shape[1:])
    at = axis % x.ndim
    return np.moveaxis(stacked, range(indices.ndim), range(at, at + indices.ndim))


def take_along_axis(x: Array, indices: Array, axis: int = -1) -> Array:
    out = np.empty(indices.shape, x.dtype)
    for at in np.ndindex(indices.shape):
        source = list(at)
        source[axis] = indices[at]
        out[at] = x[tuple(source)]
    return out


def linear(x: Array, w: Array, b: Array | None = None, transposed: bool = False) -> Array:
    return np.einsum("...i,io->...o" if transposed else "...i,oi->...o", x, w) + (0 if b is None else b)


def convolution(
    x: Array, w: Array, b: Array | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Array:
    """One output number at a time, over the taps that meet x."""
    axes = x.ndim - 2
    stride, padding, dilation = ((n,) * axes if isinstance(n, int) else n for n in (stride, padding, dilation))
    sizes = [
        len(range(0, n + 2 * p - d * (k - 1), s))
        for n, k, s, p, d in zip(x.shape[2:], w.shape[2:], stride, padding, dilation, strict=True)
    ]
    y = np.zeros((len(x), len(w), *sizes))
    for row, out, *at in np.ndindex(y.shape):
        first = out // (len(w) // groups) * w.shape[1]
        for c, *tap in np.ndindex(w.shape[1:]):
            place = tuple(i * s + k * d - p for i, s, k, d, p in zip(at, stride, tap, dilation, padding, strict=True))
            if all(0 <= i < n for i, n in zip(place, x.shape[2:], strict=True)):
                y[(row, out, *at)] += w[(out, c, *tap)] * x[(row, first + c, *place)]
    return y if b is None else y + np.reshape(b, (-1, *(1,) * axes))


def rms_norm(x: Array, w: Array, eps: float = 1e-6) -> Array:
    return x / np.sqrt((x**2).sum(-1, keepdims=True) / x.shape[-1] + eps) * w


def layer_norm(x: Array, w: Array, b: Array | None = None, eps: float = 1e-5) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * w + (0 if b is None else b)


def attention(
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None = None,
    mask: Array | None = None,
    lengths: Array | None = None,
    sinks: Array | None = None,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Array:
    """One query and one head at a time, over the list of keys it may see."""
    (batch, rows, heads, width), (keys, groups) = q.shape, k.shape[1:3]
    full = (batch, heads, rows, keys)
    mask = np.broadcast_to(True if mask is None else mask, full)
    bias = np.broadcast_to(0.0 if bias is None else bias, full)
    y = np.zeros((batch, rows, heads, v.shape[3]))
    for b, i, h in product(range(batch), range(rows), range(heads)):
        position, g = keys - rows + i, h // (heads // groups)
        seen = [
            j
            for j in range(keys)
            if mask[b, h, i, j]
            and (lengths is None or j < lengths[b])
            and (not causal or j <= position)
            and (window is None or position - j < window)
        ]
        scores = [float(q[b, i, h] @ k[b, j, g]) * (width**-0.5 if scale is None else scale) for j in seen]
        if softcap is not None:
            scores = [softcap * math.tanh(s / softcap) for s in scores]
        weights = [math.exp(s + bias[b, h, i, j]) for s, j in zip(scores, seen, strict=True)]
        total = sum(weights) + (0.0 if sinks is None else math.exp(sinks[h]))
        for w, j in zip(weights, seen, strict=True):
            y[b, i, h] += w / total * v[b, j, g]
    return y


def rope(
    x: Array,
    positions: Array,
    frequencies: Array,
    interleaved: bool = False,
    rotary_dim: int | None = None,
    scale: float = 1.0,
) -> Array:
    """A pair of channels as one complex number, turned by e^(i angle)."""
    half = len(frequencies)
    turn = scale * np.exp(1j * positions[..., None, None] * frequencies)
    real = x[..., 0 : 2 * half : 2] if interleaved else x[..., :half]
    imaginary = x[..., 1 : 2 * half : 2] if interleaved else x[..., half : 2 * half]
    turned = (real + 1j * imaginary) * turn
    y = x.copy()
    if interleaved:
        y[..., 0 : 2 * half : 2], y[..., 1 : 2 * half : 2] = turned.real, turned.imag
    else:
        y[..., :half], y[..., half : 2 * half] = turned.real, turned.imag
    return y


def sinusoidal_positions(positions: Array, dim: int, dtype: Any) -> Array:
    y = np.empty((*positions.shape, dim))
    for *at, i in np.ndindex(y.shape):
        angle = positions[tuple(at)] / 10000 ** (2 * (i // 2) / dim)
        y[(*at, i)] = math.cos(angle) if i % 2 else math.sin(angle)
    return y


def cross_entropy(logits: Array, labels: Array, ignore_index: int = -100, label_smoothing: float = 0.0) -> Array:
    total, count, classes = 0.0, 0, logits.shape[-1]
    for row, label in zip(logits.reshape(-1, classes), labels.flat, strict=True):
        if label != ignore_index:
            target = np.full(classes, label_smoothing / classes)
            target[label] += 1 - label_smoothing
            total -= float((target * np.log(np.exp(row) / np.exp(row).sum())).sum())
            count += 1
    return np.array(total / max(count, 1))


def feed_forward(
    x: Array, w_up: Array, w_down: Array, b_up: Any = None, b_down: Any = None, *, activation: str, **layout: bool
) -> Array:
    return linear(ACTIVATIONS[activation](linear(x, w_up, b_up, **layout)), w_down, b_down, **layout)


def gated_feed_forward(
    x: Array, w_gate: Array, w_up: Array, w_down: Array, b_gate: Any, b_up: Any, b_down: Any, activation: str
) -> Array:
    return linear(ACTIVATIONS[activation](linear(x, w_gate, b_gate)) * linear(x, w_up, b_up), w_down, b_down)


EXPECTED: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x - (-y),
    "sub": lambda x, y: x + (-y),
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x * y**-1.0,
    "maximum": lambda x, y: where(x > y, x, y),
    "minimum": lambda x, y: where(x < y, x, y),
    "floor_div": lambda x, y: np.floor(x / (y + 9**9 * (y == 0))) * (y != 0),
    "mod": lambda x, y: x * (y != 0) - y * np.floor(x / (y + (y == 0))),
    "pow": lambda x, y: np.exp(y * np.log(x)),
    "neg": lambda x: 0 - x,
    "abs": lambda x: np.sign(x) * x,
    "exp": lambda x: math.e**x,
    "log": lambda x: np.log2(x) / np.log2(math.e),
    "sqrt": lambda x: x**0.5,
    "rsqrt": lambda x: x**-0.5,
    "tanh": lambda x: (math.e**x - math.e**-x) / (math.e**x + math.e**-x),
    "sin": lambda x: np.exp(1j * x).imag,
    "cos": lambda x: np.exp(1j * x).real,
    "erf": erf,
    "sigmoid": sigmoid,
    "floor": lambda x: np.trunc(x) - (x < np.trunc(x)),
    "equal": lambda x, y: ~((x < y) | (x > y)),
    "less": lambda x, y: y - x > 0,
    "less_equal": lambda x, y: y - x >= 0,
    "logical_and": lambda x, y: x * y,
    "logical_or": lambda x, y: ~(~x * ~y),
    "logical_not": lambda x: x ^ True,
    "where": where,
    "cast": lambda x, dtype: np.trunc(x) if not dtype.is_float else x * 1.0,
    "constant": lambda value, dtype: np.array(value),
    "sum": lambda x, axis=-1, keepdims=True: np.add.reduce(x, axis=axis, keepdims=keepdims),
    "mean": lambda x, axis=-1, keepdims=True: np.add.reduce(x, axis=axis, keepdims=keepdims) / x.shape[axis],
    "max": lambda x, axis=-1, keepdims=True: np.take(np.sort(x, axis), [-1] if keepdims else -1, axis=axis),
    "min": lambda x, axis=-1, keepdims=True: -np.take(np.sort(-x, axis), [-1] if keepdims else -1, axis=axis),
    "any": lambda x, axis=-1, keepdims=True: np.add.reduce(x.astype(int), axis=axis, keepdims=keepdims) > 0,
    "argmax": lambda x, axis=-1, keepdims=True: np.take(np.argsort(x, axis), [-1] if keepdims else -1, axis=axis),
    "softmax": softmax,
    "cumsum": lambda x, axis=-1: np.apply_along_axis(lambda r: [sum(r[: i + 1]) for i in range(len(r))], axis, x),
    "reshape": lambda x, shape: np.array(x.ravel().tolist()).reshape(shape),
    "transpose": lambda x, permutation: np.moveaxis(x, permutation, range(x.ndim)),
    "expand": lambda x, shape: x * np.ones(shape),
    "concat": lambda *xs, axis: np.moveaxis(np.array([s for x in xs for s in np.moveaxis(x, axis, 0)]), 0, axis),
    "slice": lambda x, axis, start, length: np.take(x, range(start, start + length), axis=axis),
    "gather": gather,
    "take_along_axis": take_along_axis,
    "iota": lambda start, length, dtype=None: np.cumsum(np.ones(length)) - 1 + start,
    "matmul": lambda x, y: np.einsum("...mk,...kn->...mn", x, y),
    "linear": linear,
    "conv1d": convolution,
    "conv2d": convolution,
    "embedding": lambda ids, table: np.eye(len(table))[ids] @ table,
    "rms_norm": rms_norm,
    "layer_norm": layer_norm,
    "add_rms_norm": lambda x, r, w, eps=1e-6: (rms_norm(x + r, w, eps), x + r),
    "add_layer_norm": lambda x, r, w, b=None, eps=1e-5: (layer_norm(x + r, w, b, eps), x + r),
    "attention": attention,
    "rope": rope,
    "sinusoidal_positions": sinusoidal_positions,
    "gelu": gelu,
    "silu": ACTIVATIONS["silu"],
    "relu": ACTIVATIONS["relu"],
    "softplus": lambda x: np.logaddexp(x, 0),
    "feed_forward": feed_forward,
    "gated_feed_forward": gated_feed_forward,
    "dropout": lambda x, p: x,
    "detach": lambda x: x,
    "cache_append": lambda past, new: np.concatenate([past, new.swapaxes(1, 2)], axis=2),
    "cache_read": lambda cache: cache.swapaxes(1, 2),
    "cross_entropy": cross_entropy,
}


# -- recurrent layers: row by row, only the steps that count, one gate at a time ---------------------------------------


def recurrent(gates: int, step: Callable[..., tuple[Array, ...]], states: int) -> Callable[..., tuple[Array, ...]]:
    """step(parts, *states) -> states, parts[g] = (from x, from h) of gate g."""

    def run(x: Array, w: Array, r: Array, b: Any, d: Any, *rest: Any, activation: str = "tanh") -> tuple[Array, ...]:
        given, lengths, width = rest[:states], rest[states], r.shape[1]
        blocks = [slice(g * width, (g + 1) * width) for g in range(gates)]
        b, d = (np.zeros(gates * width) if a is None else a for a in (b, d))
        y, last = np.zeros((*x.shape[:2], width)), [np.zeros((len(x), width)) for _ in range(states)]
        for row, steps in enumerate(x):
            now = tuple(np.zeros(width) if s is None else s[row] for s in given)
            for t in range(len(steps) if lengths is None else lengths[row]):
                parts = [(w[k].dot(steps[t]) + b[k], r[k].dot(now[0]) + d[k]) for k in blocks]
                now = step(parts, *now, **({"activation": activation} if gates == 1 else {}))
                y[row, t] = now[0]
            for total, s in zip(last, now, strict=True):
                total[row] = s
        return y, *last

    return run


def rnn_step(parts: Any, h: Array, activation: str) -> tuple[Array]:
    total = sum(parts[0])
    return (2 * sigmoid(2 * total) - 1 if activation == "tanh" else np.clip(total, 0, None),)


def lstm_step(parts: Any, h: Array, c: Array) -> tuple[Array, Array]:
    i, f, g, o = (sum(p) for p in parts)
    new = c * sigmoid(f) + (2 * sigmoid(2 * g) - 1) * sigmoid(i)
    return (2 * sigmoid(2 * new) - 1) * sigmoid(o), new


def gru_step(parts: Any, h: Array) -> tuple[Array]:
    r, z = (sigmoid(sum(p)) for p in parts[:2])
    n = 2 * sigmoid(2 * (parts[2][0] + r * parts[2][1])) - 1
    return (n + z * (h - n),)


def compact(mask: Array) -> tuple[Array, Array, Array]:
    order = [[*np.flatnonzero(row), *np.flatnonzero(~row)] for row in mask]
    place = [[max(sum(row[: i + 1]) - 1, 0) for i in range(len(row))] for row in mask]
    return np.array(order), np.array(place), np.array([sum(row) for row in mask])


EXPECTED |= {
    "rnn": recurrent(1, rnn_step, 1),
    "lstm": recurrent(4, lstm_step, 2),
    "gru": recurrent(3, gru_step, 1),
    "compact": compact,
}


# -- experts, and mixers with a state of fixed size: token by token ----------------------------------------------------


def topk(x: Array, k: int) -> tuple[Array, Array]:
    rows = [sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in x.reshape(-1, x.shape[-1])]
    order = np.array(rows).reshape(*x.shape[:-1], k)
    return take_along_axis(x, order), order


def moe(x: Array, weights: Array, indices: Array, *experts: Array, activation: str) -> Array:
    y = np.zeros_like(x)
    for at in np.ndindex(indices.shape):
        gate, up, down = experts[3 * indices[at] : 3 * indices[at] + 3]
        y[at[:-1]] += weights[at] * down.dot(ACTIVATIONS[activation](gate.dot(x[at[:-1]])) * up.dot(x[at[:-1]]))
    return y


def causal_conv(x: Array, w: Array, b: Any, tail: Any, mask: Any) -> tuple[Array, Array]:
    tails = np.zeros((len(x), w.shape[1] - 1, x.shape[2])) if tail is None else tail.copy()
    y = np.zeros_like(x)
    for row, t in np.ndindex(x.shape[:2]):
        if mask is None or mask[row, t]:
            seen = np.concatenate([tails[row], x[row, t][None]])
            y[row, t] = np.einsum("kc,ck->c", seen, w) + (0 if b is None else b)
            tails[row] = seen[1:]
    return y, tails


def state_space(x: Array, decay: Array, b: Array, c: Array, state: Any) -> tuple[Array, Array]:
    shape = (len(x), *x.shape[2:], b.shape[3])
    h = np.zeros(shape) if state is None else state.copy()
    y = np.zeros_like(x)
    for row, t, head in np.ndindex(x.shape[:3]):
        group = head * b.shape[2] // x.shape[2]
        h[row, head] = math.e ** decay[row, t, head] * h[row, head] + np.outer(x[row, t, head], b[row, t, group])
        y[row, t, head] = h[row, head] @ c[row, t, group]
    return y, h


# -- places and bits ---------------------------------------------------------------------------------------------------

JOIN: dict[str, Callable[[Any, Any], Any]] = {
    "none": lambda a, b: b,
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "max": max,
    "min": min,
}


def bitwise(table: tuple[int, int, int, int]) -> Callable[[Array, Array], Array]:
    """A function of two bits by its table of results, for whole numbers below 16."""
    return lambda x, y: sum(np.array(table)[(x >> i & 1) * 2 + (y >> i & 1)] << i for i in range(4))


def pad(x: Array, widths: Any, value: float = 0.0) -> Array:
    y = np.full([a + n + b for n, (a, b) in zip(x.shape, widths, strict=True)], value)
    y[tuple(slice(a, a + n) for n, (a, _) in zip(x.shape, widths, strict=True))] = x
    return y


def scatter(x: Array, indices: Array, updates: Array, axis: int = -1, reduction: str = "none") -> Array:
    y = x.copy()
    for at in np.ndindex(indices.shape):
        to = list(at)
        to[axis] = indices[at]
        y[tuple(to)] = JOIN[reduction](y[tuple(to)], updates[at])
    return y


def gather_nd(x: Array, indices: Array) -> Array:
    rows = [x[tuple(row)] for row in indices.reshape(-1, indices.shape[-1])]
    return np.array(rows).reshape(*indices.shape[:-1], *x.shape[indices.shape[-1] :])


def scatter_nd(x: Array, indices: Array, updates: Array, reduction: str = "none") -> Array:
    y = x.copy()
    for at in np.ndindex(indices.shape[:-1]):
        to = tuple(indices[at])
        y[to] = JOIN[reduction](y[to], updates[at])
    return y


EXPECTED |= {
    "ceil": lambda x: -np.floor(-x),
    "round": np.rint,
    "sign": lambda x: (x > 0) * 1.0 - (x < 0),
    "bitwise_and": bitwise((0, 0, 0, 1)),
    "bitwise_or": bitwise((0, 1, 1, 1)),
    "bitwise_xor": bitwise((0, 1, 1, 0)),
    "bitwise_not": lambda x: -x - 1,
    "prod": lambda x, axis=-1, keepdims=True: np.multiply.reduce(x, axis=axis, keepdims=keepdims),
    "pad": pad,
    "scatter": scatter,
    "gather_nd": gather_nd,
    "scatter_nd": scatter_nd,
}
EXPECTED |= {"topk": topk, "moe": moe, "causal_conv": causal_conv, "state_space": state_space}
