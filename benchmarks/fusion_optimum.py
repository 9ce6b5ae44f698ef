"""Exports of optimum for fusion_coverage.py, run by an environment that has the transformers it wants.

fusion_optimum.py FOLDER NAME...: for each name and form of an export EXPORTER.onnx, its inputs with what PyTorch makes
of them (EXPORTER.npz) and what is in it (EXPORTER.totals.json); what failed leaves a .failed with the reason.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from fusion_models import (
    KINDS,
    SIZES,
    TRIALS,
    Trial,
    Tried,
    inputs_of,
    kept_of,
    model_of,
    once,
    quiet,
    save,
    totals_of,
    trials_of,
)

TASKS = {"AutoModelForCausalLM": "text-generation", "AutoModelForSeq2SeqLM": "text2text-generation",
         "AutoModelForSpeechSeq2Seq": "automatic-speech-recognition"}  # fmt: skip
PASTS = (0, 0, 6, 6, 6, 12, 8)
"""How many of the tokens of each of TRIALS lie in the past of a decoder: none, all but a few, all but one."""


@dataclass(frozen=True)
class Form:
    """One way to export: the task's ending, all parts in one file, merged: the branches in one, the file."""

    ending: str = ""
    monolith: bool = True
    merged: bool = False
    file: str = "model.onnx"


FORMS: dict[str, dict[str, Form]] = {
    "encoder": {"optimum": Form()},
    "vision": {"optimum": Form()},
    "decoder": {"optimum": Form(), "optimum-past": Form("-with-past", monolith=False)},
    "encoder-decoder": {
        "optimum": Form(),
        "optimum-past": Form("-with-past", monolith=False, file="decoder_with_past_model.onnx"),
        "optimum-merged": Form("-with-past", monolith=False, merged=True, file="decoder_model_merged.onnx"),
    },
}


def export(name: str, form: Form, path: Path) -> None:
    from optimum.exporters.onnx import onnx_export_from_model  # pyright: ignore[reportMissingImports]

    task = TASKS.get(KINDS[name].auto, "feature-extraction") + form.ending
    features = KINDS[name].sizes.get("max_source_positions")
    shapes = {"nb_max_frames": 2 * features} if features else {}
    with tempfile.TemporaryDirectory() as place:
        onnx_export_from_model(
            model_of(name), place, task=task, monolith=form.monolith, no_post_process=not form.merged,
            do_validation=False, **shapes,
        )  # fmt: skip
        path.write_bytes((Path(place) / form.file).read_bytes())


# -- inputs ----------------------------------------------------------------------------------------------------------


def positions(kept: np.ndarray[Any, Any], new: int) -> np.ndarray[Any, Any]:
    """Of the last tokens, counted without those that are masked."""
    return (kept.cumsum(1) - 1).clip(0)[:, -new:]


def whole(name: str, trial: Trial, wanted: Sequence[Any]) -> dict[str, Any]:
    """What a file without a past is given: what the other exporters' files are, and what optimum asks for beside it."""
    kept = kept_of(trial)
    types = (np.arange(kept.size).reshape(kept.shape) % trial.length > 3).astype(np.int64)
    made = inputs_of(name, trial) | {"position_ids": positions(kept, trial.length), "token_type_ids": types}
    return {x.name: made[x.name] for x in wanted}


def continued(name: str, trial: Trial, past: int, wanted: Sequence[Any], *, begins: bool) -> dict[str, Any]:
    """What a decoder's file with a past is given: random keys and values of tokens before, and new tokens.

    The mask is of the source if there is one, else of all tokens. begins: of a file of two branches, the one that
    makes keys and values of the source; its past is empty.
    """
    rng = np.random.default_rng(trial.batch * 100 + trial.length + past)
    kind, kept = KINDS[name], kept_of(trial)
    pair = kind.group == "encoder-decoder"
    source = kind.sizes.get("max_source_positions", trial.length)
    new = (5 if begins else 1 + trial.length % 4) if pair else trial.length - past
    made: dict[str, Any] = {
        "input_ids": rng.integers(3, 50, (trial.batch, new)),
        "attention_mask": kept,
        "encoder_attention_mask": kept,
        "position_ids": positions(kept, new),
        "use_cache_branch": np.array([not begins]),
    }
    for x in wanted:
        sizes = [d.dim_value for d in x.type.tensor_type.shape.dim]
        if x.name.startswith("past_key_values"):
            sizes[0], sizes[2] = trial.batch, source if ".encoder." in x.name else past
        elif x.name == "encoder_hidden_states":
            sizes = [trial.batch, source, SIZES["d_model"]]
        else:
            continue
        made[x.name] = rng.standard_normal(sizes).astype(np.float32)
    return {x.name: made[x.name] for x in wanted}


def trials(name: str, form: Form, wanted: Sequence[Any]) -> list[tuple[str, dict[str, Any], tuple[Any, ...]]]:
    """(label, inputs, masks of the tokens that count) of each."""
    masked = any("attention_mask" in x.name for x in wanted)
    if not form.ending:
        return [(str(t), whole(name, t, wanted), (kept_of(t),) if masked else ()) for t in trials_of(name)]
    found: list[tuple[str, dict[str, Any], tuple[Any, ...]]] = []
    pair = KINDS[name].group == "encoder-decoder"
    for begins in (True, False) if form.merged else (False,):
        for trial, tokens in zip(TRIALS, PASTS, strict=True):
            past = 0 if begins else tokens if not pair else 7
            given = continued(name, trial, past, wanted, begins=begins)
            kept = kept_of(trial)
            masks = (kept,) if pair else (kept, kept[:, past:])
            found.append((f"{trial}, past {past}", given, masks if masked else ()))
    return found


# -- what PyTorch makes of them -------------------------------------------------------------------------------------


def forward(name: str, model: Any, given: dict[str, Any]) -> Any:
    """The output of a model that is given the inputs of a file."""
    from transformers import DynamicCache, EncoderDecoderCache

    past = {k: v for k, v in given.items() if k.startswith("past_key_values")}
    rest = {k: v for k, v in given.items() if k not in past and k != "use_cache_branch"}
    if "use_cache_branch" in given and not given["use_cache_branch"]:
        past = {}
    off: dict[str, Any] = {"use_cache": False} if not past and hasattr(model.config, "use_cache") else {}
    pair = KINDS[name].group == "encoder-decoder" and "decoder_input_ids" not in given
    if not past and not pair:
        return model(**rest, **off)[KINDS[name].output]
    layers: dict[str, list[Any]] = {}
    for kind in ("key", "value", "decoder.key", "decoder.value", "encoder.key", "encoder.value"):
        layers[kind] = [v for k, v in past.items() if k.split(".", 2)[2] == kind]
    cache = {
        side: DynamicCache(list(zip(layers[f"{side}key"], layers[f"{side}value"], strict=True)))
        for side in ("", "decoder.", "encoder.")
    }
    if not pair:
        return model(**rest, past_key_values=cache[""], use_cache=True)[0]
    told = {"decoder_input_ids": rest["input_ids"], "attention_mask": rest.get("encoder_attention_mask")}
    if past:
        told["past_key_values"] = EncoderDecoderCache(cache["decoder."], cache["encoder."])
        told["encoder_outputs"] = (layers["encoder.key"][0].new_zeros(1, 1, 1),)
    else:
        told["encoder_outputs"] = (rest["encoder_hidden_states"],)
    return model(**{k: v for k, v in told.items() if v is not None}, use_cache=bool(past))[0]


def made(name: str, form: Form, path: Path) -> None:
    """A file, its inputs with what PyTorch makes of them, and what it computes for those with holes."""
    export(name, form, path)
    stem = path.with_name(path.name.removeprefix("part-"))
    wanted = list(onnx.load(str(path), load_external_data=False).graph.input)
    model = model_of(name)
    tried: list[Tried] = []
    totals: dict[str, int] = {}
    for label, given, kept in trials(name, form, wanted):
        names = list(given)

        def run(*tensors: Any, names: list[str] = names) -> Any:
            return forward(name, model, dict(zip(names, tensors, strict=True)))

        tensors = [torch.from_numpy(v) for v in given.values()]
        with torch.no_grad():
            tried.append(Tried(label, given, run(*tensors).numpy(), kept))
        if label.startswith("hole" if kept else "ones, batch 3, length 9"):
            for kind, count in totals_of(model, run, tensors).items():
                totals[kind] = totals.get(kind, 0) + count
    save(stem.with_suffix(".npz"), tried)
    stem.with_suffix(".totals.json").write_text(json.dumps(totals))


def main() -> None:
    work, *names = sys.argv[1:]
    quiet()
    for name in names or KINDS:
        folder = Path(work) / name
        folder.mkdir(parents=True, exist_ok=True)
        for exporter, form in FORMS[KINDS[name].group].items():
            once(folder / f"{exporter}.onnx", partial(made, name, form))


if __name__ == "__main__":
    main()
