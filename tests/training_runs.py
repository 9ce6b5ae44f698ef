"""A tiny model and text, and runs on them, for the tests of the training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from monograph.data.batch import labels_of
from monograph.frontends.dsl import Model, load_family
from monograph.ir import interpret
from monograph.ir.weights import Weights
from monograph.training.corpus import Corpus
from monograph.training.loop import train
from monograph.training.loss import with_loss
from monograph.training.progress import Step

TEXT = "".join(
    f"Line {i}: the {'cat' if i % 5 else 'dog'} {'sat' if i % 3 else 'lay'} on mat {i % 7}.\n\n" for i in range(150)
)
SETTINGS: dict[str, Any] = {"batch": 4, "length": 16, "progress": False, "device": "cpu", "learning_rate": 5e-3}


class Killed(Exception):
    """Raised in place of a kill by tests that only need what a kill leaves."""


def tiny(**changes: Any) -> Model:
    settings = {"vocab": 300, "dim": 16, "ffn": 32, "layers": 1, "heads": 2, "kv_heads": 1, "tied": True}
    return load_family("llama")(**(settings | changes))


def dropping(**changes: Any) -> Model:
    """A model with dropout, so that random numbers matter."""
    settings = {"vocab": 300, "dim": 16, "layers": 1, "heads": 2, "max_positions": 32, "dropout": 0.1}
    return load_family("gpt2")(**(settings | changes))


def run(model: Model, corpus: Corpus, steps: int, *, until: int | None = None, **settings: Any) -> list[Step]:
    """The steps of a run; `until`: it is left after that step, as a kill would."""
    history: list[Step] = []

    def observe(step: Step) -> None:
        history.append(step)
        if step.step == until:
            raise Killed

    try:
        train(model, corpus, steps=steps, observe=observe, **{**SETTINGS, **settings})
    except Killed:
        assert until is not None
    return history


def numbers(history: list[Step]) -> list[tuple[int, str, str, str]]:
    """What must be the same to the bit."""
    return [(s.step, repr(s.loss), repr(s.gradient_norm), repr(s.held_out)) for s in history]


def arrays(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    weights = Weights.open(folder / "model.safetensors")
    return {k: np.array(weights.numpy(k)) for k in weights}


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = arrays(a), arrays(b)
    assert set(first) == set(second)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def arrays_of(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {k: np.array(t.numpy()) for k, t in model.weights.items()}


def held_out_loss(arrays: dict[str, Any], corpus: Corpus) -> float:
    """By the NumPy reference."""
    graph, total, count = with_loss(tiny().graph()), 0.0, 0
    for batch in corpus.held_out_batches(8, 16):
        found = interpret(graph, {k: batch[k] for k in graph.inputs}, {k: arrays[k] for k in graph.params})
        total, count = total + float(found["loss"]) * labels_of(batch), count + labels_of(batch)
    return total / count
