"""A model with its weights in fewer bits, for as long as a build needs them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator
from pathlib import Path

from .backends.onnx.save import bound_of
from .backends.onnxruntime.blocks import PORTABLE, blocks_of
from .backends.target import Target
from .calibrating import base_of, calibration_bytes, prepared, trapped_in
from .frontends.dsl import Model, plain_graph
from .ir.encodings import Encoding
from .ir.errors import LoweringError, WeightsError
from .ir.files import beside
from .ir.types import DType
from .ir.weights import NO_WEIGHTS, Weights
from .passes.finite import check_weights
from .passes.quantize.choose import choose
from .passes.quantize.plan import rounded
from .passes.quantize.report import QuantizationReport
from .passes.quantize.settings import Quantization
from .samples import random_samples

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
    if asked is None:
        yield model, None
        return
    if model.weights is None:
        raise WeightsError(f"model {model.name} has no weights", hint=NO_WEIGHTS)
    check_weights(model.weights, plain_graph(model, dtype).params)
    if not asked.weights:
        yield model, None
        return
    if dtype == DType.f64:
        raise LoweringError("weights in fewer bits are multiplied in f32, f16 or bf16, not in f64")
    settings = filled(asked, target)
    planned = choose(plain_graph(model, dtype), model.weights, settings, base_of(settings), dtype)
    if announce is not None:
        announce(bound_of(model.weights[k] for k in model.weights) + calibration_bytes(model, settings))
    with beside(folder, "lines") as place:
        ready = prepared(model, settings, planned, place, narrow_of(target), dtype, _named(progress))
        done = list(rounded(ready.weights, ready.planned.choices, place, progress))
        weights = Weights({**ready.weights, **{r.name: r.tensor for r in done}}, model.weights.place)
        report = QuantizationReport.of(settings, model.weights, ready.planned, done, dtype.bits)
        report.fine = ready.fine
        yield dataclasses.replace(model, weights=weights), report


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


def narrow_of(target: Target | None) -> Callable[[Encoding], bool]:
    """Whether a target may multiply weights of an encoding by activations that it rounds to 8 bits."""
    from .backends.onnxruntime.choices import choices_of
    from .backends.onnxruntime.quantized import NARROW

    # Of 4 bits, too, where only tuning may choose to round: a layer that is told to be fine is so at every level.
    choices = None if target is None else choices_of(target)
    rounds = choices is not None and NARROW in (choices.int4_level, choices.int8_level)

    def narrow(e: Encoding) -> bool:
        return rounds if e.block else e.bits == 8

    return narrow


def fine_of(model: Model, target: Target, folder: Path) -> frozenset[str]:
    """Of a model whose weights are in blocks already, those whose activations 8 bits change too much."""
    if model.weights is None or all(t.type.encoding is None for t in model.weights.values()):
        return frozenset()
    with beside(folder, "lines") as place:
        return frozenset(trapped_in(model, model.weights, {}, random_samples(model), place, narrow_of(target)))


def _named(progress: Progress | None) -> Callable[[str], None] | None:
    return None if progress is None else lambda name: progress(0, 0, name)
