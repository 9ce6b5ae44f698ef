"""Doing what a recipe says: model, data, run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .frontends.dsl import Model, load_family
from .frontends.tokenizer import Tokenizer, read_json
from .ir.errors import ConfigError
from .resolve import resolve
from .scores import check_scores, scores
from .training import finetune as tuning
from .training.adapters import Lora
from .training.finetune import Tuned
from .training.loop import train
from .training.progress import Step
from .training.recipe import PYTHON, Recipe, targets_of
from .training.source import Source


@dataclass(frozen=True)
class Trained:
    """What a run gave. seconds: of the whole run, data and measurements included; steps: that were done now."""

    model: Model
    source: Any
    steps: list[Step]
    seconds: float
    length: int
    metrics: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def sizes(self) -> dict[str, int]:
        """How much data there was: tokens, or what else the source counts."""
        if hasattr(self.source, "sizes"):
            return self.source.sizes(self.length)
        part = getattr(self.source, "train", None)
        tokens = {} if part is None else {"train_tokens": getattr(part, "tokens", len(part))}
        return {**tokens, "held_out_tokens": len(self.source.held_out)}

    def lines(self) -> list[str]:
        return [f"{name}: {value:.2f}" for name, value in self.metrics.items()]


def follow(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
    observe: Callable[[Step], None] = lambda step: None,
) -> Trained:
    """Train as a recipe says into `folder`, which also gets the recipe with every default. Raises as `train` does."""
    begin = time.perf_counter()
    if resume:
        recipe.check_same(folder)
    model = resolve(recipe.model.path) if recipe.model.path else None
    if recipe.metrics.translate:
        check_scores()
    source = source_of(recipe, model)
    model = model or new_model(recipe, source)
    history: list[Step] = []

    def note(step: Step) -> None:
        if not history:
            recipe.save(folder)
        history.append(step)
        observe(step)

    settings: dict[str, Any] = {f.name: getattr(recipe.train, f.name) for f in dataclasses.fields(recipe.train)}
    shown = {"folder": folder, "resume": resume, "progress": progress, "tensorboard": tensorboard, "observe": note}
    trained = _run(recipe, model, source, {**settings, **shown})
    count, length = recipe.metrics.translate, recipe.train.length
    metrics = scores(trained.model, source.references[:count], folder, length) if count else {}
    return Trained(trained.model, source, history, time.perf_counter() - begin, length, metrics)


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


def new_model(recipe: Recipe, source: Source) -> Model:
    """A model of the recipe's family without weights, for the tokenizer (and the labels) of the data."""
    family = load_family(recipe.model.family)
    # Fields go by their names in the family's Config or by their keys in config.json.
    keys = {f.name: f.metadata.get("hf", f.name) for f in dataclasses.fields(family.config_class)}
    given = {keys.get(k, k): v for k, v in recipe.model.config.items()}
    if "vocab" in keys:
        given.setdefault(keys["vocab"], source.vocab)
    return family(family.config_class.from_dict(given, "[model] config"))


def source_of(recipe: Recipe, model: Model | None) -> Any:
    """The data of a recipe, with the tokenizer it names, that of the model, or a new one."""
    data, paths = recipe.data, [Path(p) for p in recipe.data.paths]
    given = Tokenizer.open(recipe.tokenizer.path) if recipe.tokenizer.path else model.tokenizer if model else None
    if recipe.distill and given is None:
        given = resolve(recipe.distill.teacher).tokenizer
    if data.kind == "shards":
        from .training.data import Dataset

        return Dataset.open(_only(paths), documents=data.documents)
    if data.kind in ("instructions", "preferences"):
        from .training.dpo import Preferences
        from .training.instruct import Instructions

        if given is None:
            raise ConfigError(f"{data.kind} need the tokenizer of a model with a chat template")
        reader = Instructions if data.kind == "instructions" else Preferences
        return reader.read(given, _only(paths), held_out=data.held_out)
    if data.kind == "pairs":
        from .training.pairs import Pairs

        vocab, start = _vocabulary(recipe, model), None
        if model is not None and model.folder is not None:
            start = read_json(model.folder / "config.json").get("decoder_start_token_id")
        return Pairs.read(
            paths, given, kind=recipe.tokenizer.kind, vocab=vocab, held_out=data.held_out, start=start
        )  # fmt: skip
    if data.kind == "text":
        from .training.corpus import Corpus, python_topics, read_text

        texts = [python_topics() if p == PYTHON else read_text(p) for p in data.paths]
        return Corpus.of(texts, given, vocab=_vocabulary(recipe, model), held_out=data.held_out)
    raise ConfigError(f"data.kind {data.kind!r} is not there yet")


def _vocabulary(recipe: Recipe, model: Model | None) -> int:
    """Entries of a new tokenizer."""
    if recipe.tokenizer.vocab:
        return recipe.tokenizer.vocab
    if model is None:
        return int(recipe.model.config.get("vocab", 2048))
    rows = model.graph().outputs["logits"].shape[-1] if "logits" in model.graph().outputs else None
    if not isinstance(rows, int):
        raise ConfigError(f"{model.family.name} is a {model.task} model, which has no tokens to predict")
    return rows


def _only(paths: list[Path]) -> Path:
    if len(paths) != 1:
        raise ConfigError(f"data.paths names {len(paths)} places, expected one")
    return paths[0]
