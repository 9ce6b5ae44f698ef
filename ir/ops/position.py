"""Position encodings: rotary (both layouts, partial, scaled) and sinusoidal. Positions are always explicit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import shard_rules
from ..errors import ConfigError, check, did_you_mean
from ..graph import Node, Value
from ..op import Op, op
from ..ranges import Range
from ..shard_rules import Cut, Cuts, Stop, first_cut
from ..tables import Table, sized, table
from ..types import Dim, DimLike, DType, TensorType, f32
from .checks import floating, indices, rank
from .elementwise import cast, constant, cos, sin
from .shape import concat, reshape, slice_
from .tables import sinusoidal_rates


class Rope(Op):
    """Rotate pairs of channels by position * frequency. (Su et al. 2021)

    x [B,S,H,D], positions i64 [B,S], frequencies [R/2] in radians per position with R = rotary_dim (None: D).
    Pairs are (i, i + R/2), or (2i, 2i + 1) when `interleaved`; channels from R on pass through.
    `scale` multiplies sine and cosine (the attention factor of YaRN). Angles use the dtype of `frequencies`.
    """

    choices = {"scale": (1.0, ...)}
    own_dtype = frozenset({"frequencies"})

    def ranges(self, node: Node, *given: Range | None) -> tuple[Range, ...]:
        """A turn keeps the length of a pair."""
        x, scale = given[0], max(abs(node.attributes["scale"]), 1.0)
        assert x is not None
        most = min(math.sqrt(2.0) * x.most, x.rows) * scale
        return (Range(-most, most, x.rows * scale),)

    def infer(
        self,
        x: Value,
        positions: Value,
        frequencies: Value,
        *,
        interleaved: bool = False,
        rotary_dim: int | None = None,
        scale: float = 1.0,
    ) -> TensorType:
        rank(4, x=x)
        rank(1, frequencies=frequencies)
        floating(x=x, frequencies=frequencies)
        indices(positions=positions)
        check(positions.shape == x.shape[:2], f"positions are {positions.type}, expected [{x.shape[0]},{x.shape[1]}]")
        width = x.shape[3] if rotary_dim is None else rotary_dim
        whole = x.shape[3]
        room = whole - width
        check(isinstance(room, Dim) or room >= 0, f"rotary_dim is {width} but x has {whole} channels")
        check(2 * frequencies.shape[0] == width, f"{frequencies.shape[0]} frequencies do not turn {width} channels")
        return x.type

    def complete(self, *operands: Value | None, rotary_dim: int | None, **attributes: Any) -> dict[str, Any]:
        x = operands[0]
        full = x is not None and rotary_dim == x.shape[-1]
        return {"rotary_dim": None if full else rotary_dim, **attributes}

    def body(
        self, x: Value, positions: Value, frequencies: Value, *, interleaved: bool, rotary_dim: int | None, scale: float
    ) -> Value:
        batch, length = x.shape[0], x.shape[1]
        places = reshape(positions, shape=(batch, length, 1, 1))
        c, s = rotary_angles(places, frequencies, scale=scale, dtype=x.dtype)
        return rotate(x, c, s, interleaved=interleaved, rotary_dim=rotary_dim)

    def shard(self, node: Node, known: Cuts) -> dict[Value, Cut]:
        _, cut = first_cut(node, known)
        if cut.axis != -2:
            raise Stop(f"{node} turns whole heads")
        return dict.fromkeys((node.value("x"), node.output), cut)


def rotary_angles(positions: Value, frequencies: Value, *, scale: float, dtype: DType) -> tuple[Value, Value]:
    """(cosines, sines) of position * frequency, times `scale`: positions [...,1], frequencies [R/2] -> [...,R/2]."""
    angle = cast(positions, dtype=frequencies.dtype) * frequencies
    c, s = cos(angle), sin(angle)
    if scale != 1.0:
        c, s = c * scale, s * scale
    return (c, s) if frequencies.dtype == dtype else (cast(c, dtype=dtype), cast(s, dtype=dtype))


def rotate(x: Value, cosines: Value, sines: Value, *, interleaved: bool, rotary_dim: DimLike | None = None) -> Value:
    """x [B,S,H,D] with its pairs of channels, as `Rope` says, turned by angles whose cosines are given [B,S,1,R/2]."""
    batch, length, heads, width = (x.shape[i] for i in range(4))
    half = cosines.shape[-1]
    turned = x if rotary_dim is None else slice_(x, axis=-1, start=0, length=rotary_dim)
    if interleaved:
        pairs = reshape(turned, shape=(batch, length, heads, half, 2))
        a, b = (reshape(slice_(pairs, axis=-1, start=i, length=1), shape=(batch, length, heads, half)) for i in (0, 1))
        whole = (batch, length, heads, half, 1)
        ends = reshape(a * cosines - b * sines, shape=whole), reshape(b * cosines + a * sines, shape=whole)
        y = reshape(concat(*ends, axis=-1), shape=(batch, length, heads, 2 * half))
    else:
        a, b = (slice_(turned, axis=-1, start=i * half, length=half) for i in (0, 1))
        y = concat(a * cosines - b * sines, b * cosines + a * sines, axis=-1)
    if rotary_dim is None:
        return y
    return concat(y, slice_(x, axis=-1, start=rotary_dim, length=width - rotary_dim), axis=-1)


class SinusoidalPositions(Op):
    """Channel 2i is sin(p / 10000^(2i/dim)), channel 2i+1 the cosine. (Vaswani et al. 2017)

    positions i64 [B,S] -> [B,S,dim], in `dtype`.
    """

    shard = shard_rules.needs_all

    def infer(self, positions: Value, *, dim: int, dtype: Any) -> TensorType:
        check(dim % 2 == 0, f"dim is {dim}, expected an even number")
        rank(2, positions=positions)
        check(dtype.is_float, f"dtype is {dtype}, expected a floating-point type")
        return TensorType(dtype, (*positions.shape, dim))

    def body(self, positions: Value, *, dim: int, dtype: Any) -> Value:
        batch, length = positions.shape[0], positions.shape[1]
        angle = cast(reshape(positions, shape=(batch, length, 1, 1)), dtype=dtype)
        angle = angle * constant(value=sinusoidal_rates(dim), dtype=dtype)
        return reshape(concat(sin(angle), cos(angle), axis=-1), shape=(batch, length, dim))


rope, sinusoidal_positions = op(Rope), op(SinusoidalPositions)


def rope_frequencies(dim: int, theta: float, scaling: Mapping[str, Any] | None = None) -> tuple[list[float], float]:
    """(frequencies in radians per position [dim/2, rounded up], attention factor) for rotary width `dim`.

    An odd width rotates one channel more, with frequencies computed for the odd width, as the reference does.
    scaling: a Hugging Face `rope_scaling` mapping of type default, linear, llama3 (Llama 3.1), yarn (Peng et al. 2023)
    or proportional, which turns the first pairs and leaves the others with a frequency of 0. Raises ConfigError for
    another type and for a setting that the type does not have.
    """
    number = isinstance(theta, (int, float))  # pyright: ignore[reportUnnecessaryIsInstance] - read from a file
    if dim < 1 or not number or not 1.0 < theta < math.inf:
        raise ConfigError(f"rotary width {dim} must be positive and rope theta {theta!r} a number above 1")
    inverse = 1.0 / theta ** (np.arange(0, sized(dim), 2, dtype=np.float64) / dim)
    settings = {k: v for k, v in (scaling or {}).items() if v is not None}
    kind = settings.get("rope_type", settings.get("type", "default"))
    _check_scaling(kind, settings)
    if kind == "yarn":
        if dim % 2:
            raise ConfigError(f"rotary width {dim} must be even for rope_scaling of type 'yarn'")
        return _yarn(inverse, dim, theta, settings)
    if kind == "llama3":
        return _llama3(inverse, settings).tolist(), 1.0
    if kind == "proportional":
        turned = np.arange(len(inverse)) < int(settings.get("partial_rotary_factor", 1.0) * dim // 2)
        return (np.where(turned, inverse, 0.0) / settings.get("factor", 1.0)).tolist(), 1.0
    return (inverse / settings.get("factor", 1.0) if kind == "linear" else inverse).tolist(), 1.0


def _rope_table(
    dim: int, theta: float, scaling: tuple[tuple[str, Any], ...] = (), dtype: DType = f32
) -> tuple[float, ...]:
    if not isinstance(dtype, DType) or not dtype.is_float:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"dtype of a table of frequencies is {dtype}, expected a floating-point type")
    sized(dim)
    return tuple(float(dtype.numpy.type(v)) for v in rope_frequencies(dim, theta, dict(scaling))[0])


_named_rope_table = table(_rope_table, "rope_frequencies")


def rope_table(dim: int, theta: float, scaling: Mapping[str, Any] | None = None, dtype: DType = f32) -> Table:
    """The frequencies of `rope_frequencies`, rounded to `dtype`, as a table that prints as its call. Raises as it."""
    settings = {k: v for k, v in (scaling or {}).items() if v is not None}
    kind = settings.get("rope_type", settings.get("type", "default"))
    _check_scaling(kind, settings)
    told = {k: settings[k] for k in rope_settings_of(kind) if k in settings}
    known = tuple(told.items()) if kind == "default" else (("rope_type", kind), *told.items())
    given: dict[str, Any] = ({"scaling": known} if known else {}) | ({"dtype": dtype} if dtype != f32 else {})
    return _named_rope_table(dim=dim, theta=theta, **given)


_NEEDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "proportional": (),
}
_TAKES = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "proportional": ("factor", "partial_rotary_factor"),
}
_LENGTHS: Mapping[str, str] = dict.fromkeys(
    ("dynamic", "longrope", "su"),
    "its frequencies change with the length of the text, so keys that are kept from before would be turned otherwise "
    "than the reference turns them",
)
"""Why a type that is known is not computed."""
_ANYWHERE = {"rope_type": None, "type": None, "rope_theta": None, "partial_rotary_factor": 1.0}
"""Settings of every type, with the only value that is understood (None: any, it is read elsewhere)."""


def rope_settings_of(kind: Any) -> tuple[str, ...]:
    """The settings that a type of `rope_scaling` has. Raises ConfigError for a type that is not known."""
    name = kind if isinstance(kind, str) else ""
    if name not in _NEEDS:
        what = f"rope_scaling of type {kind!r} is not supported{did_you_mean(name, _NEEDS)}"
        raise ConfigError(what, hint=_LENGTHS.get(name, f"known: {', '.join(_NEEDS)}"))
    return (*_NEEDS[kind], *_TAKES.get(kind, ()))


def _check_scaling(kind: Any, settings: Mapping[str, Any]) -> None:
    known = rope_settings_of(kind)
    needed = _NEEDS[kind]
    for name, value in settings.items():
        if name not in known and (name not in _ANYWHERE or _ANYWHERE[name] not in (None, value)):
            what = f"rope_scaling of type {kind!r} has {name} = {value!r}, which is not understood"
            raise ConfigError(f"{what}{did_you_mean(name, known)}")
    for name in known:
        value = settings.get(name)
        if name == "truncate" or (value is None and name not in needed):
            continue
        if not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ConfigError(f"rope_scaling of type {kind!r} has {name} = {value!r}, expected a number")
    if kind == "llama3" and settings["high_freq_factor"] <= settings["low_freq_factor"]:
        low, high = settings["low_freq_factor"], settings["high_freq_factor"]
        raise ConfigError(f"rope_scaling has high_freq_factor = {high}, expected more than low_freq_factor = {low}")


def _llama3(inverse: Any, s: Mapping[str, Any]) -> Any:
    old, low, high = s["original_max_position_embeddings"], s["low_freq_factor"], s["high_freq_factor"]
    wavelength = 2 * math.pi / inverse
    smooth = np.clip((old / wavelength - low) / (high - low), 0.0, 1.0)
    return (1 - smooth) * inverse / s["factor"] + smooth * inverse


def _yarn(inverse: Any, dim: int, theta: float, s: Mapping[str, Any]) -> tuple[list[float], float]:
    factor, old = s["factor"], s["original_max_position_embeddings"]

    def channel(rotations: float) -> float:
        return dim * math.log(old / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    def attention_factor(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    low, high = channel(s.get("beta_fast", 32)), channel(s.get("beta_slow", 1))
    if s.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low or 0.001), 0, 1)
    mixed = inverse / factor * ramp + inverse * (1 - ramp)
    plain = attention_factor(1.0)
    if "mscale" in s and "mscale_all_dim" in s:
        plain = attention_factor(s["mscale"]) / attention_factor(s["mscale_all_dim"])
    return mixed.tolist(), float(s.get("attention_factor", plain))
