"""Doing what a recipe says: model, data, run."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from .console import err
from .data.tables import between
from .frontends.dsl import Model
from .frontends.huggingface import with_head
from .frontends.task import LOGITS
from .frontends.tokenizer import Tokenizer, read_json
from .ir.errors import ConfigError
from .ir.silent import silent
from .resolve import family_named, resolve
from .scores import check_scores, scores
from .training import finetune as tuning
from .training.adapters import Lora
from .training.checkpoint import CHECKPOINTS
from .training.finetune import Tuned
from .training.lock import held
from .training.loop import train
from .training.progress import Step, preparing
from .training.recipe import MOST_ENTRIES, PYTHON, DataRecipe, Recipe, targets_of
from .training.source import Source
from .training.world import rank_here, size_here

REPEATABLE = ("byte-bpe",)
"""Tokenizers that come out the same each time they are trained on the same text."""


@dataclass(frozen=True)
class Trained:
    """What a run gave. seconds: of the whole run, data and measurements included; steps: that were done now.

    metrics: measured at the end. notes: what should be known about the model, such as parameters that were drawn anew.
    """

    model: Model
    source: Any
    steps: list[Step]
    seconds: float
    length: int
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    notes: list[str] = field(default_factory=list[str])

    @property
    def sizes(self) -> dict[str, int]:
        """How much data there was: tokens, or what else the source counts."""
        if hasattr(self.source, "sizes"):
            return self.source.sizes(self.length)
        part = getattr(self.source, "train", None)
        tokens = {} if part is None else {"train_tokens": getattr(part, "tokens", len(part))}
        return {**tokens, "held_out_tokens": len(self.source.held_out)}

    def lines(self) -> list[str]:
        return [f"{name}: {value:,.4g}" for name, value in self.metrics.items()]


def follow(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
    observe: Callable[[Step], None] | None = None,
) -> Trained:
    """Train as a recipe says into `folder`, which also gets the recipe with every default. Raises as `train` does."""
    # Before hours of reading data; of several processes the first one learns it where it can tell the others.
    with held(folder) if size_here() == 1 else contextlib.nullcontext():
        return _follow(recipe, folder, resume, progress, tensorboard, observe or silent)


def _follow(
    recipe: Recipe, folder: Path, resume: bool, progress: bool, tensorboard: bool, observe: Callable[[Step], None]
) -> Trained:
    begin = time.perf_counter()
    if resume:
        recipe.check_same(folder)
    if recipe.metrics.translate:
        check_scores()
    with preparing("reading the data", progress and not rank_here()):
        model, source, notes = prepare(recipe, _kept_tokenizer(folder) if resume else None)
    for line in notes if progress and not rank_here() else ():
        err().print(line, markup=False)
    history: list[Step] = []

    def note(step: Step) -> None:
        if not history and rank_here() == 0:
            recipe.save(folder)
        history.append(step)
        observe(step)

    settings: dict[str, Any] = {f.name: getattr(recipe.train, f.name) for f in dataclasses.fields(recipe.train)}
    shown = {"folder": folder, "resume": resume, "progress": progress, "tensorboard": tensorboard, "observe": note}
    trained = _run(recipe, model, source, {**settings, **shown})
    # Of several processes the first one speaks for all.
    count, length = recipe.metrics.translate if rank_here() == 0 else 0, recipe.train.length
    metrics = scores(trained.model, source.references[:count], folder, length) if count else {}
    return Trained(trained.model, source, history, time.perf_counter() - begin, length, metrics, notes)


def _run(recipe: Recipe, model: Model, source: Any, settings: dict[str, Any]) -> Tuned:
    lora = recipe.lora and Lora(recipe.lora.rank, recipe.lora.alpha, targets_of(recipe.lora), recipe.lora.dropout)
    if recipe.dpo:
        return tuning.dpo(model, source, beta=recipe.dpo.beta, lora=lora, **settings)
    if recipe.distill:
        teacher, how = resolve(recipe.distill.teacher), recipe.distill
        return tuning.distill(model, teacher, source, temperature=how.temperature, hard=how.hard, lora=lora, **settings)
    if recipe.lora:
        return tuning.finetune(model, source, lora=lora, quantized=recipe.lora.quantized, **settings)
    return Tuned(train(model, source, **settings))


def _kept_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a run that goes on: training it again need not give the same one."""
    found = sorted((folder / CHECKPOINTS).glob("step-*/tokenizer.json"))
    return Tokenizer.open(found[-1].parent) if found else None


def prepare(recipe: Recipe, tokenizer: Tokenizer | None = None) -> tuple[Model, Any, list[str]]:
    """(model, data, notes) of a recipe. Raises ConfigError if one does not go with the other.

    tokenizer: taken instead of training one.
    """
    base = resolve(recipe.model.path) if recipe.model.path else None
    task = task_of(recipe, base)
    source = source_of(recipe, base, task, tokenizer)
    names = getattr(source, "labels", ())
    labels = {"labels": {str(i): name for i, name in enumerate(names)}} if names else {}
    drawn: list[str] = []
    if base is None:
        model = new_model(recipe, source, task, labels)
    elif base.task != task or (names and getattr(base.config, "labels", names) is None):
        model, drawn = with_head(base, task, seed=recipe.train.seed, **labels)
    else:
        model = base
    return model, source, [f"drawn anew, for the checkpoint has no such head: {', '.join(drawn)}"] if drawn else []


def task_of(recipe: Recipe, model: Model | None) -> str:
    """The task that is trained: as the recipe says, what the data is for, or that of the model."""
    if recipe.model.task or recipe.data.kind == "labelled":
        return recipe.model.task or "sequence-classification"
    return str(model.task if model is not None else family_named(recipe.model.family).task)


def new_model(recipe: Recipe, source: Source, task: str, given: Mapping[str, Any]) -> Model:
    """A model of the recipe's family without weights, for the vocabulary of the data.

    given: fields of its config by name, over which those of the recipe go.
    """
    family = family_named(recipe.model.family, task)
    # Fields go by their names in the family's Config or by their keys in config.json.
    keys = {f.name: f.metadata.get("hf", f.name) for f in dataclasses.fields(cast("Any", family.config_class))}
    config = {keys.get(k, k): v for k, v in {**given, **recipe.model.config}.items()}
    if "vocab" in keys and source.vocab:
        config.setdefault(keys["vocab"], source.vocab)
    return family(family.config_class.from_dict(config, "[model] config"))


def source_of(recipe: Recipe, model: Model | None, task: str, kept: Tokenizer | None = None) -> Any:
    """The data of a recipe, with the tokenizer it names, that of the model, the one kept, or a new one."""
    data, paths = recipe.data, [Path(p) for p in recipe.data.paths]
    given = Tokenizer.open(recipe.tokenizer.path) if recipe.tokenizer.path else model.tokenizer if model else None
    if recipe.distill and given is None:
        given = resolve(recipe.distill.teacher).tokenizer
    given = given or kept
    if data.kind in ("instructions", "preferences"):
        from .training.dpo import Preferences
        from .training.instruct import Instructions

        if given is None:
            raise ConfigError(f"{data.kind} need the tokenizer of a model with a chat template")
        reader = Instructions if data.kind == "instructions" else Preferences
        return reader.read(given, _only(paths), held_out=data.held_out)
    settings: dict[str, Any] = {"held_out": data.held_out}
    if data.kind == "arrays":
        from .training.arrays import Arrays

        return Arrays.read(paths, **settings)
    if given is None:
        if size_here() > 1 and recipe.tokenizer.kind not in REPEATABLE:
            what = f"a {recipe.tokenizer.kind} tokenizer comes out differently in each of {size_here()} processes"
            raise ConfigError(what, hint="train it once and name its folder by tokenizer.path")
        settings |= {"kind": recipe.tokenizer.kind, "vocab": _vocabulary(recipe, model)}
    if data.kind == "pairs":
        from .training.pairs import Pairs

        return Pairs.read(paths, given, start=_start(model), **settings)
    if data.kind == "labelled":
        from .training.labelled import Labelled

        known = getattr(model.config, "labels", None) if model is not None and model.task == task else None
        if model is None:
            known = _configured(recipe, "labels", "id2label")
        labels = None if known is None else _names_of(known)
        return Labelled.read(paths, given, labels=labels, **settings)
    return _text(data, paths, given, task, settings)


def _text(data: DataRecipe, paths: list[Path], given: Tokenizer | None, task: str, settings: dict[str, Any]) -> Any:
    """Text files or shards, for guessing the next token or masked ones."""
    from .data import Dataset
    from .training.corpus import Corpus, placed, python_topics, read_text
    from .training.masked import Masked

    masked: dict[str, Any] = {"share": data.mask, "whole_word": data.whole_word}
    if data.kind == "shards" and task == "masked-lm":
        return Masked.open(_only(paths), given, **masked)
    if data.kind == "shards":
        return Dataset.open(_only(paths), given, documents=data.documents)
    texts = [python_topics() if p == PYTHON else read_text(p) for p in data.paths]
    if task == "masked-lm":
        with placed(data.paths):
            return Masked.of(texts, given, **masked, **settings)
    if given is None and settings.pop("kind") != "byte-bpe":
        raise ConfigError("a language model on text files gets a byte-bpe tokenizer: give tokenizer.path for another")
    with placed(data.paths):
        return Corpus.of(texts, given, **settings)


def _start(model: Model | None) -> int | None:
    """What the targets of a checkpoint begin with, if it says so."""
    if model is None or model.folder is None:
        return None
    return read_json(model.folder / "config.json").get("decoder_start_token_id")


def _vocabulary(recipe: Recipe, model: Model | None) -> int:
    """Entries of a new tokenizer."""
    if recipe.tokenizer.vocab:
        return recipe.tokenizer.vocab
    if model is None:
        given = _configured(recipe, "vocab", "vocab_size")
        if given is not None and type(given) is not int:
            raise ConfigError(f"model.config has {given!r} for vocab, expected a whole number")
        between(given or 0, 0, MOST_ENTRIES, "model.config vocab")
        return 2048 if given is None else given
    outputs = model.graph().outputs
    rows = getattr(model.config, "vocab", None) or (outputs[LOGITS].shape[-1] if LOGITS in outputs else None)
    if not isinstance(rows, int):
        raise ConfigError(f"{model.name} is a {model.task} model, which has no tokens to predict")
    return rows


def _configured(recipe: Recipe, *names: str) -> Any:
    """What [model] config gives a field, by the name it has here or in config.json."""
    return next((recipe.model.config[k] for k in names if k in recipe.model.config), None)


def _names_of(labels: Any) -> list[str]:
    """Labels in the order of their numbers, from a table like id2label. Raises ConfigError for any other value."""
    named = cast("dict[str, Any]", labels if isinstance(labels, dict) else {})
    numbers = [str(i) for i in range(len(named))]
    if not numbers or sorted(named) != sorted(numbers) or not all(isinstance(v, str) for v in named.values()):
        raise ConfigError(f"labels are {labels!r}, expected a table of names by number, from 0 on")
    return [named[k] for k in numbers]


def _only(paths: list[Path]) -> Path:
    if len(paths) != 1:
        raise ConfigError(f"data.paths names {len(paths)} places, expected one")
    return paths[0]
