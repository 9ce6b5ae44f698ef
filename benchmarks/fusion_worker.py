"""Exports, other optimizers and measurements for fusion_coverage.py, run by an environment of their own.

fusion_worker.py FOLDER (export | optimize | measure) EXPORTER,... NAME...: what is there already is not made again. For
each name: totals.json, inputs and eager outputs (trials.npz), EXPORTER.onnx, EXPORTER.RIVAL.onnx, and .json of every
file measured; what failed leaves a .failed with the reason. Files of optimum come from fusion_optimum.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from fusion_models import (
    KINDS,
    TRIALS,
    Plain,
    Tried,
    inputs_of,
    kept_of,
    model_of,
    once,
    opened,
    quiet,
    save,
    totals_of,
    trials_of,
)

RIVALS = ("transformers-optimizer", "onnxscript", "at-load", "hf-fuser")
TYPES = {
    "encoder": "bert", "decoder": "gpt2", "encoder-decoder": "bart", "vision": "vit", "t5": "t5", "phi": "phi",
    "swin": "swin", "clip_text_model": "clip", "clip_vision_model": "clip", "siglip_vision_model": "clip",
    "siglip_text_model": "clip", "qwen3": "qwen3",
}  # fmt: skip
"""What onnxruntime.transformers takes a model for: by name, else by group."""
ATTENTION = {
    "Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedAttention", "PackedMultiHeadAttention",
    "DecoderMaskedMultiHeadAttention", "DecoderMaskedSelfAttention", "SparseAttention", "QAttention",
    "LongformerAttention",
}  # fmt: skip
NORMS = {
    "LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization", "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization", "EmbedLayerNormalization", "GroupNormalization",
}  # fmt: skip
ROTARY = {"RotaryEmbedding": 1, "GemmaRotaryEmbedding": 2}


def shapes_of(names: tuple[str, ...], *, named: bool) -> tuple[dict[int, Any], ...]:
    """Which axes of the inputs are open: the batch, and of tokens their number; as sizes that torch finds out to be
    equal or not, or by names that say so."""

    def size(name: str) -> Any:
        return torch.export.Dim(name, min=2, max=60) if named else torch.export.Dim.AUTO

    batch, tokens, others = size("batch"), size("tokens"), size("decoder_tokens")
    return tuple(
        {0: batch} if n in ("pixel_values", "input_features") else {0: batch, 1: others if "decoder" in n else tokens}
        for n in names
    )


def example(name: str) -> tuple[Any, ...]:
    """Inputs to export with: padded on the left, three rows."""
    trials = trials_of(name)
    trial = next((t for t in trials if t.mask == "left" and t.batch > 1), trials[-1])
    return tuple(torch.from_numpy(v) for v in inputs_of(name, trial).values())


def dynamo(name: str, path: Path, opset: int) -> None:
    kind, model = KINDS[name], plain(name)

    def export(*, named: bool) -> None:
        shapes = shapes_of(kind.inputs, named=named)
        torch.onnx.export(
            model, example(name), str(path), dynamo=True, opset_version=opset, input_names=list(kind.inputs),
            output_names=["output"], dynamic_shapes=(shapes,), external_data=False, verbose=False,
        )  # fmt: skip

    try:
        export(named=False)
    except Exception:
        export(named=True)


def plain(name: str) -> Plain:
    """For torch.onnx, which has no grouped products of experts."""
    model = model_of(name)
    if getattr(model, "_can_set_experts_implementation", lambda: False)():
        model.set_experts_implementation("batched_mm")
    return Plain(name, model).eval()


def torchscript(name: str, path: Path) -> None:
    kind, model = KINDS[name], plain(name)
    axes: dict[str, Any] = {n: {0: "batch"} for n in (*kind.inputs, "output")}
    for n in kind.inputs:
        if "ids" in n or "mask" in n:
            axes[n][1] = "tokens" if not n.startswith("decoder") else "decoder_tokens"
    torch.onnx.export(
        model, example(name), str(path), dynamo=False, opset_version=17, input_names=list(kind.inputs),
        output_names=["output"], dynamic_axes=axes,
    )  # fmt: skip


def huggingface(name: str, path: Path, fusions: Literal["cpu"] | None) -> None:
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    given = dict(zip(KINDS[name].inputs, example(name), strict=True))
    made = OnnxExporter().export(model_of(name), given, config=OnnxConfig(dynamic=True, ort_fusions=fusions))
    onnx_ir.save(made.program, str(path))


EXPORT: dict[str, Callable[[str, Path], None]] = {
    "dynamo-18": partial(dynamo, opset=18),
    "dynamo-23": partial(dynamo, opset=23),
    "torchscript": torchscript,
    "hf": partial(huggingface, fusions=None),
    "hf-fused": partial(huggingface, fusions="cpu"),
}


def prepare(name: str, folder: Path) -> None:
    """Totals, inputs and what PyTorch makes of them."""
    model = model_of(name)
    masked = "attention_mask" in KINDS[name].inputs
    tried: list[Tried] = []
    for trial in trials_of(name):
        given = inputs_of(name, trial)
        with torch.no_grad():
            eager = Plain(name, model)(*[torch.from_numpy(v) for v in given.values()]).numpy()
        tried.append(Tried(str(trial), given, eager, (kept_of(trial),) if masked else ()))
    save(folder / "trials.npz", tried)
    counted = [torch.from_numpy(v) for v in inputs_of(name, TRIALS[4]).values()]
    (folder / "totals.json").write_text(json.dumps(totals_of(model, Plain(name, model), counted)))


# -- the optimizers ------------------------------------------------------------------------------------------------


def transformers_optimizer(name: str, source: Path, path: Path) -> None:
    from onnxruntime.transformers.optimizer import optimize_model

    kind = TYPES.get(name) or TYPES[KINDS[name].group]
    optimize_model(str(source), model_type=kind, num_heads=4, hidden_size=32).save_model_to_file(str(path))


def onnxscript_rewriter(_: str, source: Path, path: Path) -> None:
    from onnxscript.optimizer import optimize  # pyright: ignore[reportMissingImports]
    from onnxscript.rewriter.ort_fusions import optimize_for_ort  # pyright: ignore[reportMissingImports]

    model = onnx_ir.load(str(source))
    optimize(model)
    onnx_ir.save(optimize_for_ort(model)[0], str(path))


def at_load(_: str, source: Path, path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def hf_fuser(_: str, source: Path, path: Path) -> None:
    from transformers.exporters.onnxruntime_fusions import fuse_for_onnxruntime

    model = onnx_ir.load(str(source))
    fuse_for_onnxruntime(model, "cpu")
    onnx_ir.save(model, str(path))


OPTIMIZE = dict(zip(RIVALS, (transformers_optimizer, onnxscript_rewriter, at_load, hf_fuser), strict=True))


# -- what a file holds and gives -------------------------------------------------------------------------------------


def nodes_of(graph: Any) -> list[Any]:
    """All nodes, also those of subgraphs."""
    inner = [a for n in graph.node for a in n.attribute]
    below = [g for a in inner for g in (*((a.g,) if a.type == onnx.AttributeProto.GRAPH else ()), *a.graphs)]
    return [*graph.node, *(n for g in below for n in nodes_of(g))]


def counts_of(path: Path) -> dict[str, int]:
    """Fused ops, however a file calls them; functions count as often as they are called."""
    model = onnx.load(str(path), load_external_data=False)
    functions = {(f.domain, f.name): f for f in model.functions}

    def walked(nodes: Any) -> list[Any]:
        found: list[Any] = []
        for n in nodes:
            body = functions.get((n.domain, n.op_type))
            found += [n] if body is None else walked(nodes_of(body))
        return found

    found = walked(nodes_of(model.graph))
    turned = [n for n in found if any(a.name == "do_rotary" and a.i for a in n.attribute)]
    return {
        "attention": sum(n.op_type in ATTENTION for n in found),
        "norms": sum(n.op_type in NORMS for n in found),
        "rotary": sum(ROTARY.get(n.op_type, 0) for n in found) + 2 * len(turned),
        "nodes": len(found),
    }


def run(path: Path, trials: Sequence[Tried]) -> tuple[list[dict[str, Any] | None], str]:
    """Outputs by name on all trials (None: it fails), and the first failure. Raises what loading raises."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    made: list[dict[str, Any] | None] = []
    first = ""
    for trial in trials:
        given = {x.name: trial.inputs[x.name] for x in session.get_inputs()}
        try:
            made.append(dict(zip(names, session.run(names, given), strict=True)))
        except Exception as e:
            first = first or f"{trial.label}: {str(e).splitlines()[0]}"[:300]
            made.append(None)
    return made, first


def apart(wanted: Any, found: Any, kept: Sequence[Any]) -> float:
    """The largest difference as a share of the largest number, at tokens that the masks keep."""
    if found is None or found.shape != wanted.shape:
        return float("inf")
    counts = np.ones(wanted.shape, np.bool_)
    for axis in (2, 1) if wanted.ndim > 3 else (1,) if wanted.ndim > 2 else ():
        mask = next((k for k in kept if k.shape[1] == wanted.shape[axis]), None)
        if mask is not None:
            shape = (len(mask), *[1] * (axis - 1), mask.shape[1], *[1] * (wanted.ndim - axis - 1))
            counts &= mask.reshape(shape) != 0
            break
    counts &= ~np.isnan(wanted)
    gap = np.where(counts & (wanted != found), np.abs(wanted.astype(np.float64) - found), 0)
    gap = np.where(np.isnan(gap), np.inf, gap)
    return float(gap.max(initial=0)) / max(float(np.abs(wanted[counts]).max(initial=0)), 1e-3)


def measured(path: Path, trials: Sequence[Tried], truth: list[dict[str, Any] | None] | None) -> dict[str, Any]:
    """truth: outputs of the file before it was optimized; None: it is that file, and PyTorch is right."""
    facts: dict[str, Any] = {**counts_of(path), "loads": True, "fails": "", "ran": 0, "error": 0.0, "eager": 0.0}
    try:
        outputs, facts["fails"] = run(path, trials)
    except Exception as e:
        return {**facts, "loads": False, "fails": str(e).splitlines()[0][:300]}
    facts["ran"] = sum(y is not None for y in outputs)
    for i, (trial, found) in enumerate(zip(trials, outputs, strict=True)):
        same = [y for y in (found or {}).values() if y.shape == trial.eager.shape]
        gap = apart(trial.eager, same[0] if same else None, trial.kept) if found else 0.0
        facts["eager"] = max(facts["eager"], gap)
        wanted = {} if truth is None else truth[i] or {}
        found = found or dict.fromkeys(wanted)
        facts["error"] = max(facts["error"], *(apart(y, found.get(k), trial.kept) for k, y in wanted.items()), 0.0)
    return facts


def measure(folder: Path, exporters: Sequence[str]) -> None:
    for exporter in exporters:
        source, own = folder / f"{exporter}.onnx", folder / f"{exporter}.npz"
        if not source.exists():
            continue
        trials = opened(own if own.exists() else folder / "trials.npz")
        # What ends the process is not measured again.
        files = [source, *(folder / f"{exporter}.{r}.onnx" for r in RIVALS), folder / f"{exporter}.ours" / "model.onnx"]
        truth: list[dict[str, Any] | None] | None = None
        for file in files:
            stem = file.parent.name if file.name == "model.onnx" else file.stem
            result = folder / f"{stem}.json"
            new = not result.exists() or (file.exists() and result.stat().st_mtime < file.stat().st_mtime)
            if not file.exists() or not new:
                continue
            result.write_text(json.dumps({"loads": False, "fails": "the process ended"}))
            if file != source and truth is None:
                if not json.loads(source.with_suffix(".json").read_text())["loads"]:
                    break
                truth, _ = run(source, trials)
            result.write_text(json.dumps(measured(file, trials, None if file == source else truth)))


def main() -> None:
    work, task, exporters, *names = sys.argv[1:]
    quiet()
    for name in names or KINDS:
        folder = Path(work) / name
        folder.mkdir(parents=True, exist_ok=True)
        if task == "export":
            if not (folder / "totals.json").exists():
                prepare(name, folder)
            for exporter in [e for e in EXPORT if e in exporters.split(",")]:
                once(folder / f"{exporter}.onnx", partial(EXPORT[exporter], name))
        elif task == "optimize":
            for exporter in exporters.split(","):
                source = folder / f"{exporter}.onnx"
                for rival, change in OPTIMIZE.items():
                    if source.exists():
                        once(folder / f"{exporter}.{rival}.onnx", partial(change, name, source))
        else:
            measure(folder, exporters.split(","))


if __name__ == "__main__":
    main()
