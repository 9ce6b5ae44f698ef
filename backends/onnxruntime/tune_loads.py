"""What a model is tuned for: loads, the inputs they give to a session, and how long one takes."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...ir.errors import MonographError
from ...ir.slots import TARGETS, TOKENS
from ...ir.types import DimLike, TensorType
from .contract import Contract, Types
from .feeds import others
from .guard import Array
from .session import Session

STEPS = 6
"""Steps of a decode in one round; their median counts."""

_TEXT = re.compile(r"([1-9]\d*)x([1-9]\d*)(?:\+(\d+))?")


@dataclass(frozen=True)
class Load:
    """A request: `batch` rows of `prompt` tokens each, and `new` tokens that are generated behind them."""

    batch: int
    prompt: int
    new: int = 0

    @staticmethod
    def parse(text: str) -> Load:
        """From `batch x prompt + new`, such as 1x512+128, or 32x128 for an encoder. Raises MonographError."""
        found = _TEXT.fullmatch(text.replace(" ", ""))
        if found is None:
            raise MonographError(f"no load is called {text!r}", hint="rows x tokens + new tokens, such as 1x512+128")
        return Load(*(int(n or 0) for n in found.groups()))

    def within(self, limit: int) -> Load:
        """The same with prompts that leave room for the steps, if there are any, in a model of `limit` tokens a row."""
        room = limit - self.new - STEPS - 1 if self.new else limit
        prompt = max(1, min(self.prompt, room))
        return Load(self.batch, prompt, min(self.new, max(0, limit - prompt)))

    def __str__(self) -> str:
        return f"{self.batch}x{self.prompt}" + (f"+{self.new}" if self.new else "")


DECODE = (Load(1, 512, 128),)
ENCODE = (Load(32, 128), Load(1, 16))
"""The loads that are measured unless others are given."""


@dataclass(frozen=True)
class Seconds:
    """Of one load: of all prompts together, and of one step (0 where nothing is generated)."""

    prompt: float
    step: float = 0.0

    def of(self, load: Load) -> float:
        """Of the whole load."""
        return self.prompt + load.new * self.step


class Runner:
    """A session with the inputs of a load."""

    def __init__(self, folder: Path, contract: Contract, load: Load, threads: int | None = None) -> None:
        self.contract, self.load = contract, load.within(contract.limit)
        room = self.load.prompt + self.load.new + STEPS + 1
        self.session = Session(folder, contract, threads=threads, capacity=min(room, contract.limit))
        self.rng = np.random.default_rng(0)
        self.generates = contract.kind == "decoder"
        first = contract.encoder or contract.lengths or contract.masked
        self.inputs = self.sampled(self.own(contract.inputs[first], first))

    def own(self, types: Types, file: str) -> Types:
        """Inputs of a graph that a caller gives."""
        if not self.generates or file == self.contract.encoder:
            return types
        return others(self.contract, file)

    def sampled(self, types: Types) -> dict[str, Array]:
        """Random inputs of these types: ids inside their tables, masks of ones; positions follow by themselves."""
        found: dict[str, Array] = {}
        for name, type in types.items():
            if name in (TOKENS.positions, TARGETS.positions):
                continue
            shape = tuple(self.sized(d, i) for i, d in enumerate(type.shape))
            if name in (TOKENS.mask, TARGETS.mask):
                found[name] = np.ones(shape, type.dtype.numpy)
            else:
                found[name] = self.random(name, type, shape)
        return found

    def random(self, name: str, type: TensorType, shape: tuple[int, ...]) -> Array:
        if type.dtype.is_float:
            return self.rng.standard_normal(shape).astype(type.dtype.numpy)
        most = self.contract.bounds.get(name, 2)
        return np.asarray(self.rng.integers(0, most, shape)).astype(type.dtype.numpy)

    def sized(self, d: DimLike, axis: int) -> int:
        return d if isinstance(d, int) else self.load.batch if axis == 0 else self.load.prompt

    def measure(self) -> Seconds:
        """One request from the beginning."""
        if not self.generates:
            start = time.perf_counter()
            self.session.run(self.inputs)
            return Seconds(time.perf_counter() - start)
        rows, bound = self.load.batch, self.contract.bounds.get(self.ids, 2)
        length = 1 if self.contract.encoder else self.load.prompt
        prompt = self.rng.integers(0, bound, (rows, length))
        start = time.perf_counter()
        if self.contract.encoder:
            self.session.encode(self.inputs)
        self.session.prefill(prompt, np.full(rows, length), {} if self.contract.encoder else self.inputs)
        seconds = time.perf_counter() - start
        if not self.load.new:
            return Seconds(seconds)
        return Seconds(seconds, self.steps(prompt[:, 0]))

    def steps(self, tokens: Array) -> float:
        """Median seconds of a step, without the first one, which makes its bindings."""
        found: list[float] = []
        beside = self.beside()
        for _ in range(STEPS + 1):
            start = time.perf_counter()
            self.session.step(tokens, beside)
            found.append(time.perf_counter() - start)
        return statistics.median(found[1:])

    def beside(self) -> Mapping[str, Any] | None:
        """What comes along with one token."""
        stream = self.contract.stream
        length = stream.length if stream is not None else ""
        types = others(self.contract, self.contract.lengths or self.contract.masked)
        along = {k: t for k, t in types.items() if t.rank > 1 and str(t.shape[1]) == length}
        return {k: v[:, :1] for k, v in self.sampled(along).items()} or None

    @property
    def ids(self) -> str:
        return self.contract.stream.ids if self.contract.stream is not None else ""
