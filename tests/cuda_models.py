"""Graphs for CUDA, run on the CPU: tiny models of every kind that a kernel sees, built, rehosted and compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import monograph as mg
from monograph.backends.onnxruntime import Beside, build
from monograph.backends.onnxruntime.rehosted import rehosted
from monograph.backends.target import Target
from monograph.frontends.dsl import Model, load_family
from monograph.ir.types import DType
from monograph.ir.weights import Weights
from monograph.parity import Parity
from monograph.passes.differential import Case, random_params
from monograph.passes.quantize.settings import Quantization
from monograph.quantizing import quantized
from ort_models import MODELS, RECURRENT
from small_models import FAMILIES, OWN, SMALL

SIZES = {**SMALL, "dim": 64, "ffn": 64, "inner": 64, "head_dim": 16, "rotary_dim": 16}
"""Heads as wide as the kernels take them, rows of whole blocks."""
SEEDS = {"mixtral": 3}
"""Of weights under which no two experts are as good as each other: which of them is chosen is no matter of rounding."""
KINDS = ("f32", "f16", "bf16", "int4")


def sized(family: str) -> Model:
    """A model of a family without weights."""
    found = load_family(family)
    fields = {f.name for f in dataclasses.fields(found.config_class)}
    return found(**{k: v for k, v in {**SIZES, **OWN.get(family, {})}.items() if k in fields})


SUBJECTS: dict[str, Callable[[], Model]] = {
    **{family: (lambda family=family: sized(family)) for family in FAMILIES},
    **{f"small {kind}": made for kind, made in MODELS.items() if kind not in (*RECURRENT, "llama", "gpt2")},
}
"""Every family, and attention with windows and caps and sinks, norms of q and k, a bias, and narrow heads."""


@dataclass(frozen=True)
class Found:
    """What a subject showed: its rows against the NumPy reference, and the folder that was built for CUDA."""

    parity: Parity
    folder: Path

    @property
    def worst(self) -> float:
        """The largest difference, relative to the largest expected value if that is above 1."""
        return max(r.difference / max(r.scale, 1.0) for r in self.parity.rows)


def with_weights(name: str) -> Model:
    """A subject with random weights."""
    model = SUBJECTS[name]()
    return dataclasses.replace(model, weights=Weights.of(random_params(model.graph(), SEEDS.get(name, 0))))


def checked(name: str, kind: str, place: Path, cases: Sequence[Case] | None = None) -> Found:
    """Build a subject for CUDA, run all its graphs on the CPU, and compare with the f32 reference on hard masks."""
    return compared(with_weights(name), kind, place / f"{name}-{kind}", cases)


def compared(model: Model, kind: str, folder: Path, cases: Sequence[Case] | None = None) -> Found:
    """The same for a model with weights. int4: with the numbers that its rounded weights stand for, in f16."""
    target = Target("cuda", DType("f16" if kind == "int4" else kind))
    asked = Quantization("int4") if kind == "int4" else None
    with quantized(model, asked, target, folder, dtype=target.dtype) as (served, done):
        build(served, None, folder, target, beside=Beside(quantization=done))
        here = rehosted(folder, folder.with_name(f"{folder.name}-here"))
        return Found(mg.verify(served, here, torch=False, cases=cases), folder)
