"""What each process does in tests of distributed training; every function runs on all of them alike."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monograph.backends.torch import to_inputs
from monograph.data import Dataset
from monograph.data.batch import Batch
from monograph.frontends.dsl import Model, load_family
from monograph.frontends.task import MASKED_LM
from monograph.ir.errors import MonographError
from monograph.ir.weights import Weights
from monograph.training import sharded
from monograph.training.adapters import Lora
from monograph.training.corpus import Corpus
from monograph.training.dpo import Preferences
from monograph.training.errors import TrainingError
from monograph.training.finetune import distill, dpo, finetune
from monograph.training.layout import Layout, local
from monograph.training.learner import Learner
from monograph.training.loop import Run, train
from monograph.training.loss import with_loss
from monograph.training.objective import LabelLoss
from monograph.training.progress import Step
from monograph.training.settings import Settings
from monograph.training.world import World
from ranks import Die

TEXT = "".join(
    f"Line {i}: the cat {'sat' if i % 3 else 'lay'} on mat {i % 7}, and all was well.\n\n" for i in range(120)
)
SIZES: dict[str, dict[str, Any]] = {
    "llama": {"vocab": 300, "dim": 32, "ffn": 64, "layers": 2, "heads": 4, "kv_heads": 2, "tied": True},
    "gpt2": {"vocab": 300, "dim": 32, "layers": 2, "heads": 4, "max_positions": 32},
    "bert": {"vocab": 300, "dim": 32, "ffn": 64, "layers": 2, "heads": 4, "max_positions": 32, "dropout": 0.0},
    "transformer2017": {"vocab": 300, "dim": 32, "ffn": 64, "heads": 4, "dropout": 0.0},
}
SETTINGS: dict[str, Any] = {"batch": 8, "length": 16, "progress": False, "device": "cpu", "evaluate_every": 10}


LORA = Lora(rank=2)


def tiny(family: str = "llama", **changes: Any) -> Model:
    return load_family(family)(**{**SIZES[family], **changes})


def run(family: str = "llama", steps: int = 20, **settings: Any) -> dict[str, Any]:
    """Train; runs on every process."""
    history: list[Step] = []
    config = settings.pop("config", {})
    corpus = Corpus.of(TEXT, vocab=300)
    model = train(tiny(family, **config), corpus, steps=steps, observe=history.append, **{**SETTINGS, **settings})
    assert model.weights is not None
    return {
        "steps": [s.step for s in history],
        "losses": [s.loss for s in history],
        "norms": [s.gradient_norm for s in history],
        "held_out": [s.held_out for s in history if s.held_out is not None],
        "weights": {k: t.numpy().copy() for k, t in model.weights.items()},
    }


class Masked(Corpus):
    """The same rows for a task of which the share of right answers is measured."""

    task = "masked-lm"


def measured(**settings: Any) -> list[dict[str, float]]:
    family = dataclasses.replace(load_family("llama"), task=MASKED_LM)
    corpus, found = Corpus.of(TEXT, vocab=300), list[dict[str, float]]()
    source = Masked(**{f.name: getattr(corpus, f.name) for f in dataclasses.fields(corpus)})

    def observe(step: Step) -> None:
        if step.metrics is not None:
            found.append(dict(step.metrics))

    def size(model: Model) -> dict[str, float]:
        assert model.weights is not None
        return {"sum": sum(float(np.abs(t.numpy()).sum()) for t in model.weights.values())}

    settings = {**SETTINGS, "evaluate_every": 5, "learning_rate": 0.02, **settings}
    train(family(**SIZES["llama"]), source, steps=10, observe=observe, metrics=size, **settings)
    return found


def distilled(**settings: Any) -> list[float]:
    """Fine-tuning with a loss outside the graph: the student's logits against a teacher's."""
    losses: list[float] = []
    teacher = tiny(layers=1)
    teacher.weights = Weights.initialize(teacher.graph(), 7)
    given = {**SETTINGS, "steps": 6, "learning_rate": 0.01, **settings}
    distill(tiny(), teacher, Corpus.of(TEXT, vocab=300), observe=lambda s: losses.append(s.loss), **given)
    return losses


def gradients(family: str, **settings: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Loss and whole gradients of one fixed batch."""
    world = World.of(Settings(steps=1, device="cpu", **settings))
    graph = with_loss(tiny(family).graph()) if family != "bert" else tiny(family).graph()
    layout = Layout(world, graph)
    weights = Weights.initialize(graph, 1)
    module = layout.shard(layout.build(graph, weights))
    loss = objective(module(**given(graph)))
    loss.backward()
    named = {k: p.grad for k, p in module.named_parameters() if p.grad is not None}
    return {"loss": loss.detach().numpy(), **{k: layout.whole(k, g) for k, g in named.items()}}


def objective(outputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return outputs["loss"] if "loss" in outputs else sum(x.square().mean() for x in outputs.values())  # type: ignore


def given(graph: Any) -> dict[str, torch.Tensor]:
    generator = np.random.default_rng(0)
    arrays = {k: generator.integers(0, 300, (4, 7)) for k in graph.inputs}
    for k in arrays:
        if k.endswith("mask"):
            arrays[k] = np.array([[1] * 7, [1] * 5 + [0] * 2] * 2)
        elif k.endswith("position_ids"):
            arrays[k] = np.broadcast_to(np.arange(7), (4, 7)).copy()
        elif k == "token_type_ids":
            arrays[k] %= 2
    return to_inputs(arrays)


def held(**settings: Any) -> tuple[int, int, int]:
    """(elements of weights, of the moments, of both moments together in the layer norms) on this process."""
    run = Run(tiny(), Corpus.of(TEXT, vocab=300), Settings(steps=1, batch=8, length=16, device="cpu", **settings), None)
    for _ in run:
        pass
    named = dict(run.learner.module.named_parameters())
    moments = {k: local(run.learner.optimizer.state[p]["exp_avg"]).numel() for k, p in named.items()}
    weights = {k: local(p).numel() for k, p in named.items()}
    return sum(weights.values()), sum(moments.values()), sum(n for k, n in weights.items() if "norm" in k)


class Recording(LabelLoss):
    """Notes what goes through the module on this process."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[np.ndarray[Any, Any]]] = {}

    def loss(self, learner: Learner, batch: Batch) -> torch.Tensor:
        rows = [
            np.stack([batch[k][i] for k in ("input_ids", "labels", "document_ids")])
            for i in range(len(batch["labels"]))
        ]
        self.seen.setdefault("train" if learner.module.training else "held_out", []).extend(rows)
        return super().loss(learner, batch)


def dealt(folder: Path, **settings: Any) -> tuple[dict[str, Any], list[float], list[float]]:
    data = Dataset.open(folder)
    settings = {"steps": 3, "batch": 8, "length": 32, "device": "cpu", "evaluate_every": 3, **settings}
    recording = Recording()
    steps = list(Run(tiny(vocab=data.vocab), data, Settings(**settings), objective=recording))
    return recording.seen, [s.loss for s in steps], [s.held_out for s in steps if s.held_out is not None]


def interrupted(at: int, **settings: Any) -> str:
    """A run in which a signal reaches one process only, the last one, after step `at`."""
    last = int(os.environ.get("RANK_OF_JOB", "0")) == int(os.environ.get("SIZE_OF_JOB", "1")) - 1

    def observe(step: Step) -> None:
        if step.step == at and last:
            signal.raise_signal(signal.SIGTERM)

    try:
        train_once(observe=observe, **settings)
    except TrainingError as e:
        return str(e)
    return "it went on"


def train_once(family: str = "llama", **settings: Any) -> Model:
    config = settings.pop("config", {})
    return train(tiny(family, **config), Corpus.of(TEXT, vocab=300), **{"steps": 20, **SETTINGS, **settings})


def full(**settings: Any) -> Any:
    """The disk of the last process is full when the second checkpoint is written."""
    written = sharded._Writer.write_data

    def write(self: Any, plan: Any, planner: Any) -> Any:
        if torch.distributed.get_rank() == 1 and Path(self.path).parent.name.startswith(".step-00000020"):
            raise OSError(28, "No space left on device")
        return written(self, plan, planner)

    sharded._Writer.write_data = write
    try:
        return train_once(**settings)
    finally:
        sharded._Writer.write_data = written


class Broken(Corpus):
    """A corpus of which one process does not live to read step 5."""

    def batches(self, batch: int, length: int, seed: int = 0, start: int = 0) -> Iterator[Batch]:
        for i, found in enumerate(super().batches(batch, length, seed, start)):
            if i == 4 and torch.distributed.get_rank() == 1:
                raise Die
            yield found


def broken(**settings: Any) -> Any:
    corpus = Corpus.of(TEXT, vocab=300)
    source = Broken(**{f.name: getattr(corpus, f.name) for f in dataclasses.fields(corpus)})
    return train(tiny(), source, steps=20, **{**SETTINGS, "checkpoint_every": 2, **settings})


def grouped(ports: list[int]) -> list[Any]:
    """Runs that make their process group themselves, as under torchrun: what came of each, and whether it is left."""
    torch.distributed.destroy_process_group()
    model, corpus = tiny(), Corpus.of(TEXT, vocab=300)
    model.weights = Weights.initialize(model.graph(), 5)
    rows = [{"prompt": "Line 1: the cat", "chosen": " sat on mat 1", "rejected": " lay on mat 2"}] * 8
    starts = [
        lambda: train_once(tensor=2, config={"heads": 4, "kv_heads": 1}),
        lambda: dpo(model, Preferences.of(corpus.tokenizer, rows), lora=LORA, strategy="fsdp", steps=1, **SETTINGS),
        lambda: distill(tiny(), tiny(), corpus, steps=1, **SETTINGS),
        lambda: run()["losses"],
    ]
    found: list[Any] = []
    given = {"RANK": os.environ["RANK_OF_JOB"], "WORLD_SIZE": os.environ["SIZE_OF_JOB"], "MASTER_ADDR": "127.0.0.1"}
    for start, port in zip(starts, ports, strict=True):
        os.environ |= {**given, "MASTER_PORT": str(port)}
        try:
            found.append(start())
        except MonographError as e:
            found.append(f"{type(e).__name__}: {e}")
        finally:
            for name in (*given, "MASTER_PORT"):
                del os.environ[name]
        found.append(torch.distributed.is_initialized())
    return found


def adapted(stop: int = 0, lora: Lora = LORA, **settings: Any) -> dict[str, Any] | str:
    """Train an adapter, or until a signal reaches all after step `stop`."""
    model = tiny()
    model.weights = Weights.initialize(model.graph(), 5)
    losses: dict[int, float] = {}

    def observe(step: Step) -> None:
        losses[step.step] = step.loss
        if step.step == stop:
            signal.raise_signal(signal.SIGTERM)

    given = {**SETTINGS, "steps": 8, "learning_rate": 0.01, "evaluate_every": 4, **settings}
    try:
        tuned = finetune(model, Corpus.of(TEXT, vocab=300), lora=lora, observe=observe, **given)
    except TrainingError as e:
        return str(e)
    assert tuned.adapter is not None
    return {"losses": losses, "adapter": {k: t.numpy().copy() for k, t in tuned.adapter.weights.items()}}
