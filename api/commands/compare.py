"""`monograph compare`: n-gram, RNN, LSTM, GRU and Transformer on one text, in a table and a plot."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console import Json, command, err, out, print_json, table
from ..ir import MonographError

if TYPE_CHECKING:
    from ..training.baselines.compare import Result
    from ..training.corpus import Corpus


@command
def compare(
    text: Annotated[
        list[Path] | None, typer.Option("--text", help="UTF-8 text to train on; several are taken together")
    ] = None,
    models: Annotated[str, typer.Option(help="names with commas between")] = "ngram,rnn,lstm,gru,transformer",
    steps: Annotated[int, typer.Option(help="updates of each neural model")] = 800,
    batch: Annotated[int, typer.Option(help="windows in a batch")] = 8,
    length: Annotated[int, typer.Option(help="tokens in a window")] = 64,
    vocab: Annotated[int, typer.Option(help="entries of the tokenizer, which is trained on the text")] = 1024,
    parameters: Annotated[int, typer.Option(help="parameters that each neural model should have")] = 500_000,
    order: Annotated[int, typer.Option(help="of the n-gram table")] = 5,
    learning_rate: Annotated[
        float | None, typer.Option(help="highest rate for every model (default: what suits each)")
    ] = None,
    contexts: Annotated[str, typer.Option(help="context lengths at which cost is taken")] = "64,128,256,512,1024,2048",
    seed: Annotated[int, typer.Option(help="of weights and batches")] = 0,
    plot: Annotated[Path, typer.Option(help="PNG file to write")] = Path("compare.png"),
    save: Annotated[Path | None, typer.Option(help="folder for the trained models, one folder each")] = None,
    json_output: Json = False,
) -> None:
    """Train n-gram, RNN, LSTM, GRU and Transformer on one text; compare loss, speed and cost against context.

    Without --text: the language reference that Python carries, 0.46 MB of English.
    """
    from ..training.baselines.compare import Settings
    from ..training.baselines.compare import compare as run
    from ..training.baselines.compare import plot as draw

    settings = Settings(
        steps, batch, length, parameters, order, learning_rate, seed, tuple(numbers("contexts", contexts))
    )
    corpus = _corpus(text, vocab)

    def begin(name: str) -> None:
        if not json_output:
            err().print(f"{name}:")

    results = run(corpus, models.split(","), settings, folder=save, progress=not json_output, begin=begin)
    file = draw(results, plot)
    if json_output:
        rows = [{**asdict(r), "perplexity": r.perplexity} for r in results]
        about = {"vocab": corpus.vocab, "train_tokens": len(corpus.train), "held_out_tokens": len(corpus.held_out)}
        print_json({**about, "settings": asdict(settings), "results": rows, "plot": file})
        return
    _print(results, corpus, settings.contexts)
    err().print(f"plot: {file}")


def numbers(name: str, text: str) -> list[int]:
    """Integers with commas between. Raises MonographError naming the option."""
    try:
        return [int(n) for n in text.split(",")]
    except ValueError:
        raise MonographError(f"--{name} is {text!r}, expected numbers with commas between") from None


def _corpus(text: list[Path] | None, vocab: int) -> Corpus:
    from ..training.corpus import Corpus, python_topics

    return Corpus.read(text, vocab=vocab) if text else Corpus.of(python_topics(), vocab=vocab)


def _print(results: list[Result], corpus: Corpus, contexts: tuple[int, ...]) -> None:
    console = out()
    title = f"{len(corpus.train):,} training and {len(corpus.held_out):,} held-out tokens, vocabulary {corpus.vocab:,}"
    rows = [
        {
            "model": r.name,
            "parameters": r.entries,
            "held-out loss": r.held_out,
            "perplexity": r.perplexity,
            "training s": r.seconds,
            "tokens/s": round(r.tokens_per_second),
            "flops of S tokens": polynomial(r.cost),
        }
        for r in results
    ]
    console.print(table(title, rows))
    for name, unit, scale in (("flops", "million flops", 1e-6), ("seconds", "ms, measured", 1e3)):
        console.print(
            table(f"reading a context of so many tokens: {unit}", _by_context(results, contexts, name, scale))
        )
    console.print(table("one more token after them: million flops", _by_context(results, contexts, "step_flops", 1e-6)))
    console.print(table("state kept to go on: kB", _by_context(results, contexts, "state_bytes", 1e-3)))


def polynomial(cost: str) -> str:
    """`8*S*S+2097152*S` -> `8 S² + 2.1e+06 S`."""
    terms: list[str] = []
    for term in cost.split("+"):
        factors = term.split("*")
        count = factors.count("S")
        number = next((int(f) for f in factors if f != "S"), 1)
        shown = f"{number:,}" if number < 10_000 else f"{number:.2e}"
        terms.append(f"{shown} {'S' if count else ''}{'²' if count == 2 else ''}".strip())
    return " + ".join(terms)


def _by_context(results: list[Result], contexts: tuple[int, ...], name: str, scale: float) -> list[dict[str, Any]]:
    return [
        {"model": r.name, **{f"{c:,}": scale * getattr(p, name) for c, p in zip(contexts, r.points, strict=True)}}
        for r in results
    ]
