"""What was read of prompts, kept for prompts that begin alike: a tree of blocks of tokens with a byte limit."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .pool import Part
from .rows import Rows

BLOCK = 32
"""Tokens of a block, unless another number is given."""

NODE_BYTES = 1024
"""What a block costs beside its state: its tokens and its place in the tree."""

Key = str
"""What must be equal beside the tokens: inputs that stay for a row, the adapter among them."""


def key_of(inputs: Mapping[str, Any]) -> Key:
    """A digest of inputs that stay for a row; "" for none."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(inputs.items()):
        array = np.ascontiguousarray(value)
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest() if inputs else ""


@dataclass(eq=False)
class Block:
    """The next tokens after those of `before`. part: their keys and values; state: everything else, as it is after
    them. Either is None where it was not kept."""

    tokens: tuple[int, ...]
    before: Block | None
    end: int
    part: Part | None = None
    state: Part | None = None
    after: dict[tuple[int, ...], Block] = field(default_factory=dict[tuple[int, ...], "Block"])

    @property
    def bytes(self) -> int:
        return NODE_BYTES + sum(p.bytes for p in (self.part, self.state) if p is not None)

    def path(self) -> list[Block]:
        """The blocks from the first one to this one."""
        found, block = list[Block](), self
        while block.before is not None:
            found.append(block)
            block = block.before
        return found[::-1]


class Prefixes:
    """The prompts that rows have read, up to `limit` bytes (0: none are kept); the one used least recently goes first.

    Where every slot keeps all tokens, a prompt goes on from the last whole block that it has in common with another.
    Where some slot does not (`Rows.whole` says which), only from where a state was kept: at the end of a row, and where
    two prompts were seen to part. hits, misses: prompts that began with what was kept, and those that did not. tokens:
    how many were not read again.
    """

    def __init__(self, rows: Rows, limit: int, block: int = BLOCK, least: int = 1) -> None:
        """least: tokens of a prompt that are left to be read, whatever is known of it."""
        self.rows, self.limit, self.block, self.least = rows, limit, block, least
        self.roots: dict[Key, Block] = {}
        self.recent: OrderedDict[Block, Key] = OrderedDict()
        self.bytes = self.hits = self.misses = self.tokens = 0

    def restore(self, row: int, key: Key, prompt: Sequence[int]) -> int:
        """Lay the longest known beginning of a prompt into a new row, leaving some tokens to read; its length."""
        if not self.limit:
            return 0
        found = self.longest(key, prompt)
        if found is None:
            self.misses += 1
            return 0
        path = found.path()
        parts = [b.part for b in path if b.part is not None]
        self.rows.resume(row, parts, found.state, found.end)
        self.touch(path)
        self.hits += 1
        self.tokens += found.end
        return found.end

    def longest(self, key: Key, prompt: Sequence[int]) -> Block | None:
        """The last block that a prompt can go on from."""
        best, most = None, len(prompt) - self.least
        for block in self.along(key, prompt):
            if block.end > most:
                break
            if block.state is not None or (not self.rows.whole and block.part is not None):
                best = block
            if not self.rows.whole:
                continue
            for tokens, tail in block.after.items():
                ends = len(tokens) < self.block and tail.end <= most
                if ends and tail.state is not None and tuple(prompt[block.end : tail.end]) == tokens:
                    best = tail if best is None or tail.end > best.end else best
        return best

    def along(self, key: Key, prompt: Sequence[int]) -> Iterator[Block]:
        """The root of a key, and the whole blocks that a prompt begins with."""
        block = self.roots.get(key)
        while block is not None:
            yield block
            block = block.after.get(tuple(prompt[block.end : block.end + self.block]))

    def parting(self, key: Key, prompt: Sequence[int]) -> int:
        """How many tokens a prompt has in common with others, in whole blocks, where a state is worth keeping after
        them; 0 where every block can be gone on from anyway."""
        if not self.limit or not self.rows.whole:
            return 0
        most = len(prompt) - self.least
        return max((block.end for block in self.along(key, prompt) if block.end <= most), default=0)

    def save(self, row: int, key: Key, tokens: Sequence[int], *, state: bool) -> None:
        """Keep what a row has read, which are these tokens. state: keep what is no key or value as well; without it,
        where that is needed to go on, only the tokens are noted."""
        if not self.limit or not tokens:
            return
        path = self.blocks(key, tokens)
        if self.rows.whole and state:
            path = self.with_state(row, path, key, tokens)
        if state or not self.rows.whole:
            for block in path:
                if block.part is None:
                    self.grow(block, part=self.rows.part(row, block.end - len(block.tokens), block.end))
        self.touch(path)
        self.shrink()
        if key in self.roots and not self.roots[key].after:
            del self.roots[key]

    def with_state(self, row: int, path: list[Block], key: Key, tokens: Sequence[int]) -> list[Block]:
        """The path to the end of the tokens, with the state there."""
        last = path[-1] if path else self.roots[key]
        if last.end < len(tokens):
            rest = tuple(tokens[last.end :])
            last = last.after.get(rest) or self.add(key, last, rest)
            path = [*path, last]
        if last.state is None:
            self.grow(last, state=self.rows.state(row))
        return path

    def blocks(self, key: Key, tokens: Sequence[int]) -> list[Block]:
        """The whole blocks of these tokens, made where there are none."""
        block = self.roots.setdefault(key, Block((), None, 0))
        path: list[Block] = []
        for start in range(0, len(tokens) - self.block + 1, self.block):
            next = tuple(tokens[start : start + self.block])
            block = block.after.get(next) or self.add(key, block, next)
            path.append(block)
        return path

    def add(self, key: Key, before: Block, tokens: tuple[int, ...]) -> Block:
        block = before.after[tokens] = Block(tokens, before, before.end + len(tokens))
        self.recent[block] = key
        self.bytes += block.bytes
        return block

    def grow(self, block: Block, *, part: Part | None = None, state: Part | None = None) -> None:
        self.bytes -= block.bytes
        block.part, block.state = part or block.part, state or block.state
        self.bytes += block.bytes

    def clear(self) -> None:
        """Forget everything; counts stay."""
        self.roots, self.bytes = {}, 0
        self.recent.clear()

    def touch(self, path: Sequence[Block]) -> None:
        """Note a use: blocks come before those that follow them, so that the one used least recently ends a path."""
        for block in reversed(path):
            self.recent.move_to_end(block)

    def shrink(self) -> None:
        """Forget what was used least recently until the rest fits."""
        while self.bytes > self.limit and self.recent:
            block, key = self.recent.popitem(last=False)
            self.bytes -= block.bytes
            if block.before is not None:
                del block.before.after[block.tokens]
            if key in self.roots and not self.roots[key].after:
                del self.roots[key]
