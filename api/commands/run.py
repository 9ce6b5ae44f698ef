"""`monograph run`: what a model says of a text, a sound or arrays: what comes next, a label, what a mask hides."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ..building import build
from ..console import Json, command, err, out, print_json, progress
from ..frontends.json_file import read_json
from ..inference.engine import Engine
from ..ir import MonographError
from ..ir.documents import parse_json
from ..ir.errors import ConfigError
from ..resolve import HELP, resolve
from .inputs import check_given, read_inputs, tell_outputs
from .options import FamilyOption, RandomOption, models


@command
def run(
    model: Annotated[str, typer.Argument(help=f"a folder made by `build`, or {HELP}", autocompletion=models)],
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            help="texts to continue, translate, label, embed or fill masks in; a question and a text; WAV files"
        ),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", help="NAME=FILE.npy, NAME=[1, 2], FILE.npz or FILE.json; may be repeated"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="with --input: the .npz file to write the outputs to")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="put the prompt through the model's chat template")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="most tokens to generate")] = 128,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="only the k likeliest tokens")] = None,
    top_p: Annotated[float | None, typer.Option(help="only the likeliest tokens that add up to p")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="above 1: tokens seen before are less likely")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="text at which to end; may be repeated")] = None,
    beams: Annotated[int | None, typer.Option(help="texts followed at once; the likeliest is given")] = None,
    lookup: Annotated[int | None, typer.Option(help="most tokens guessed at once from the text so far")] = None,
    draft: Annotated[Path | None, typer.Option(help="a built folder whose model guesses tokens")] = None,
    schema: Annotated[Path | None, typer.Option(help="file of a JSON schema that the text follows")] = None,
    regex: Annotated[str | None, typer.Option(help="a regular expression that the text follows")] = None,
    adapter: Annotated[str | None, typer.Option(help="name of an adapter that the folder was built with")] = None,
    language: Annotated[str, typer.Option(help="of speech, as a code")] = "en",
    seed: Annotated[int | None, typer.Option(help="of the random choice; by default another each time")] = None,
    threads: Annotated[int | None, typer.Option(help="by default one a physical core")] = None,
    check: Annotated[bool, typer.Option("--check", help="read every byte of a built folder first")] = False,
    family: FamilyOption = None,
    random: RandomOption = None,
    json_output: Json = False,
) -> None:
    """Run a built folder on texts, sounds or arrays; any other model is built into a temporary folder first."""
    inputs, texts = read_inputs(given or ()), list(texts or ())
    with tempfile.TemporaryDirectory(prefix="monograph-") as folder:
        engine = open_engine(model, Path(folder), threads, json_output, family, random, every_byte=check)
        check_given(engine, texts, inputs)
        settings: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "repetition_penalty": repetition_penalty,
            "stop": stop or (),
            "seed": seed,
            "num_beams": beams,
            "lookup": lookup,
            "draft": None if draft is None else Engine.open(draft, threads=threads),
            "schema": None if schema is None else schema_of(schema),
            "regex": regex,
            "adapter": adapter,
        }
        tell = TELL.get(engine.task)
        if chat and tell is not None:
            raise MonographError(f"--chat goes with models that generate, not with one for {engine.task}")
        if not texts:
            tell_outputs(engine, inputs, json_output, output)
        elif engine.task == "speech-to-text":
            transcribe(engine, texts, language, json_output, settings)
        elif tell is not None:
            tell(engine, texts, json_output)
        else:
            generate(engine, texts, chat, json_output, {**settings, "inputs": inputs or None})


def schema_of(file: Path) -> dict[str, Any]:
    """The JSON schema of a file. Raises ConfigError for one that holds none."""
    if not file.is_file():
        raise ConfigError("there is no such file", place=str(file))
    return read_json(file)


def transcribe(engine: Engine, files: list[str], language: str, json_output: bool, settings: dict[str, Any]) -> None:
    """Print what is said in WAV files, a line for each."""
    known = {k: v for k, v in settings.items() if v is not None}
    found = engine.transcribe(files, language=language, **known)
    if json_output:
        print_json([{"file": f, "text": g.text, "ids": g.ids} for f, g in zip(files, found, strict=True)])
        return
    for one in found:
        out().print(one.text.strip(), markup=False)


def generate(engine: Engine, texts: list[str], chat: bool, json_output: bool, settings: dict[str, Any]) -> None:
    """Print what comes after one text as it comes, or a line for each of several."""
    live = len(texts) == 1 and not json_output
    prompts = [prompt_of(engine, text) for text in texts]
    results = engine.generate(prompts, chat=chat, on_text=write_text if live else _silent, **settings)
    if json_output:
        shown = [
            {"text": r.text, "ids": r.ids, "reason": r.reason, "timing": r.timing,
             "tokens_per_second": r.timing.tokens_per_second}
            for r in results
        ]  # fmt: skip
        print_json(shown if len(texts) > 1 else shown[0])
        return
    for result in results if not live else ():
        out().print(result.text, markup=False)
    if live:
        out().print()
    err().print(speed(results[0].timing), style="dim")


def prompt_of(engine: Engine, text: str) -> str | list[int]:
    """A text as it is; of a model without a tokenizer the ids that it lists, such as [5, 6, 7]."""
    if engine.tokenizer is not None:
        return text
    try:
        found: Any = parse_json(text)
    except ValueError:
        return text
    return cast("list[int]", found) if isinstance(found, list) else text


def tell_labels(engine: Engine, texts: list[str], json_output: bool) -> None:
    """Print the label of each text, and the probabilities of all labels."""
    found = engine.classify(texts)
    if json_output:
        print_json(found if len(texts) > 1 else found[0])
        return
    for one in found:
        shown = ", ".join(f"{name} {p:.4f}" for name, p in one.probabilities.items())
        out().print(f"{one.label}  ({shown})", markup=False)


def tell_masked(engine: Engine, texts: list[str], json_output: bool) -> None:
    """Print for each mask of each text the likeliest tokens with their probabilities, a line a mask."""
    found = engine.fill(texts)
    if json_output:
        print_json([{"text": t, "masks": m} for t, m in zip(texts, found, strict=True)])
        return
    for masks in found:
        for guesses in masks:
            out().print(", ".join(f"{g.token} {g.probability:.4f}" for g in guesses), markup=False)


def tell_vectors(engine: Engine, texts: list[str], json_output: bool) -> None:
    """Print the vector of each text: as JSON all of it, else its first numbers."""
    found = engine.embed(texts)
    if json_output:
        print_json([{"text": t, "vector": v.tolist()} for t, v in zip(texts, found, strict=True)])
        return
    for vector in found:
        shown = ", ".join(f"{v:.4f}" for v in vector[:8])
        out().print(f"[{shown}{', ...' if len(vector) > 8 else ''}]  ({len(vector)} numbers)", markup=False)


def tell_tags(engine: Engine, texts: list[str], json_output: bool) -> None:
    """Print each token of each text with its label."""
    found = engine.tag(texts)
    if json_output:
        print_json([{"text": t, "tokens": row} for t, row in zip(texts, found, strict=True)])
        return
    for row in found:
        out().print("  ".join(f"{t.text}/{t.label}" for t in row), markup=False)


def tell_answer(engine: Engine, texts: list[str], json_output: bool) -> None:
    """Print the answer to the question that the first text is, found in each of the others."""
    question, *others = texts
    if not others:
        raise MonographError(
            "there is a question, but no text to find the answer in", hint='run MODEL "QUESTION" "TEXT"'
        )
    found = [engine.answer(question, text) for text in others]
    if json_output:
        print_json([{"question": question, **dataclasses.asdict(one)} for one in found])
        return
    for one in found:
        out().print(f"{one.text}  ({one.probability:.4f}, characters {one.start} to {one.end})", markup=False)


TELL = {
    "sequence-classification": tell_labels,
    "masked-lm": tell_masked,
    "feature-extraction": tell_vectors,
    "token-classification": tell_tags,
    "question-answering": tell_answer,
}
"""What a model of a task says of texts, where it does not generate."""


def open_engine(
    model: str,
    folder: Path,
    threads: int | None,
    quiet: bool,
    family: str | None = None,
    random: int | None = None,
    *,
    every_byte: bool = False,
) -> Engine:
    """The engine of a built folder; for anything else, of a build into `folder`. Raises MonographError.

    every_byte: compare the files of the built folder with their digests, also when they were found whole before.
    """
    if (Path(model) / "monograph.json").exists():
        return Engine.open(model, threads=threads, every_byte=every_byte)
    if (Path(model) / "model.onnx").exists():
        hint = "build its model with --target cpu, or the file with monograph optimize FILE.onnx -o FOLDER --cache"
        raise MonographError("is a portable export", place=model, hint=hint)
    loaded = resolve(model, family, random)
    with progress(quiet) as bars:
        bar = bars.add_task("building", total=None)

        def show(done: int, total: int, name: str) -> None:
            bars.update(bar, completed=done, total=total)

        return build(loaded, folder / "built", threads=threads, progress=show)


def write_text(row: int, text: str) -> None:
    """Show text the moment it is certain."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _silent(row: int, text: str) -> None:
    pass


def speed(timing: Any) -> str:
    """Prompt and answer in tokens per second."""
    prompt = timing.prompt_tokens / timing.prefill_seconds if timing.prefill_seconds else 0.0
    return (
        f"prompt {timing.prompt_tokens} tokens at {prompt:.0f} tokens/s, "
        f"answer {timing.new_tokens} tokens at {timing.tokens_per_second:.1f} tokens/s"
    )
