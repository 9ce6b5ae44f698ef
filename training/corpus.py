"""Text for training: read, divided into training and held-out parts, tokenised once, memory-mapped, batched."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..data.batch import IGNORED, Batch, token_inputs
from ..data.byte_level import encode_plain, train_tokenizer
from ..data.errors import CorpusError
from ..data.passages import passage_key, passages, portions
from ..frontends.task import LABELS
from ..frontends.tokenizer import Tokenizer
from ..ir.display import Shown, Table
from ..ir.documents import parse_json
from ..ir.errors import did_you_mean, unreadable
from ..ir.files import staged
from ..ir.tensors import Array

SIDES = ("train", "held_out")


def python_topics() -> str:
    """English that every Python carries: the language reference pages behind `help()`, about 0.46 MB."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, without a byte-order mark. Raises CorpusError with the offset of a bad byte."""
    try:
        data = Path(path).read_bytes()
    except OSError as e:
        raise CorpusError(unreadable(e), place=str(path)) from None
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as e:
        shown = data[e.start : e.end].hex(" ")
        raise CorpusError(
            f"is not UTF-8 at byte {e.start} of {len(data)} ({shown}): {e.reason}", place=str(path)
        ) from None


@contextlib.contextmanager
def placed(files: Iterable[str | Path]) -> Generator[None]:
    """Name the files in an error about what they hold together."""
    try:
        yield
    except CorpusError as e:
        place = e.place or ", ".join(map(str, files))
        raise CorpusError(e.what, place=place, details=e.details, hint=e.hint) from None


def hold_out_text(text: str, held_out: float = 0.1) -> tuple[str, str]:
    """(training text, held-out text): the end of `text` is held out, from the start of a passage (not the first) on.

    A passage is a block between blank lines, cut at line ends if long. Passages of the held-out end that also
    occur in the training part (white space aside) are dropped, so no passage is in both.
    """
    return hold_out_texts([text], held_out)[0]


def hold_out_texts(texts: Sequence[str], held_out: float = 0.1) -> list[tuple[str, str]]:
    """`hold_out_text` for each text, with held-out passages checked against the training parts of all of them."""
    if not 0 <= held_out < 1:
        raise CorpusError(f"the held-out share is {held_out}, expected at least 0 and less than 1")
    halves = [_cut(passages(text), held_out) for text in texts]
    seen = {passage_key(p) for train, _ in halves for p in train}
    return [("".join(a), "".join(p for p in b if passage_key(p) not in seen)) for a, b in halves]


def _cut(pieces: list[str], held_out: float) -> tuple[list[str], list[str]]:
    limit = (1 - held_out) * sum(map(len, pieces))
    used = 0
    for i, p in enumerate(pieces):
        used += len(p)
        if used > limit and i > 0:
            return pieces[:i], pieces[i:]
    return pieces, []


@dataclass(frozen=True, repr=False)
class Corpus(Shown):
    """Token ids in two parts that share no passage, and the tokenizer that made them (trained on `train` only).

    train, held_out: 1-D u16 or u32 arrays, memory-mapped when the corpus lies in a folder.
    """

    tokenizer: Tokenizer
    train: Array
    held_out: Array
    task: ClassVar[str] = "causal-lm"
    static: ClassVar[bool] = True

    @property
    def vocab(self) -> int:
        """How many ids the tokenizer has."""
        return self.tokenizer.size

    def table(self) -> Table:
        """How many tokens each part has, for `repr` and notebooks."""
        rows = [["training", f"{len(self.train):,} tokens"], ["held out", f"{len(self.held_out):,} tokens"]]
        return Table("corpus", [["vocab", f"{self.vocab:,}"], *rows])

    @staticmethod
    def of(
        text: str | Sequence[str],
        tokenizer: Tokenizer | None = None,
        *,
        vocab: int = 2048,
        held_out: float = 0.1,
        folder: str | Path | None = None,
    ) -> Corpus:
        """A corpus from one or several texts; each ends with the end-of-text token.

        tokenizer: None trains one of `vocab` entries on the training parts. folder: where to write the ids and
        the tokenizer, which are then memory-mapped; None keeps them in memory. Raises CorpusError if there is no text.
        """
        texts = [text] if isinstance(text, str) else list(text)
        if not any(t.strip() for t in texts):
            raise CorpusError(f"{len(texts)} texts hold nothing but white space")
        parts = hold_out_texts(texts, held_out)
        tokenizer = tokenizer or train_tokenizer([a for a, _ in parts], vocab)
        ids = [_encode(tokenizer, [pair[side] for pair in parts]) for side in (0, 1)]
        if folder is None:
            return Corpus(tokenizer, ids[0], ids[1])
        Corpus(tokenizer, ids[0], ids[1]).save(folder)
        return Corpus.open(folder)

    @staticmethod
    def read(paths: str | Path | Iterable[str | Path], tokenizer: Tokenizer | None = None, **settings: Any) -> Corpus:
        """A corpus from UTF-8 text files; settings as for `of`. Raises CorpusError naming file and offset."""
        files = [paths] if isinstance(paths, (str, Path)) else list(paths)
        texts = [read_text(p) for p in files]
        with placed(files):
            return Corpus.of(texts, tokenizer, **settings)

    def save(self, folder: str | Path) -> None:
        """Write train.bin, held_out.bin, corpus.json and tokenizer.json, whole or not at all."""
        with staged(folder) as stage:
            self.tokenizer.write(stage)
            for name in SIDES:
                with stage.open(f"{name}.bin") as f:
                    f.write(getattr(self, name).tobytes())
            about = {"dtype": self.train.dtype.name, **{name: len(getattr(self, name)) for name in SIDES}}
            with stage.open("corpus.json") as f:
                f.write(json.dumps(about).encode())

    @staticmethod
    def open(folder: str | Path) -> Corpus:
        """A corpus saved before, memory-mapped. Raises CorpusError if files are missing or of the wrong size."""
        folder = Path(folder)
        about = _about(folder / "corpus.json")
        parts = [_map(folder / f"{name}.bin", about["dtype"], about[name]) for name in SIDES]
        return Corpus(Tokenizer.open(folder), parts[0], parts[1])

    def windows(self, length: int, side: str = "train") -> int:
        """How many windows of `length` tokens and the token after them fit. Raises CorpusError if none does."""
        count = (len(self._part(side)) - 1) // length
        if count < 1:
            raise CorpusError(f"the {side} part has {len(self._part(side))} tokens, fewer than {length} + 1")
        return count

    def batches(self, batch: int, length: int, seed: int = 0, start: int = 0) -> Iterator[Batch]:
        """Endless training batches of `batch` windows of `length` tokens, from step `start` on.

        Each pass over the text cuts it into windows at another offset and takes them in another order; both depend
        on the seed and the number of the pass only. input_ids and labels (the following token) i64[B,S];
        position_ids count from 0 and attention_mask is 1 everywhere.
        """
        ids, count = self.train, self.windows(length)
        for number in range(start * batch, 1 << 62, batch):
            rows = [_window(ids, length, count, seed, i) for i in range(number, number + batch)]
            yield make_batch(np.stack(rows))

    def held_out_batches(self, batch: int, length: int) -> Iterator[Batch]:
        """Every held-out token but the first as a label exactly once; the last window is padded with label -100."""
        ids = self.held_out.astype(np.int64)
        if len(ids) < 2:
            raise CorpusError(f"the held-out part has {len(ids)} tokens, expected at least 2")
        windows = -(-(len(ids) - 1) // length)
        padded = np.full(windows * length + 1, -1, np.int64)
        padded[: len(ids)] = ids
        rows = np.stack([padded[i * length : (i + 1) * length + 1] for i in range(windows)])
        for i in range(0, windows, batch):
            yield make_batch(rows[i : i + batch])

    def _part(self, side: str) -> Array:
        if side not in SIDES:
            raise CorpusError(f"no part is called {side!r}{did_you_mean(side, SIDES)}")
        return getattr(self, side)


def make_batch(rows: Array) -> Batch:
    """Inputs and labels from rows [B, S+1] of ids; -1 marks padding, at the end of a row only."""
    x, y = rows[:, :-1].astype(np.int64), rows[:, 1:].astype(np.int64)
    positions = np.broadcast_to(np.arange(x.shape[1], dtype=np.int64), x.shape)
    return {
        **token_inputs(np.maximum(x, 0), (x >= 0).astype(np.int64), np.ascontiguousarray(positions)),
        LABELS: np.where(y >= 0, y, IGNORED),
    }


def _window(ids: Array, length: int, count: int, seed: int, number: int) -> Array:
    """Window `number` of an endless sequence of passes over `ids`, [length + 1]."""
    per_pass = max(count - 1, 1)  # One window is given up so that the cuts can lie elsewhere in each pass.
    order, offset = _order(per_pass, len(ids) - per_pass * length, seed, number // per_pass)
    at = offset + length * int(order[number % per_pass])
    return ids[at : at + length + 1]


@lru_cache(maxsize=4)
def _order(windows: int, offsets: int, seed: int, number: int) -> tuple[Array, int]:
    """Order of the windows of pass `number`, and where the first of them starts: 0 <= start < offsets."""
    generator = np.random.default_rng([seed, number])
    return generator.permutation(windows), int(generator.integers(offsets))


def _encode(tokenizer: Tokenizer, texts: list[str]) -> Array:
    dtype = np.uint16 if tokenizer.size <= 1 << 16 else np.uint32
    ids: list[Array] = []
    for text in filter(None, texts):
        ids += [np.array(encode_plain(tokenizer, p), dtype) for p in portions(text)]
        if tokenizer.eos_id is not None:
            ids.append(np.array([tokenizer.eos_id], dtype))
    return np.concatenate(ids) if ids else np.empty(0, dtype)


def _about(path: Path) -> dict[str, Any]:
    try:
        about = parse_json(path.read_bytes())
        fits = about["dtype"] in ("uint16", "uint32") and all(about[k] >= 0 for k in SIDES)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CorpusError(f"is not the description of a corpus: {e}", place=str(path)) from None
    if not fits:
        raise CorpusError(f"describes no corpus: {about}", place=str(path))
    return about


def _map(path: Path, dtype: str, count: int) -> Array:
    size = path.stat().st_size if path.is_file() else -1
    expected = count * np.dtype(dtype).itemsize
    if size != expected:
        raise CorpusError(f"has {size} bytes, expected {expected}" if size >= 0 else "is missing", place=str(path))
    return np.memmap(path, dtype, "r") if count else np.empty(0, dtype)
