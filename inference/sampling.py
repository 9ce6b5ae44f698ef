"""Choosing the next token: what is done to the logits, in which order, and how a token is drawn.

The order is that of Hugging Face transformers: repetition penalty, temperature, top-k, top-p, min-p; what OpenAI has
besides stands where vLLM has it: the bias before the repetition penalty, the other two penalties after it. Each filter
sets the logits it removes to -inf and sees what the ones before it left. Everything is computed in float32 or wider.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, cast

import numpy as np

from ..ir.errors import RuntimeInputError
from .errors import GenerationError

Array = np.ndarray[Any, Any]

_LARGEST = float(np.finfo(np.float32).max)
_FAR = 1e6
"""The largest bias and penalty: far beyond the logits of a model, and exact enough in float32."""
_BLOCK = 256
"""Probabilities that are added up together before a token is drawn."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; see the functions of the same names. temperature 0: always the likeliest.

    seed: a number for the batch, or a list with one per row; None: different each time. Each row draws from its own
    stream, which depends on the seed and the index of the row only; in a list, as if the row were alone with its seed.
    frequency_penalty, presence_penalty: what a logit loses for each time that its token was chosen, and once if it was.
    logit_bias: what is added to logits, by id (None: nothing). Raises RuntimeInputError for a value out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | Sequence[int] | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        def require(fits: bool, name: str, expected: str) -> None:
            if not fits:
                raise RuntimeInputError(f"{name} is {getattr(self, name)!r:.60}, expected {expected}")

        for name in ("temperature", "repetition_penalty", "frequency_penalty", "presence_penalty"):
            require(isinstance(getattr(self, name), Real), name, "a number")
        for name in ("frequency_penalty", "presence_penalty"):
            require(-_FAR <= getattr(self, name) <= _FAR, name, f"a number between -{_FAR:g} and {_FAR:g}")
        fits = self.logit_bias is None or all(_biases(i, b) for i, b in self.logit_bias.items())
        require(fits, "logit_bias", f"numbers between -{_FAR:g} and {_FAR:g} by token id")
        for name, kind in (("top_k", Integral), ("top_p", Real), ("min_p", Real)):
            fits = getattr(self, name) is None or isinstance(getattr(self, name), kind)
            require(fits, name, "a whole number" if kind is Integral else "a number")
        require(0 <= self.temperature < np.inf, "temperature", "0 (greedy) or a positive number")
        require(self.top_k is None or self.top_k >= 1, "top_k", "at least 1, or None")
        require(self.top_p is None or 0 < self.top_p <= 1, "top_p", "more than 0 and at most 1, or None")
        require(self.min_p is None or 0 <= self.min_p <= 1, "min_p", "between 0 and 1, or None")
        given: Any = [] if self.seed is None else self.seed
        seeds: list[Any] = [*cast("Any", given)] if isinstance(given, (list, tuple, np.ndarray)) else [given]
        whole = all(isinstance(s, Integral) and int(s) >= 0 for s in seeds)
        require(whole, "seed", "a whole number from 0, or a list with one a row")
        require(0 < self.repetition_penalty < np.inf, "repetition_penalty", "a positive number (1: none)")

    @property
    def unchanged(self) -> bool:
        """Whether the logits stay as the model gave them until temperature and filters come."""
        return self.repetition_penalty == 1 and not self.told

    @property
    def told(self) -> bool:
        """Whether there is a bias, or a penalty for what was chosen."""
        return bool(self.frequency_penalty or self.presence_penalty or self.logit_bias)


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; a switch is none."""
    return not isinstance(value, bool) and isinstance(value, Integral)


def _biases(id: Any, bias: Any) -> bool:
    return is_whole(id) and id >= 0 and isinstance(bias, Real) and -_FAR <= float(bias) <= _FAR


def biased(logits: Array, bias: Mapping[int, float]) -> Array:
    """Logits [B,V] with a number added to those of some ids; ids that there are not change nothing."""
    result, ids = logits.copy(), np.fromiter(bias, np.int64, len(bias))
    known = ids < result.shape[-1]
    result[:, ids[known]] += np.fromiter(bias.values(), result.dtype, len(bias))[known]
    return result


def discourage(logits: Array, chosen: Sequence[Sequence[int]], frequency: float, presence: float) -> Array:
    """Logits [B,V] less `frequency` for each time that row b has chosen a token, and `presence` once."""
    result = logits.copy()
    for row, ids in zip(result, chosen, strict=True):
        known, counts = np.unique(np.asarray(ids, np.int64), return_counts=True)
        row[known] -= (frequency * counts + presence).astype(row.dtype)
    return result


def penalize(logits: Array, seen: Sequence[Sequence[int]], penalty: float) -> Array:
    """Make tokens that row b has `seen` less likely: positive logits / penalty, negative ones * penalty.

    logits [B,V]. (Keskar et al. 2019, with the sign rule of transformers.)
    """
    result = logits.copy()
    for row, ids in zip(result, seen, strict=True):
        known = np.unique(np.asarray(ids, np.int64))
        known = known[known < len(row)]
        before: Array = row[known]
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            row[known] = np.where(before < 0, before * penalty, before / penalty)
        # What is beyond the range of float32 is still a number, so that a token can be chosen.
        number = np.isfinite(before)
        far = known[number & ~np.isfinite(row[known])]
        row[far] = np.nan_to_num(row[far], nan=0.0, posinf=_LARGEST, neginf=-_LARGEST)
        row[known[~number]] = before[~number]
    return result


def without(logits: Array, tokens: Sequence[int] | Array) -> Array:
    """Logits [B,V] under which none of these tokens is chosen; ids that there are not change nothing."""
    ids, kept = np.asarray(tokens, np.int64), np.array(logits)
    kept[:, ids[(ids >= 0) & (ids < kept.shape[-1])]] = -np.inf
    return kept


def cool(logits: Array, temperature: float) -> Array:
    """Logits / temperature; where that is beyond their range, what the same distribution is with 0 for the largest."""
    limits = np.finfo(logits.dtype)
    scale = logits.dtype.type(min(max(temperature, float(limits.smallest_subnormal)), float(limits.max)))
    with np.errstate(over="ignore"):
        found = logits / scale
        best = logits.max(axis=-1, keepdims=True)
        if np.isfinite(found.max(axis=-1)).all() or not np.isfinite(best).all():
            return found
        return (logits - best) / scale


def keep_top_k(logits: Array, k: int) -> Array:
    """Only the k largest logits of each row, and those equal to the smallest of them."""
    if k >= logits.shape[-1]:
        return logits
    least = np.partition(logits, -k, axis=-1)[..., -k, None]
    return np.where(logits < least, -np.inf, logits)


def keep_top_p(logits: Array, p: float) -> Array:
    """Only the likeliest tokens, as few as reach probability p together. (Holtzman et al. 2020)

    At least one stays; of equal probabilities the one with the lower id counts as likelier.
    """
    result = np.full_like(logits, -np.inf)
    for row, out in zip(logits, result, strict=True):
        places, weights = _weights(row)
        total = weights.sum(dtype=np.float64)
        # What is below (1 - p) / V is less than 1 - p even taken together, so it need not be sorted.
        likely = np.flatnonzero(weights >= (1 - p) / len(row) * total)
        order = likely[np.argsort(-weights[likely], kind="stable")]
        ordered = weights[order].astype(np.float64)
        kept = order[np.cumsum(ordered) - ordered < p * total]
        kept = kept if places is None else places[kept]
        out[kept] = row[kept]
    return result


def keep_min_p(logits: Array, p: float) -> Array:
    """Only tokens at least p times as likely as the likeliest. (Nguyen et al. 2024)"""
    # The likeliest has weight 1 = exp(0), so that no sum is needed.
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.where(weights < p, -np.inf, logits)


def _weights(logits: Array) -> tuple[Array | None, Array]:
    """(which tokens of one row are possible at all, their probabilities times some number); None: all are."""
    possible = np.greater(logits, -np.inf)
    if possible.all():
        return None, np.exp(logits - logits.max())
    if not possible.any():
        return None, np.zeros_like(logits)
    places = np.flatnonzero(possible)
    found = logits[places]
    return places, np.exp(found - found.max())


def softmax(logits: Array) -> Array:
    """Probabilities of each row, in float64."""
    wide = logits.astype(np.float64)
    e = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def process(
    logits: Array, seen: Sequence[Sequence[int]], settings: Sampling, prompts: Sequence[int] | None = None
) -> Array:
    """All that `settings` ask for, in the documented order; with temperature 0 only penalties and bias. [B,V] -> [B,V]

    prompts: how many of the ids that each row has seen are its prompt, which was not chosen (None: none are).
    """
    x = logits if logits.dtype in (np.float32, np.float64) else logits.astype(np.float32)
    if settings.logit_bias:
        x = biased(x, settings.logit_bias)
    if settings.repetition_penalty != 1.0:
        x = penalize(x, seen, settings.repetition_penalty)
    if settings.frequency_penalty or settings.presence_penalty:
        starts = prompts if prompts is not None else [0] * len(seen)
        chosen = [ids[start:] for ids, start in zip(seen, starts, strict=True)]
        x = discourage(x, chosen, settings.frequency_penalty, settings.presence_penalty)
    if settings.temperature == 0:
        return x
    x = cool(x, settings.temperature)
    if settings.top_k is not None:
        x = keep_top_k(x, settings.top_k)
    if settings.top_p is not None and settings.top_p < 1:
        x = keep_top_p(x, settings.top_p)
    if settings.min_p:
        x = keep_min_p(x, settings.min_p)
    return x


class Sampler:
    """Chooses one token a row, with one stream of random numbers a row."""

    def __init__(self, settings: Sampling, rows: int) -> None:
        self.settings = settings
        seeds = _seeds(settings.seed, rows)
        self.streams = [np.random.default_rng(s) for s in seeds] if settings.temperature else []

    def __call__(self, logits: Array, seen: Sequence[Sequence[int]], prompts: Sequence[int] | None = None) -> Array:
        """Next tokens i64 [B] from logits [B,V]; seen, prompts: see `process`.

        Every call takes one number from every stream. Raises GenerationError for NaN, +inf or nothing but -inf.
        """
        return self.pick(self.processed(logits, seen, prompts))

    def processed(self, logits: Array, seen: Sequence[Sequence[int]], prompts: Sequence[int] | None = None) -> Array:
        """What tokens are chosen from, [B,V]; the logits themselves where nothing is done to them."""
        return process(logits, seen, self.settings, prompts)

    def pick(self, x: Array) -> Array:
        """Next tokens from what `processed` gave."""
        best = x.argmax(axis=-1)
        top = x[np.arange(len(x)), best]
        if not np.isfinite(top).all():
            row = int(np.flatnonzero(~np.isfinite(top))[0])
            raise GenerationError(f"the largest logit of row {row} is {top[row]}: no token can be chosen")
        if not self.streams:
            return best.astype(np.int64)
        return np.array([draw(row, s.random()) for row, s in zip(x, self.streams, strict=True)], np.int64)


def draw(logits: Array, u: float) -> int:
    """The token at which the cumulative probability of one row [V] first exceeds u, 0 <= u < 1."""
    places, weights = _weights(logits)
    # Sums of blocks first: adding up one after the other takes longer than all the rest.
    sums: Any = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64)
    cumulative: Array = np.cumsum(sums)
    target = u * cumulative[-1]
    block = _above(cumulative, target)
    if block == len(cumulative):  # u is 1 within rounding.
        block = int(np.flatnonzero(weights)[-1]) // _BLOCK
    part = weights[block * _BLOCK : (block + 1) * _BLOCK].astype(np.float64)
    within = _above(np.cumsum(part), target - (cumulative[block] - part.sum()))
    within = within if within < len(part) else int(np.flatnonzero(part)[-1])
    at = block * _BLOCK + within
    return at if places is None else int(places[at])


def _above(ascending: Array, target: float) -> int:
    """The first place whose number is larger than the target."""
    found: Any = np.searchsorted(ascending, target, side="right")
    return int(found)


def _seeds(seed: int | Sequence[int] | None, rows: int) -> list[Any]:
    if seed is None:
        return [None] * rows
    if isinstance(seed, (int, np.integer)):
        return [[seed, row] for row in range(rows)]
    if len(seed) != rows:
        raise RuntimeInputError(f"{len(seed)} seeds were given for {rows} rows")
    return [[s, 0] for s in seed]
