"""What families share: attention with its options, feed-forwards, norms, rotary settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..ir import DType, Init, Value, ops
from ..ir.errors import ConfigError
from ..ir.ops.tables import alibi_slopes
from ..ir.types import f32
from .activations import activated
from .dsl import Scope

Rotate = Callable[[Value], Value]
Norm = Callable[[str, Value], Value]
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Packed:
    """One projection that makes q, k and v: one after another, or (`by_head`) q, k and v of each head together."""

    name: str
    by_head: bool = False


def attention(
    m: Scope,
    x: Value,
    *,
    heads: int,
    kv_heads: int | None = None,
    width: int | None = None,
    memory: Value | None = None,
    mask: Value | None = None,
    bias: Value | None = None,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Value | None = None,
    rotate: Rotate | None = None,
    norm: Norm | None = None,
    names: tuple[str, str, str, str] = PROJECTIONS,
    biases: bool | tuple[bool, bool, bool, bool] = False,
    out: int | None = None,
    packed: Packed | None = None,
    transposed: bool = False,
) -> Value:
    """Project x [B,S,C] to q, and `memory` (None: x) to k and v; attend; project back to [B,S,out].

    kv_heads: by default `heads`. width: of a head, by default C / heads. rotate, norm: what is done to q and k
    [B,S,H,D], norm first and with the name of its parameters, "q_norm" or "k_norm". names, biases: of the four
    projections, that of the output last ("": there is none). packed: q, k and v come from one projection. out: by
    default C. Everything else as in `ops.attention`. Raises ConfigError if C is not a multiple of heads.
    """
    channels = channels_of(x)
    groups = kv_heads or heads
    if width is None and channels % heads:
        raise ConfigError(f"width {channels} is not a multiple of {heads} heads")
    width = width or channels // heads
    has = (biases,) * 4 if isinstance(biases, bool) else biases
    if packed is not None:
        q, k, v = _unpacked(m, x, packed, heads, groups, width, has[0], transposed)
    else:
        read = x if memory is None else memory
        sources = ((x, heads), (read, groups), (read, groups))
        q, k, v = (
            m.linear(name, y, n * width, bias=b, transposed=transposed).split_heads(n)
            for name, b, (y, n) in zip(names, has, sources, strict=False)
        )
    if norm is not None:
        q, k = norm("q_norm", q), norm("k_norm", k)
    if rotate is not None:
        q, k = rotate(q), rotate(k)
    settings: dict[str, Any] = {"causal": causal, "window": window, "scale": scale, "softcap": softcap}
    y = ops.attention(q, k, v, bias=bias, mask=mask, sinks=sinks, **settings).merge_heads()
    return m.linear(names[3], y, out or channels, bias=has[3], transposed=transposed) if names[3] else y


def _unpacked(
    m: Scope, x: Value, packed: Packed, heads: int, groups: int, width: int, bias: bool, transposed: bool
) -> tuple[Value, Value, Value]:
    """q, k and v [B,S,H,D] of one projection."""
    sizes = (heads * width, groups * width, groups * width)
    y = m.linear(packed.name, x, sum(sizes), bias=bias, transposed=transposed)
    if packed.by_head:
        if heads != groups:
            raise ConfigError(f"{packed.name} packs q, k and v by head, so {heads} heads cannot share {groups} keys")
        y = y.split_heads(heads)
        parts = [ops.slice_(y, axis=-1, start=i * width, length=width) for i in range(3)]
    else:
        starts = (0, sizes[0], sizes[0] + sizes[1])
        flat = [ops.slice_(y, axis=-1, start=a, length=n) for a, n in zip(starts, sizes, strict=True)]
        parts = [y.split_heads(n) for y, n in zip(flat, (heads, groups, groups), strict=True)]
    return parts[0], parts[1], parts[2]


def feed_forward(
    m: Scope,
    x: Value,
    width: int,
    activation: str,
    *,
    names: tuple[str, str] = ("up_proj", "down_proj"),
    bias: bool = False,
    transposed: bool = False,
    dropout: float = 0.0,
) -> Value:
    """down(activation(up(x))), [..., C] -> [..., width] -> [..., C]. activation: by its name in config.json."""
    y = activated(m.linear(names[0], x, width, bias=bias, transposed=transposed), activation)
    return m.linear(names[1], drop(y, dropout), channels_of(x), bias=bias, transposed=transposed)


def gated_feed_forward(
    m: Scope,
    x: Value,
    width: int,
    activation: str,
    *,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    bias: bool = False,
) -> Value:
    """down(activation(gate(x)) * up(x)). activation: by its name in config.json. (Shazeer 2020)"""
    gate = activated(m.linear(names[0], x, width, bias=bias), activation)
    return m.linear(names[2], gate * m.linear(names[1], x, width, bias=bias), channels_of(x), bias=bias)


def widened(x: Value) -> Value:
    """x in f32, if it is narrower."""
    return x if x.dtype.bits >= f32.bits else ops.cast(x, dtype=f32)


def like(x: Value, dtype: DType) -> Value:
    """x in another type, if it has another."""
    return x if x.dtype == dtype else ops.cast(x, dtype=dtype)


def drop(x: Value, p: float) -> Value:
    """Dropout, where there is any."""
    return ops.dropout(x, p=p) if p else x


def unit_rms_norm(m: Scope, name: str, x: Value, eps: float) -> Value:
    """rms_norm with the weight 1 + w, as in Gemma: w starts at zero."""
    w = (m / name).param("weight", x.shape[-1], init=Init("zeros"))
    return ops.rms_norm(x, w + 1.0, eps=eps)


def channels_of(x: Value) -> int:
    """The last axis, which must be a number. Raises ConfigError."""
    width = x.shape[-1]
    if not isinstance(width, int):
        raise ConfigError(f"the last axis is {width}, expected a number")
    return width


def rotary(
    m: Scope,
    positions: Value,
    width: int,
    *,
    theta: float,
    scaling: Mapping[str, Any] | None = None,
    partial: float = 1.0,
    turned: int | None = None,
    interleaved: bool = False,
) -> Rotate:
    """What turns x [B,S,H,width] by `positions` [B,S]. (Su et al. 2021)

    scaling: see `ops.rope_frequencies`. partial: the share of the channels that is turned, the first ones. turned: how
    many these are, instead. interleaved: pairs are neighbours, not halves. Raises ConfigError for settings that are not
    understood.
    """
    turned = int(width * partial) if turned is None else turned
    if turned > width or (turned % 2 and (interleaved or turned == width)):
        raise ConfigError(f"{turned} of the {width} channels of a head cannot be turned in pairs")
    settings: dict[str, Any] = {"theta": theta, "dim": turned, "scaling": scaling, "interleaved": interleaved}
    return lambda x: m.rope(x, positions, **settings)


def alibi(m: Scope, mask: Value, heads: int) -> Value:
    """A bias [B,H,1,T] that grows along the keys by a slope a head. (Press et al. 2022)

    mask: 0/1 [B,T]; keys are counted by it. Softmax sees only differences, so this is a penalty by distance.
    """
    dtype = m.dtype if m.dtype.bits == 64 else f32
    place = (ops.cumsum(mask, axis=1) - 1) * mask
    batch, keys = mask.shape
    slope = ops.constant(value=alibi_slopes(heads), dtype=dtype)
    return (place.cast(dtype).reshape(batch, 1, 1, keys) * slope).cast(m.dtype)
