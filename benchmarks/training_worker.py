"""One contender of training_speed.py in a process of its own: training_worker.py WHO FAMILY LOAD MODE THREADS.

MODE is eager or compiled. Reads lines from stdin: `steps N` does N steps and answers with a line of JSON: their losses
and seconds, and the peak of resident memory meanwhile. All contenders start from the same weights and read the same
batches.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monograph.backends.torch import to_inputs
from monograph.frontends.dsl import Model, load_family
from monograph.ir.weights import Weights
from monograph.machine import peak_memory, resident_memory
from monograph.training.corpus import Corpus
from monograph.training.loop import Run
from monograph.training.settings import Settings
from report import WORK

GPT2 = {"embedding_dropout": 0.0, "dropout": 0.0, "max_positions": 256}
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "10M": {
        "gpt2": {"vocab": 8192, "dim": 320, "layers": 6, "heads": 5, **GPT2},
        "llama": {"vocab": 8192, "dim": 320, "ffn": 864, "layers": 6, "heads": 5, "tied": True},
    },
    "135M": {
        "gpt2": {"vocab": 49152, "dim": 768, "layers": 14, "heads": 12, **GPT2},
        "llama": {"vocab": 49152, "dim": 576, "ffn": 1536, "layers": 30, "heads": 9, "kv_heads": 3, "tied": True},
    },
}
"""Settings of the families; 135M: GPT-2's width with 14 layers, and the shape of SmolLM2."""


@dataclass(frozen=True)
class Load:
    """A size and the tokens of a step. rounds: steps that are measured, eager and compiled."""

    size: str
    batch: int
    length: int
    rounds: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.size}, {self.batch} x {self.length}"


LOADS = {
    "10M": Load("10M", 8, 256, (98, 19)),
    "135M-short": Load("135M", 1, 128, (98, 19)),
    "135M": Load("135M", 8, 256, (4, 3)),
}
"""What is measured: the larger models once with the same batch, and for losses over many steps with a short one."""
RATE, STEPS, WARMUP = 3e-4, 1000, 100
CORPUS = WORK / "training-corpus"

Step = Callable[[dict[str, torch.Tensor]], float]


def settings(load: Load, compiled: bool) -> Settings:
    return Settings(
        steps=STEPS, batch=load.batch, length=load.length, learning_rate=RATE, schedule="constant", warmup=WARMUP,
        compile=compiled, device="cpu",
    )  # fmt: skip


def rate(step: int) -> float:
    """It rises in a straight line over the first steps, as in nanoGPT; step counts from 0."""
    return RATE * min(1.0, (step + 1) / WARMUP)


def model_of(family: str, size: str) -> Model:
    made = load_family(family)(**SIZES[size][family])
    made.weights = Weights.initialize(made.graph(), 0)
    return made


def monograph(family: str, load: Load, compiled: bool) -> Callable[[dict[str, Any]], float]:
    """The training loop's own step."""
    run = Run(model_of(family, load.size), Corpus.open(CORPUS), settings(load, compiled), None)

    def step(batch: dict[str, Any]) -> float:
        loss, _ = run.step(batch, rate(run.done))
        run.done += 1
        return loss

    return step


def plain(family: str, load: Load, compiled: bool) -> Callable[[dict[str, Any]], float]:
    from plain_gpt2 import PlainGPT2

    c = SIZES[load.size][family]
    module = PlainGPT2(c["vocab"], c["dim"], c["heads"], c["layers"], c["max_positions"])
    module.load(tensors(model_of(family, load.size)))
    return by_hand(module, load, compiled, lambda forward, given: forward(given["input_ids"], given["labels"]))


def transformers(family: str, load: Load, compiled: bool) -> Callable[[dict[str, Any]], float]:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = model_of(family, load.size)
    assert model.config is not None
    config = AutoConfig.for_model(family, **{**model.config.to_dict(), "attn_pdrop": 0.0})
    module = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    missing, unexpected = module.load_state_dict(tensors(model), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    module.tie_weights()

    def loss(forward: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
        # The labels are shifted already; without a cache nothing else differs.
        labels = given["labels"]
        return forward(input_ids=given["input_ids"], labels=labels, shift_labels=labels, use_cache=False).loss

    return by_hand(module, load, compiled, loss)


def tensors(model: Model) -> dict[str, torch.Tensor]:
    assert model.weights is not None
    return {k: torch.from_numpy(t.numpy().copy()) for k, t in model.weights.items()}


def by_hand(
    module: Any, load: Load, compiled: bool, loss_of: Callable[..., torch.Tensor]
) -> Callable[[dict[str, Any]], float]:
    """A step as people write it: AdamW (fused), decay on matrices, gradients clipped to norm 1."""
    s, done = settings(load, compiled), itertools.count()
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    rest = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": s.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, RATE, s.betas, fused=True)
    forward = torch.compile(module) if compiled else module
    module.train()

    def step(batch: dict[str, Any]) -> float:
        now = rate(next(done))
        for group in optimizer.param_groups:
            group["lr"] = now
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(forward, to_inputs({k: batch[k] for k in ("input_ids", "labels")}))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), s.clip)
        optimizer.step()
        return loss.item()

    return step


def measured(step: Callable[[dict[str, Any]], float], batches: Iterator[dict[str, Any]], count: int) -> dict[str, Any]:
    """`count` steps; the kernel's high-water mark of memory is set back before them."""
    Path("/proc/self/clear_refs").write_text("5")
    losses, seconds = [], []
    for batch in itertools.islice(batches, count):
        start = time.perf_counter()
        losses.append(step(batch))
        seconds.append(time.perf_counter() - start)
    return {"losses": losses, "seconds": seconds, "peak": peak_memory()}


MAKERS = {"plain PyTorch": plain, "transformers": transformers, "Monograph": monograph}


def load_libraries(who: str, family: str) -> None:
    """What every contender imports sooner or later, so that it does not count as memory of the run."""
    if who == "transformers":
        importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    tiny = torch.nn.Linear(2, 2)
    tiny(torch.zeros(1, 2)).sum().backward()
    torch.optim.AdamW(tiny.parameters(), fused=True).step()


def main() -> None:
    who, family, name, mode = sys.argv[1:5]
    load = LOADS[name]
    torch.set_num_threads(int(sys.argv[5]))
    load_libraries(who, family)
    maker = MAKERS[who]
    before = resident_memory()
    step = maker(family, load, mode == "compiled")
    batches = Corpus.open(CORPUS).batches(load.batch, load.length)
    print(json.dumps({"before": before}), flush=True)
    for line in sys.stdin:
        print(json.dumps(measured(step, batches, int(line.split()[1]))), flush=True)


if __name__ == "__main__":
    main()
