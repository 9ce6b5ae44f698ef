"""The n-gram language model: interpolated Kneser-Ney smoothing over token ids, in sorted arrays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...data.errors import CorpusError
from ...frontends.tokenizer import Tokenizer, read_json
from ...ir.errors import ConfigError, RuntimeInputError, WeightsError
from ...ir.files import staged
from ...ir.safetensors import write_file
from ...ir.tensors import Array
from ...ir.weights import SINGLE, Weights

KIND = "ngram"


@dataclass(frozen=True)
class Level:
    """The n-grams of one order k >= 2. An n-gram is known by its number: its place in `keys`; a unigram by its token.

    keys: i64, sorted: number of the first k-1 tokens * vocab + last token. probability: f64, of the last token after
    the others, interpolated. backoff: f64, for each (k-1)-gram the weight of the lower order after it (1: not seen
    as a context).
    """

    keys: Array
    probability: Array
    backoff: Array

    def find(self, keys: Array) -> Array:
        """Numbers of the n-grams with these keys, -1 where there is none."""
        if not len(self.keys):
            return np.full(keys.shape, -1)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)


@dataclass(frozen=True)
class NGram:
    """Interpolated Kneser-Ney with the modified discounts of Chen & Goodman (1999, equations 24 to 26).

    p(w | h) = (c(h w) - D(c)) / c(h) + g(h) p(w | h without its first token), c counts at the highest order and,
    below, how many different tokens stand before h w (Kneser & Ney 1995). The unigrams are interpolated with the
    uniform distribution, so no token is impossible. Contexts do not cross the start of what is scored; there the
    context is as long as there is text. discounts: f64 [order, 3], for counts of 1, 2 and more.
    """

    vocab: int
    discounts: Array
    unigram: Array
    levels: tuple[Level, ...]
    tokenizer: Tokenizer | None = None

    @property
    def order(self) -> int:
        return len(self.levels) + 1

    @property
    def entries(self) -> int:
        """Numbers that the table holds."""
        return self.unigram.size + sum(x.keys.size + x.probability.size + x.backoff.size for x in self.levels)

    @staticmethod
    def fit(
        ids: Array, vocab: int, order: int = 5, *, modified: bool = True, discounts: Any = None, tokenizer: Any = None
    ) -> NGram:
        """Count the n-grams of `ids` (1-D, 0 <= id < vocab) up to `order`.

        modified: False takes one discount n1/(n1 + 2 n2) an order (Kneser & Ney 1995). discounts: [order, 3], or what
        broadcasts to it, in place of estimates. Raises CorpusError for ids, ConfigError for settings that cannot be.
        """
        ids = np.asarray(ids)
        if ids.ndim != 1 or not len(ids):
            raise CorpusError(f"ids have shape {list(ids.shape)}, expected one axis and at least one token")
        if ids.min() < 0 or ids.max() >= vocab:
            raise CorpusError(f"ids go from {ids.min()} to {ids.max()}, outside the vocabulary of {vocab}")
        if order < 1:
            raise ConfigError(f"order is {order}, expected at least 1")
        counts = Counts.of(ids.astype(np.int64), vocab, order)
        table = np.array([estimate(c, modified) for c in counts.kneser_ney()])
        if discounts is not None:
            table = np.broadcast_to(np.asarray(discounts, np.float64), (order, 3)).copy()
            if (table < 0).any() or (table > [1, 2, 3]).any():
                raise ConfigError(f"discounts are {table.tolist()}, expected 0 <= D <= 1, 2 and 3 in each order")
        return counts.model(table, tokenizer)

    # -- probabilities -----------------------------------------------------------------------------------------

    def log_probabilities(self, ids: Array) -> Array:
        """Natural logarithms f64 [...,S] of each token of rows [...,S] after those before it in its row."""
        tokens = self._checked(ids)
        p, found = self.unigram[tokens], tokens
        for level in self.levels:
            if tokens.shape[-1] < 2 or not len(level.backoff):
                break
            before = found[..., :-1]  # The (k-1)-gram that ends one token earlier.
            known = before >= 0
            at = np.where(known, before, 0)
            longer = np.where(known, level.find(at * self.vocab + tokens[..., 1:]), -1)
            shorter = p[..., 1:] * np.where(known, level.backoff[at], 1.0)
            seen = level.probability[longer] if len(level.probability) else shorter
            p = np.concatenate([p[..., :1], np.where(longer >= 0, seen, shorter)], -1)
            found = np.concatenate([np.full_like(found[..., :1], -1), longer], -1)
        with np.errstate(divide="ignore"):  # A unigram discount of 0 leaves unseen tokens impossible.
            return np.log(p)

    def perplexity(self, ids: Array) -> float:
        """exp of the mean of -log p over all tokens of one text, 1-D."""
        return float(np.exp(-self.log_probabilities(ids).mean()))

    def probabilities(self, context: Sequence[int] | Array) -> Array:
        """Distribution f64 [vocab] of the token after `context`, of which the last order - 1 tokens count."""
        tokens = self._checked(np.asarray(context, np.int64).reshape(-1))
        p = self.unigram.copy()
        for k, level in enumerate(self.levels, 2):
            number = self._number(tokens[len(tokens) - k + 1 :]) if len(tokens) >= k - 1 else -1
            if number < 0:
                break
            start, stop = np.searchsorted(level.keys, [number * self.vocab, (number + 1) * self.vocab])
            p *= level.backoff[number]
            p[level.keys[start:stop] - number * self.vocab] = level.probability[start:stop]
        return p

    def logits(self, context: Sequence[int] | Array) -> Array:
        """log of `probabilities`: what a softmax turns back into them."""
        with np.errstate(divide="ignore"):
            return np.log(self.probabilities(context))

    def sample(
        self, context: Sequence[int] | Array, count: int, *, seed: int = 0, temperature: float = 1.0
    ) -> list[int]:
        """`count` tokens that follow `context`, drawn one after the other."""
        if temperature <= 0:
            raise ConfigError(f"temperature is {temperature}, expected more than 0")
        rng, tokens = np.random.default_rng(seed), [int(t) for t in context]
        for _ in range(count):
            p = self.probabilities(tokens)
            p = (p / p.max()) ** (1 / temperature)
            tokens.append(int(rng.choice(self.vocab, p=p / p.sum())))
        return tokens[len(tokens) - count :]

    def _number(self, gram: Array) -> int:
        number = gram[0]
        for level, token in zip(self.levels, gram[1:], strict=False):
            number = level.find(number * self.vocab + token)
            if number < 0:
                break
        return int(number)

    def _checked(self, ids: Any) -> Array:
        tokens = np.asarray(ids, np.int64)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.vocab:
            raise RuntimeInputError(
                f"ids go from {tokens.min()} to {tokens.max()}, outside the vocabulary of {self.vocab}"
            )
        return tokens

    # -- files -------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write config.json, model.safetensors and the tokenizer, whole or not at all; gives the folder."""
        arrays = {"discounts": self.discounts, "1.probability": self.unigram}
        for k, level in enumerate(self.levels, 2):
            arrays |= {f"{k}.{name}": getattr(level, name) for name in ("keys", "probability", "backoff")}
        config = {"model_type": KIND, "order": self.order, "vocab_size": self.vocab}
        with staged(folder) as stage:
            with stage.open(SINGLE) as f:
                write_file(f, Weights.of(arrays), {"format": "pt"})
            with stage.open("config.json") as f:
                f.write(json.dumps(config, indent=2).encode())
            if self.tokenizer is not None:
                self.tokenizer.write(stage)
        return Path(folder)

    @staticmethod
    def load(folder: str | Path) -> NGram:
        """Read what `save` wrote. Raises ConfigError or WeightsError naming the file and what is wrong in it."""
        folder = Path(folder)
        config, place = read_json(folder / "config.json"), folder / SINGLE
        order, vocab = config.get("order"), config.get("vocab_size")
        if config.get("model_type") != KIND or not isinstance(order, int) or not isinstance(vocab, int):
            raise ConfigError(f"describes no n-gram table: {config}", place=str(folder / "config.json"))
        weights = Weights.open(place)
        names = [f"{k}.{name}" for k in range(2, order + 1) for name in ("keys", "probability", "backoff")]
        arrays = {k: weights.numpy(k) for k in ("discounts", "1.probability", *names)}
        levels = [Level(*(arrays[f"{k}.{n}"] for n in ("keys", "probability", "backoff"))) for k in range(2, order + 1)]
        tokenizer = Tokenizer.open(folder) if (folder / "tokenizer.json").exists() else None
        model = NGram(vocab, arrays["discounts"], arrays["1.probability"], tuple(levels), tokenizer)
        _check(model, place)
        return model


def _check(model: NGram, place: Path) -> None:
    """Raise WeightsError unless the arrays fit together, so that no lookup can go outside them."""
    problems: list[str] = []
    size = model.vocab
    if model.unigram.shape != (size,) or model.discounts.shape != (model.order, 3):
        found = f"1.probability is {list(model.unigram.shape)} and discounts are {list(model.discounts.shape)}"
        problems.append(f"{found}, expected [{size}] and [{model.order}, 3]")
    tables = [("1.probability", model.unigram)]
    for k, level in enumerate(model.levels, 2):
        if level.keys.ndim != 1 or level.keys.dtype != np.int64 or level.keys.shape != level.probability.shape:
            problems.append(f"{k}.keys is {level.keys.dtype}{list(level.keys.shape)}, not one i64 for each probability")
        elif level.backoff.shape != (size,):
            problems.append(f"{k}.backoff is {list(level.backoff.shape)}, expected one for each of {size} contexts")
        elif len(level.keys) and not (level.keys[0] >= 0 and level.keys[-1] < size * model.vocab):
            problems.append(f"{k}.keys leave the {size} contexts")
        elif (np.diff(level.keys) <= 0).any():
            problems.append(f"{k}.keys are not sorted")
        tables += [(f"{k}.probability", level.probability), (f"{k}.backoff", level.backoff)]
        size = len(level.keys)
    problems += [f"{name} is not between 0 and 1" for name, x in tables if not ((x >= 0) & (x <= 1 + 1e-9)).all()]
    if problems:
        raise WeightsError("is not an n-gram table", place=str(place), details=problems)


@dataclass(frozen=True)
class Counts:
    """How often n-grams occur. For each order: how often (`raw`); from 2 on keys, and the number of each without its
    first token (`suffix`)."""

    vocab: int
    raw: list[Array]
    keys: list[Array]
    suffix: list[Array]

    @staticmethod
    def of(ids: Array, vocab: int, order: int) -> Counts:
        raw: list[Array] = [np.bincount(ids, minlength=vocab)]
        keys: list[Array] = []
        suffix: list[Array] = []
        numbers = ids  # Of the n-gram that starts at each position.
        for k in range(2, order + 1):
            longer = numbers[:-1] * vocab + ids[k - 1 :]
            unique, first, inverse, count = np.unique(
                longer, return_index=True, return_inverse=True, return_counts=True
            )
            raw.append(count)
            keys.append(unique)
            suffix.append(numbers[first + 1])
            numbers = inverse.reshape(-1)
        return Counts(vocab, raw, keys, suffix)

    def kneser_ney(self) -> list[Array]:
        """The counts that count: how often at the highest order, how many different tokens come before below it."""
        below = [np.bincount(s, minlength=len(c)) for s, c in zip(self.suffix, self.raw[:-1], strict=True)]
        return [*below, self.raw[-1]]

    def model(self, discounts: Array, tokenizer: Tokenizer | None) -> NGram:
        """The interpolated probabilities of every n-gram, from the unigrams up."""
        counts = self.kneser_ney()
        cut = [np.array([0.0, *d])[np.minimum(c, 3)] for c, d in zip(counts, discounts, strict=True)]
        total = counts[0].sum()
        uniform = np.full(self.vocab, 1 / self.vocab)
        p = (counts[0] - cut[0] + cut[0].sum() * uniform) / total if total else uniform
        unigram, levels = p, list[Level]()
        for keys, suffix, count, d in zip(self.keys, self.suffix, counts[1:], cut[1:], strict=True):
            context = keys // self.vocab
            total = np.bincount(context, count, minlength=len(p))
            held = np.bincount(context, d, minlength=len(p))
            backoff = np.where(total > 0, held / np.maximum(total, 1), 1.0)
            p = (
                np.where(total[context] > 0, (count - d) / np.maximum(total[context], 1), 0)
                + backoff[context] * p[suffix]
            )
            levels.append(Level(keys, p, backoff))
        return NGram(self.vocab, discounts, unigram, tuple(levels), tokenizer)


def estimate(counts: Array, modified: bool = True) -> list[float]:
    """[D1, D2, D3+] from how many n-grams have a count of 1, 2, 3 and 4 (Chen & Goodman 1999, equation 26).

    A text too small to have all four gives the one discount of Kneser & Ney, and one without counts of 1 or 2 gives
    1/2. An estimate outside 0 <= D_i <= i is moved to the nearer end.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(float)
    if not n[0] or not n[1]:
        return [0.5, 0.5, 0.5]
    y = n[0] / (n[0] + 2 * n[1])
    if not modified or not n.all():
        return [y, y, y]
    return [min(max(i - (i + 1) * y * n[i] / n[i - 1], 0.0), float(i)) for i in (1, 2, 3)]


class NGramSession:
    """An n-gram table as a session of the generation loop: it remembers the last order - 1 tokens of each row.

    owner: another object whenever a new batch begins.
    """

    def __init__(self, model: NGram) -> None:
        self.model = model
        self.owner: object = object()
        self.rows: list[list[int]] = []
        self._lengths = np.zeros(0, np.int64)

    @property
    def lengths(self) -> Array:
        """Tokens read so far, i64 [B]."""
        return self._lengths

    def reset(self) -> None:
        """Forget everything read."""
        self.rows, self._lengths = [], np.zeros(0, np.int64)
        self.owner = object()

    def prefill(self, tokens: Array, lengths: Array) -> Array:
        """Read prompts i64 [B,S], padded on the right; logits f32 [B,V] after the last token of each."""
        self.reset()
        self._lengths = np.asarray(lengths, np.int64).copy()
        self.rows = [[int(t) for t in row[:n]] for row, n in zip(tokens, lengths, strict=True)]
        return self._logits()

    def step(self, tokens: Array) -> Array:
        """Read one more token a row, i64 [B]; logits f32 [B,V] after it."""
        if len(tokens) != len(self.rows):
            raise RuntimeInputError(f"{len(tokens)} tokens for {len(self.rows)} rows")
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(int(token))
        self._lengths = self._lengths + 1
        return self._logits()

    def _logits(self) -> Array:
        keep = self.model.order - 1
        self.rows = [row[max(len(row) - keep, 0) :] for row in self.rows]
        return np.stack([self.model.logits(row) for row in self.rows]).astype(np.float32)
