"""Tiny models of every kind of state, built as for CUDA, and what they say over ordinary memory."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monograph.backends.onnxruntime import Session, build
from monograph.backends.onnxruntime import open as open_session
from monograph.backends.onnxruntime import session as sessions
from monograph.backends.onnxruntime.choices import CHOICES
from monograph.backends.onnxruntime.memory_cpu import CpuMemory
from monograph.frontends.dsl import Model, load_family
from monograph.ir.weights import Weights
from monograph.passes.differential import random_params
from ort_models import ids_of
from small_models import OWN, SMALL

Array = np.ndarray[Any, Any]

VOCAB = 200
LOGITS = f"float32[3, {VOCAB}]"
CHOOSING = replace(CHOICES["cpu"], next_token=True)


def served(family: str) -> Model:
    """A model of the family whose heads are wide enough for kernels that write caches in place."""
    found = load_family(family)
    fields = {f.name for f in dataclasses.fields(found.config_class)}
    given = {**SMALL, "dim": 64, "head_dim": 16, "rotary_dim": 16, "vocab": VOCAB, **OWN.get(family, {})}
    return found(**{k: v for k, v in given.items() if k in fields})


@cache
def folder(name: str, root: Path, choosing: bool = True) -> Path:
    """A family with random weights, built so that it chooses tokens, as a build for CUDA is."""
    made = served(name)
    path = root / f"{name}-{choosing}"
    build(made, Weights.of(random_params(made.graph())), path, choices=CHOOSING if choosing else None)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("device")


def opened(path: Path, **settings: Any) -> Session:
    return open_session(path, **{"threads": 1, "capacity": 8, **settings})


def began(session: Session, rows: int = 3) -> Array:
    """Logits after ragged prompts, behind a source where there is one."""
    types = session.contract.inputs.get(session.contract.encoder, {})
    rng = np.random.default_rng(3)
    if types:
        sizes = {t.shape[0]: rows for t in types.values()}
        shapes = {k: [n if isinstance(n, int) else sizes.get(n, 8) for n in t.shape] for k, t in types.items()}
        drawn = {k: rng.uniform(1, 2, shape) for k, shape in shapes.items()}
        given = {k: x.astype(types[k].dtype.numpy) for k, x in drawn.items()}
        session.encode(given)
    return session.prefill(ids_of(rows, 7), [7, 2, 4][:rows]).copy()


def wanted(path: Path, steps: int, rows: int = 3) -> list[list[int]]:
    """Greedy ids of a session in ordinary memory, chosen by NumPy from whole logits."""
    with pytest.MonkeyPatch.context() as m:
        m.setitem(sessions.MEMORIES, "cpu", CpuMemory)
        session = opened(path)
        tokens = began(session, rows).argmax(-1)
        found = [tokens.tolist()]
        for _ in range(steps):
            tokens = session.step(tokens).argmax(-1)
            found.append(tokens.tolist())
    return found
