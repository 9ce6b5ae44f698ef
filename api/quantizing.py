"""A model with its weights in fewer bits, for as long as a build needs them."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

from .backends.onnx.save import bound_of
from .backends.onnxruntime.blocks import PORTABLE, blocks_of
from .backends.target import Target
from .frontends.dsl import Model
from .ir.errors import LoweringError, WeightsError
from .ir.types import DType
from .ir.weights import NO_WEIGHTS, Weights
from .passes.quantize.choose import choose
from .passes.quantize.methods import plain_method
from .passes.quantize.plan import Method, rounded
from .passes.quantize.report import QuantizationReport
from .passes.quantize.settings import CALIBRATED, Quantization

Progress = Callable[[int, int, str], None]


@contextlib.contextmanager
def quantized(
    model: Model,
    asked: Quantization | None,
    target: Target | None,
    folder: Path,
    *,
    dtype: DType = DType.f32,
    announce: Callable[[int], None] | None = None,
    progress: Progress | None = None,
) -> Generator[tuple[Model, QuantizationReport | None]]:
    """The model with the weights that were asked for, and what was done; both as they are where nothing was asked.

    target: None for a portable export. folder: where it will be built; rounded weights wait on its disk and are gone
    when the block ends. announce(bytes): the most memory that rounding and building may take. progress(tensors done,
    all, name). Raises LoweringError for a form that the target has no kernel for, ConfigError where nothing can be
    rounded, WeightsError for weights that are missing, damaged or not finite.
    """
    if asked is None or not asked.weights:
        yield model, None
        return
    if model.weights is None:
        raise WeightsError(f"model {model.name} has no weights", hint=NO_WEIGHTS)
    settings = filled(asked, target)
    planned = choose(model.graph(dtype), model.weights, settings, method_of(settings), dtype)
    if announce is not None:
        announce(bound_of(model.weights[k] for k in model.weights))
    place = _scratch(folder)
    try:
        done = list(rounded(model.weights, planned.choices, place, progress))
        weights = Weights({**model.weights, **{r.name: r.tensor for r in done}}, model.weights.place)
        report = QuantizationReport.of(settings, model.weights, planned, done, dtype.bits)
        yield dataclasses.replace(model, weights=weights), report
    finally:
        shutil.rmtree(place, ignore_errors=True)


def filled(asked: Quantization, target: Target | None) -> Quantization:
    """What was asked, with the block length and the symmetry that the target multiplies by fastest.

    Raises LoweringError for a form that the target has no kernel for.
    """
    blocks = PORTABLE if target is None else blocks_of(target.provider)
    if target is None and asked.weights == "int2":
        raise LoweringError("a portable export has no 2-bit form: the standard ops of opset 23 know int4 and int8")
    if asked.dynamic and target is not None and not blocks.dynamic:
        what = f"{target.provider} has no kernel that multiplies 8-bit weights by activations rounded as they come"
        raise LoweringError(what, hint="ask for int8, which stores weights by blocks")
    return asked.filled(blocks.length(asked.weights), blocks.symmetric)


def method_of(asked: Quantization) -> Method:
    """Who rounds. Raises LoweringError for a method that needs text, which is read elsewhere."""
    if asked.chosen_method in CALIBRATED or asked.quality is not None or asked.size is not None:
        raise LoweringError("a build does not look at text yet: methods rtn, kquant and hqq do without it")
    return plain_method(asked.chosen_method)


def _scratch(folder: Path) -> Path:
    """A hidden folder on the disk of `folder`, beside it if that is possible."""
    near = next(p for p in (folder.absolute().parent, *folder.absolute().parents) if p.is_dir())
    return Path(tempfile.mkdtemp(prefix=f".{folder.name[:50]}-", suffix=".lines", dir=near))
