"""`monograph finetune`: instructions, preferences or a teacher, with all weights or a LoRA; `monograph merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..console import Json, command, out, print_json
from ..frontends.dsl import Model
from ..ir.errors import ConfigError
from ..resolve import resolve
from .options import FamilyOption, ModelArgument


@command
def finetune(
    model: ModelArgument,
    folder: Annotated[Path, typer.Argument(help="where the checkpoint goes, or with --lora the adapter")],
    data: Annotated[
        Path, typer.Option("--data", "-d", help="JSONL: messages; prompt, completion; or chosen, rejected")
    ],
    lora: Annotated[bool, typer.Option("--lora", help="train a low-rank adapter, not the weights")] = False,
    rank: Annotated[int, typer.Option(help="of the adapter")] = 8,
    alpha: Annotated[float, typer.Option(help="the adapter is scaled by alpha / rank")] = 16.0,
    dropout: Annotated[float, typer.Option(help="before the adapter")] = 0.0,
    quantized: Annotated[bool, typer.Option("--quantized", help="with --lora: frozen weights in 8 bits")] = False,
    target: Annotated[
        list[str] | None, typer.Option("--target", help="layer with an adapter, such as q_proj; may be repeated")
    ] = None,
    merged: Annotated[Path | None, typer.Option(help="folder for a checkpoint with the adapter merged")] = None,
    dpo: Annotated[bool, typer.Option("--dpo", help="rows are pairs: prompt, chosen, rejected")] = False,
    beta: Annotated[float, typer.Option(help="of DPO: how strongly the model is held to the reference")] = 0.1,
    teacher: Annotated[str | None, typer.Option(help="learn the probabilities of this model")] = None,
    temperature: Annotated[float, typer.Option(help="of teacher and student")] = 2.0,
    hard: Annotated[float, typer.Option(help="weight of the true labels beside the teacher")] = 0.5,
    steps: Annotated[int, typer.Option(help="updates")] = 500,
    batch: Annotated[int, typer.Option(help="rows (of --dpo: pairs) per update")] = 8,
    length: Annotated[int, typer.Option(help="tokens of a row that are read")] = 512,
    learning_rate: Annotated[float | None, typer.Option(help="at its peak; without: by the kind of training")] = None,
    held_out: Annotated[float, typer.Option(help="share of the rows that is measured on")] = 0.05,
    precision: Annotated[str, typer.Option(help="f32, or bf16 for autocast")] = "f32",
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the module")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in the folder")] = False,
    seed: Annotated[int, typer.Option(help="of the adapter's first weights, order of the rows and dropout")] = 0,
    family: FamilyOption = None,
    json_output: Json = False,
) -> None:
    """Fine-tune a causal language model on rows of JSONL; only answers count."""
    from ..frontends.huggingface import save_pretrained
    from ..training import finetune as tuning
    from ..training.adapters import ALL, Lora
    from ..training.dpo import Preferences
    from ..training.instruct import Instructions

    _check(lora=lora, quantized=quantized, target=target, merged=merged, dpo=dpo, teacher=teacher)
    loaded = resolve(model, family)
    adapter = Lora(rank, alpha, tuple(target) if target else ALL, dropout) if lora else None
    history: list[Any] = []
    settings: dict[str, Any] = {
        "lora": adapter, "steps": steps, "batch": batch, "length": length, "learning_rate": learning_rate,
        "precision": precision, "compile": compile, "resume": resume, "seed": seed, "folder": folder,
        "progress": not json_output, "observe": history.append,
    }  # fmt: skip
    if loaded.task != "causal-lm":
        hint = 'train it on with a recipe: [model] path = "the folder"'
        raise ConfigError(
            f"is a {loaded.task} model; finetune is for those that continue a text", place=model, hint=hint
        )
    tokenizer = tokenizer_of(loaded, model)
    if dpo:
        rows = Preferences.read(tokenizer, data, held_out=held_out)
        tuned = tuning.dpo(loaded, rows, beta=beta, **settings)
    elif teacher:
        rows = Instructions.read(tokenizer, data, held_out=held_out)
        tuned = tuning.distill(loaded, resolve(teacher), rows, temperature=temperature, hard=hard, **settings)
    else:
        rows = Instructions.read(tokenizer, data, held_out=held_out)
        tuned = tuning.finetune(loaded, rows, quantized=quantized, **settings)
    if merged is not None:
        save_pretrained(tuned.model, merged)
    _report(tuned, history, folder, merged, json_output=json_output)


def _check(
    *, lora: bool, quantized: bool, target: list[str] | None, merged: Path | None, dpo: bool, teacher: str | None
) -> None:
    """Raises ConfigError for options that do not go together."""
    if quantized and (dpo or teacher or not lora):
        raise ConfigError("--quantized goes with --lora on instructions")
    if dpo and teacher:
        raise ConfigError("--dpo and --teacher are two kinds of training: give one")
    if not lora and (target or merged):
        raise ConfigError(f"{'--target' if target else '--merged'} is about an adapter: give --lora")


def _report(tuned: Any, history: list[Any], folder: Path, merged: Path | None, *, json_output: bool) -> None:
    measured = [s for s in history if s.held_out is not None]
    if json_output:
        trained = None if tuned.adapter is None else sum(t.bytes // 4 for t in tuned.adapter.weights.values())
        print_json({"folder": folder, "merged": merged, "adapter_parameters": trained, "measured": measured})
        return
    if history:
        out().print(str((measured or history)[-1]), markup=False)
    for written in filter(None, (folder, merged)):
        out().print(f"wrote {written}", markup=False)


@command
def merge(
    model: ModelArgument,
    adapter: Annotated[Path, typer.Argument(help="folder with adapter_config.json and adapter_model.safetensors")],
    folder: Annotated[Path, typer.Argument(help="where the merged checkpoint goes")],
    family: FamilyOption = None,
    json_output: Json = False,
) -> None:
    """Write a checkpoint with an adapter (PEFT's format) merged into its weights, tensor by tensor."""
    from ..frontends.huggingface import save_pretrained
    from ..training.adapters import Adapter

    loaded = resolve(model, family)
    found = Adapter.load(adapter)
    written = save_pretrained(found.merged(loaded), folder)
    if json_output:
        print_json({"folder": folder, "files": written, "layers": len(found.weights) // 2})
    else:
        out().print(f"merged {len(found.weights) // 2} layers; wrote {folder}", markup=False)


def tokenizer_of(model: Model, name: str) -> Any:
    """The tokenizer of a model. Raises ConfigError when it has none."""
    if model.tokenizer is None:
        raise ConfigError("has no tokenizer, so rows of text cannot be read", place=name)
    return model.tokenizer
