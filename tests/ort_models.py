"""Small models of every kind, built for ONNX Runtime, with the reference for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from monograph.backends.onnxruntime import Session, build
from monograph.backends.onnxruntime import open as open_session
from monograph.backends.onnxruntime.guard import default_positions
from monograph.frontends.dsl import Config, Model, Scope, Value, key_mask, load_family, model
from monograph.frontends.models.gpt2 import gpt2
from monograph.frontends.models.llama import llama
from monograph.ir import interpret, ops
from monograph.ir.weights import Weights
from monograph.passes.differential import random_params

Array = np.ndarray[Any, Any]
VOCAB, POSITIONS = 40, 80


class Small(Config):
    """A decoder of one layer whose attention has what is asked for."""

    kind: str = "window"
    positions: int = POSITIONS

    @property
    def max_positions(self) -> int:
        return self.positions


@model
def small(m: Scope, c: Small, input_ids: Value, attention_mask: Value, position_ids: Value) -> Value:
    """kind: window (and softcap, sinks), norms (of q and k), bias (over keys), narrow (rotation of 8 channels)."""
    width = 8 if c.kind == "narrow" else 16
    x = m.embed("embed", input_ids, VOCAB, 32)
    for b in m.layers("layers", 2):
        h = b.rms_norm("norm", x, 1e-6)
        q, k, v = (b.linear(n, h, heads * width).split_heads(heads) for n, heads in (("q", 4), ("k", 2), ("v", 2)))
        if c.kind == "norms":
            q, k = b.rms_norm("q_norm", q, 1e-6), b.rms_norm("k_norm", k, 1e-6)
        q, k = (b.rope(t, position_ids, theta=100.0) for t in (q, k))
        extra: dict[str, Any] = {"window": 3, "softcap": 4.0} if c.kind == "window" else {}
        if c.kind == "window":
            extra["sinks"] = b.param("sinks", 4)
        if c.kind == "bias":
            extra["bias"] = b.param("bias", 1, 4, 1, 1)
        y = ops.attention(q, k, v, mask=key_mask(attention_mask), causal=True, **extra)
        x = x + b.linear("o", y.merge_heads(), 32)
    return m.linear("head", m.rms_norm("norm", x, 1e-6), VOCAB)


SIZES = {"vocab": VOCAB, "dim": 64, "layers": 2, "heads": 4, "max_positions": POSITIONS}
MODELS: dict[str, Callable[[], Model]] = {
    "llama": lambda: llama(kv_heads=2, ffn=48, tied=True, **SIZES),
    "gpt2": lambda: gpt2(inner=48, **SIZES),
    **{kind: lambda kind=kind: small(kind=kind) for kind in ("window", "norms", "bias", "narrow")},
}  # fmt: skip
RECURRENT = ("rnn_lm", "lstm_lm", "gru_lm")
MODELS |= {k: lambda k=k: load_family(k)(vocab=VOCAB, dim=16, layers=2) for k in RECURRENT}
GENERATING = sorted(MODELS)
CACHED = sorted(set(MODELS) - set(RECURRENT))
ONE_GRAPH = ("bias", *RECURRENT)
"""Models without a graph for lengths."""


class Built:
    """A built model with its weights, and the reference for it."""

    def __init__(self, name: str, folder: Path, made: Model, **settings: Any) -> None:
        self.name, self.folder, self.graph = name, folder / name, made.graph()
        self.params = random_params(self.graph)
        self.report = build(made, Weights.of(self.params), self.folder, **settings)

    def open(self, **settings: Any) -> Session:
        return open_session(self.folder, **{"threads": 1, "capacity": 4, **settings})

    def logits(self, ids: Array, mask: Array | None = None, positions: Array | None = None) -> Array:
        """Logits [B,S,V] of a full forward in the reference."""
        mask = np.ones(ids.shape, np.int64) if mask is None else mask
        positions = default_positions(mask, ids.shape[1]) if positions is None else positions
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        return interpret(self.graph, inputs, self.params)["logits"]

    def last(self, row: list[int]) -> Array:
        return self.logits(np.array([row]))[0, -1]


def builder(folder: Path) -> Callable[[str], Built]:
    """Models of MODELS by name, each built once below a folder."""
    known = dict[str, Built]()

    def get(name: str) -> Built:
        if name not in known:
            known[name] = Built(name, folder, MODELS[name]())
        return known[name]

    return get


def close(got: Array, wanted: Array, what: object = "") -> None:
    scale = max(1.0, float(np.abs(wanted).max(initial=0)))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=3e-5 * scale, err_msg=str(what))


def ids_of(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, VOCAB, shape)
