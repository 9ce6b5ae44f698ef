"""`monograph train`: a causal language model on text files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..console import Json, command, out, print_json
from ..frontends.dsl import Model
from ..ir import MonographError
from ..resolve import HELP, resolve


@command
def train(
    model: Annotated[str, typer.Argument(help=HELP)],
    folder: Annotated[Path, typer.Argument(help="where the trained checkpoint goes, in Hugging Face layout")],
    text: Annotated[list[Path] | None, typer.Option("--text", "-t", help="UTF-8 file; may be repeated")] = None,
    steps: Annotated[int, typer.Option(help="updates")] = 1000,
    batch: Annotated[int, typer.Option(help="windows per update")] = 16,
    length: Annotated[int, typer.Option(help="tokens per window")] = 128,
    learning_rate: Annotated[float, typer.Option(help="at its peak")] = 2e-3,
    precision: Annotated[str, typer.Option(help="f32, or bf16 for autocast")] = "f32",
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the module")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in the folder")] = False,
    seed: Annotated[int, typer.Option(help="of initial weights, order of the text and dropout")] = 0,
    json_output: Json = False,
) -> None:
    """Train a causal language model on text files (default: the help pages that every Python carries)."""
    from ..training.corpus import Corpus, python_topics, read_text
    from ..training.loop import train as run

    loaded = resolve(model)
    texts = [read_text(p) for p in text] if text else [python_topics()]
    corpus = Corpus.of(texts, loaded.tokenizer, vocab=vocabulary(loaded))
    history: list[Any] = []
    run(
        loaded, corpus, steps=steps, batch=batch, length=length, learning_rate=learning_rate, precision=precision,
        compile=compile, resume=resume, seed=seed, folder=folder, progress=not json_output, observe=history.append,
    )  # fmt: skip
    measured = [s for s in history if s.held_out is not None]
    if json_output:
        tokens = {"train_tokens": len(corpus.train), "held_out_tokens": len(corpus.held_out)}
        print_json({"folder": folder, **tokens, "measured": measured})
        return
    last = measured[-1] if measured else history[-1]
    out().print(f"{len(corpus.train):,} training tokens; {last}", markup=False)
    out().print(f"wrote {folder}", markup=False)


def vocabulary(model: Model) -> int:
    """Rows of the logits: how many entries a tokenizer for the model may have."""
    size = model.graph().outputs["logits"].shape[-1] if model.task == "causal-lm" else None
    if not isinstance(size, int):
        raise MonographError(f"{model.family.name} is a {model.task} model; a text trains only causal-lm models")
    return size
