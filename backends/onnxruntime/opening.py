"""Open a folder that `build` wrote, and measure how its prompts are read fastest if that is asked for."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Literal

import numpy as np

from ...ir.errors import RuntimeInputError
from ...ir.manifest import check
from .contract import Contract
from .feeds import others
from .session import CAPACITY, MEMORIES, Session

_TUNE_TOKENS, _TUNE_ROUNDS = 256, 3


def open(
    folder: str | Path,
    *,
    threads: int | None = None,
    capacity: int = CAPACITY,
    tune: bool = False,
    exact: bool = False,
    every_byte: bool = False,
    capture: bool | Literal["check"] = True,
    profile: str = "",
) -> Session:
    """A session for a folder that `build` wrote.

    threads: for the work inside an op (None: one a physical core). capacity: tokens a row gets room for at first;
    buffers double up to the model's positions. tune: measure prompts with and without tiled attention (a second or
    two) and keep the faster. exact: products with weights in blocks multiply in float, never by activations in 8 bits,
    which is slower. every_byte: compare all files with their digests, also those that were found whole before. capture:
    replay steps as CUDA graphs where every node allows it and the first of them give what ordinary ones do ("check":
    where they do not, it is an error). profile: how the names of the files begin in which the runtime notes when every
    kernel ran; see `Session.profiled`. Raises ConfigError, WeightsError or RuntimeInputError for a folder that is
    damaged, contradicts itself, or needs a provider that is not there.
    """
    folder = Path(folder)
    contract = Contract.read(folder)
    check(folder, every_byte=every_byte)
    if contract.provider not in MEMORIES:
        known = ", ".join(MEMORIES)
        what = f"sessions on {contract.provider} are not supported yet, only on {known}"
        raise RuntimeInputError(what, place=str(folder))
    if capacity < 1:
        raise RuntimeInputError(f"capacity is {capacity}, expected at least 1")
    tiled = Session(folder, contract, threads=threads, capacity=capacity, exact=exact, capture=capture, profile=profile)
    if not tune or not contract.lengths or contract.encoder or others(contract, contract.lengths):
        return tiled
    plain = Session(folder, contract, threads=threads, capacity=capacity, flash=False, exact=exact)
    return min((tiled, plain), key=_prompt_seconds)


def _prompt_seconds(session: Session) -> float:
    """Median seconds of a prompt of ordinary length; the session is left empty."""
    length = min(_TUNE_TOKENS, session.contract.limit)
    tokens, lengths = np.zeros((1, length), np.int64), np.array([length])
    session.prefill(tokens, lengths)
    seconds: list[float] = []
    for _ in range(_TUNE_ROUNDS):
        start = time.perf_counter()
        session.prefill(tokens, lengths)
        seconds.append(time.perf_counter() - start)
    session.reset()
    return statistics.median(seconds)
