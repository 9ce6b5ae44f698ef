"""Log-probabilities of the tokens of prompts, read in chunks so that not all logits are there at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..backends.onnxruntime import Session
from ..backends.onnxruntime.paired import PROMPT_TOKENS
from ..backends.onnxruntime.rows import rows_of
from ..ir.errors import RuntimeInputError
from .logprobs import Logprob, logprobs_of

CHUNK = 128
"""Tokens of a prompt whose logits are looked at together."""


def prompt_logprobs(
    session: Session, prompts: Sequence[Sequence[int]], inputs: Mapping[str, Any] | None, top: int
) -> list[list[Logprob | None]]:
    """What to tell of every token of each prompt, None for the first; inputs: of all rows, [B,...] by name.

    Raises RuntimeInputError for texts that an encoder reads: they are no tokens that a model gives.
    """
    if session.contract.encoder and inputs is None:
        raise RuntimeInputError(
            "prompt_logprobs are for tokens that a decoder reads, and an encoder reads these prompts"
        )
    found: list[list[Logprob | None]] = []
    beside = {k: np.asarray(v) for k, v in (inputs or {}).items()}
    rows = rows_of(session, 1)
    for i, prompt in enumerate(prompts):
        row = rows.join({k: v[i : i + 1] for k, v in beside.items()})
        told: list[Logprob | None] = [None]
        start = 0
        while start < len(prompt):
            # Few tokens may be multiplied in another way than many: none are left over for a piece of their own.
            stop = start + CHUNK if len(prompt) - start - CHUNK >= PROMPT_TOKENS else len(prompt)
            logits = rows.read(row, prompt[start:stop], every=True)
            after = prompt[start + 1 : start + 1 + len(logits)]
            told += logprobs_of(logits[: len(after)], after, top)
            start = stop
        rows.leave(row)
        found.append(told)
    return found
