"""Monograph: write a transformer once, train it in PyTorch, serve it on ONNX Runtime, and know both are the same.

Everything here is documented where it is defined. What needs torch or onnxruntime is imported when first used, so
that graphs can be built, printed and rewritten without either.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .frontends.dsl import GGUF as GGUF
from .frontends.dsl import Checkpoint as Checkpoint
from .frontends.dsl import Config as Config
from .frontends.dsl import Family as Family
from .frontends.dsl import Model as Model
from .frontends.dsl import Program as Program
from .frontends.dsl import Scope as Scope
from .frontends.dsl import key as key
from .frontends.dsl import key_mask as key_mask
from .frontends.dsl import model as model
from .frontends.task import Task as Task
from .ir import DType as DType
from .ir import Graph as Graph
from .ir import MonographError as MonographError
from .ir import Value as Value
from .ir import ops as ops
from .ir.errors import did_you_mean
from .ir.missing import needed as _needed
from .ir.slots import Slot as Slot
from .ir.slots import Stream as Stream
from .ir.weights import Weights as Weights
from .passes.quantize.settings import Quantization as Quantization

if TYPE_CHECKING:
    from .bisecting import bisect as bisect
    from .building import build as build
    from .building import export as export
    from .building import open as open
    from .building import to_torch as to_torch
    from .fidelity import Quality as Quality
    from .fidelity import quality as quality
    from .frontends.given import init as init
    from .inference.engine import Engine as Engine
    from .inference.server.run import serve as serve
    from .optimizing import optimize as optimize
    from .parity import verify as verify
    from .performance import bench as bench
    from .resolve import load as load
    from .training.adapters import Adapter as Adapter
    from .training.adapters import Lora as Lora
    from .training.arrays import Arrays as Arrays
    from .training.corpus import Corpus as Corpus
    from .training.corpus import python_topics as python_topics
    from .training.dpo import Preferences as Preferences
    from .training.finetune import distill as distill
    from .training.finetune import dpo as dpo
    from .training.finetune import finetune as finetune
    from .training.instruct import Instructions as Instructions
    from .training.labelled import Labelled as Labelled
    from .training.loop import train as train
    from .training.masked import Masked as Masked
    from .training.pairs import Pairs as Pairs

__version__ = "0.1.0"

_LATER = {
    "init": "frontends.given",
    "load": "resolve",
    "to_torch": "building",
    "export": "building",
    "build": "building",
    "open": "building",
    "Engine": "inference.engine",
    "serve": "inference.server.run",
    "optimize": "optimizing",
    "bisect": "bisecting",
    "verify": "parity",
    "bench": "performance",
    "Quality": "fidelity",
    "quality": "fidelity",
    "train": "training.loop",
    "finetune": "training.finetune",
    "dpo": "training.finetune",
    "distill": "training.finetune",
    "Adapter": "training.adapters",
    "Lora": "training.adapters",
    "Instructions": "training.instruct",
    "Preferences": "training.dpo",
    "Arrays": "training.arrays",
    "Corpus": "training.corpus",
    "python_topics": "training.corpus",
    "Labelled": "training.labelled",
    "Masked": "training.masked",
    "Pairs": "training.pairs",
}
"""Names that bring in a heavy library, and the module each is taken from."""

__all__ = [
    "GGUF", "Adapter", "Arrays", "Checkpoint", "Config", "Corpus", "DType", "Engine", "Family", "Graph",
    "Instructions", "Labelled", "Lora", "Masked", "Model", "MonographError", "Pairs", "Preferences", "Program",
    "Quality", "Quantization", "Scope", "Slot", "Stream", "Task", "Value", "Weights", "bench", "bisect", "build",
    "distill", "dpo", "export", "finetune", "init", "key", "key_mask", "load", "model", "open", "ops", "optimize",
    "python_topics", "quality", "serve", "to_torch", "train", "verify",
]  # fmt: skip


if not TYPE_CHECKING:  # a checker takes the imports above, and calls a misspelt name an error

    def __getattr__(name: str) -> Any:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}{did_you_mean(name, __all__)}")
        with _needed(f"mg.{name}"):
            value = getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
