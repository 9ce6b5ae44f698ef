"""From cleaned documents to shards: choose what stays and on which side it lies, tokenize, put parts together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..frontends.tokenizer import Tokenizer
from ..ir.errors import ConfigError
from .duplicates import EXACT, KEPT, NEAR
from .errors import DataError
from .files import read_json, whole_folder, write_json
from .parts import Parts
from .recipe import Recipe
from .shards import SIDES, ShardWriter, shard_name, token_type
from .tokenizers import document_end

_BATCH = 64
_LONGEST = 1 << 20
_COPY = 1 << 20


@dataclass(frozen=True)
class Kept:
    """A document that goes into the shards. draw: a number in [0, 1) that depends on its content only."""

    number: int
    text: str
    split: str
    draw: float


def kept(run: Path, recipe: Recipe, parts: Parts, part: int) -> Iterator[Kept]:
    """The documents of a part that stay, in order, each with its side of the split.

    The side depends on the seed and the content of the first of all documents that are alike, or could be within the
    error of the estimate: a document and what it nearly duplicates are always on the same side.
    """
    merged = run / "clusters" / "merged"
    low, high = int(parts.base[part]), int(parts.base[part + 1])
    side = np.array(np.load(merged / "side.npy", mmap_mode="r")[low:high])
    state = np.array(np.load(merged / "state.npy", mmap_mode="r")[low:high])
    stays = state == KEPT
    if not recipe.duplicates.exact:
        stays |= state == EXACT
    if recipe.duplicates.near == "keep":
        stays |= state == NEAR
    leaders = parts.lookup(side, "keys") if len(side) else side
    own = parts.table(part, "keys")
    for row, text in enumerate(parts.texts(part)):
        if stays[row]:
            held = draw(leaders[row], recipe.split.seed) < recipe.split.held_out
            yield Kept(low + row, text, SIDES[held], draw(own[row], -1))


def draw(key: bytes, seed: int) -> float:
    """A number in [0, 1) from a 16-byte key and a seed."""
    data = bytes(key).ljust(16, b"\0") + seed.to_bytes(16, "little", signed=True)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") / 2**64


def tokenizer_texts(run: Path, recipe: Recipe, sample: float) -> Iterator[str]:
    """A share of the training documents, chosen by content, for training a tokenizer."""
    parts = Parts.of(run)
    for part in range(len(parts)):
        for doc in kept(run, recipe, parts, part):
            if doc.split == SIDES[0] and doc.draw < sample:
                yield doc.text


def tokenize_part(run: Path, recipe: Recipe, part: int, target: Path) -> dict[str, Any]:
    """Write <split>.tokens and <split>.lengths.npy for one part; gives counts per split."""
    tokenizer = Tokenizer.open(run / "tokenizer")
    parts = Parts.of(run)
    end = document_end(tokenizer)
    kind = token_type(tokenizer.size)
    lengths: dict[str, list[int]] = {name: [] for name in SIDES}
    characters = dict.fromkeys(SIDES, 0)
    with whole_folder(target) as folder:
        files = {name: (folder / f"{name}.tokens").open("wb") for name in SIDES}
        try:
            for batch in _batches(kept(run, recipe, parts, part)):
                for doc, ids in zip(batch, encode_all(tokenizer, [d.text for d in batch]), strict=True):
                    row = np.array(ids if end is None else [*ids, end], kind)
                    files[doc.split].write(row.tobytes())
                    lengths[doc.split].append(len(row))
                    characters[doc.split] += len(doc.text)
        finally:
            for file in files.values():
                file.close()
        for name in SIDES:
            np.save(folder / f"{name}.lengths.npy", np.array(lengths[name], np.int64))
        result = {
            name: {"documents": len(lengths[name]), "tokens": sum(lengths[name]), "characters": characters[name]}
            for name in SIDES
        }
        write_json(folder / "result.json", result)
    return result


def encode_all(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Ids of each text, in which nothing is special; very long texts are encoded in pieces cut after line ends."""
    pieces = [(i, piece) for i, text in enumerate(texts) for piece in _cut(text)]
    encoded = tokenizer.literal.encode_batch_fast([p for _, p in pieces], add_special_tokens=False)
    ids: list[list[int]] = [[] for _ in texts]
    for (i, _), found in zip(pieces, encoded, strict=True):
        ids[i] += found.ids
    return ids


def plan_shards(results: list[dict[str, Any]], most: int) -> list[tuple[str, list[int]]]:
    """Which parts go into which shard: parts in order, a shard is closed once it has `most` tokens."""
    shards: list[tuple[str, list[int]]] = []
    for name in SIDES:
        waiting: list[int] = []
        tokens = 0
        for part, result in enumerate(results):
            if result[name]["documents"] == 0:
                continue
            waiting.append(part)
            tokens += result[name]["tokens"]
            if tokens >= most:
                shards.append((name, waiting))
                waiting, tokens = [], 0
        if waiting:
            shards.append((name, waiting))
    return shards


def pack_shard(run: Path, split: str, number: int, members: list[int], target: Path) -> dict[str, Any]:
    """Put the tokens of several parts together into one shard."""
    about = read_json(run / "tokenizer.json")
    with whole_folder(target) as folder:
        writer = ShardWriter(folder, shard_name(split, number), split, about["vocab"], about["digest"])
        with writer:
            for part in members:
                source = run / "tokens" / f"{part:06d}"
                with (source / f"{split}.tokens").open("rb") as file:
                    while data := file.read(_COPY):
                        writer.write(data)
                writer.lengths(np.load(source / f"{split}.lengths.npy"))
        write_json(folder / "result.json", writer.header)
    return writer.header


def open_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a folder. Raises DataError naming it."""
    try:
        return Tokenizer.open(path)
    except ConfigError as e:
        raise DataError(e.what, place=e.place or path) from None


def _batches(docs: Iterator[Kept]) -> Iterator[list[Kept]]:
    batch: list[Kept] = []
    size = 0
    for doc in docs:
        batch.append(doc)
        size += len(doc.text)
        if len(batch) == _BATCH or size >= _LONGEST:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _cut(text: str) -> Iterator[str]:
    begin = 0
    while len(text) - begin > _LONGEST:
        stop = text.rfind("\n", begin, begin + _LONGEST) + 1
        stop = stop if stop > begin else begin + _LONGEST
        yield text[begin:stop]
        begin = stop
    yield text[begin:]
