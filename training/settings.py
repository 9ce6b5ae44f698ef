"""How a training run goes: every setting with its default and its range, checked before anything is computed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..data.tables import typed_fields
from ..ir.errors import ConfigError, did_you_mean

PRECISIONS: dict[str, torch.dtype | None] = {"f32": None, "bf16": torch.bfloat16, "f16": torch.float16}
STRATEGIES = ("ddp", "fsdp")
SCHEDULES = ("cosine", "linear", "wsd", "inverse_sqrt", "constant")
COURSE = (
    "steps", "batch", "length", "accumulate", "learning_rate", "schedule", "warmup", "final", "decay", "weight_decay",
    "betas", "clip", "label_smoothing", "ema", "seed", "precision",
)  # fmt: skip
"""Settings that decide the numbers of a run: a run goes on only with the ones it was begun with."""

_MOST_TOKENS = 2**28
"""Tokens of a batch: several times as many as the largest runs take, and no more than a machine can list."""


@dataclass(frozen=True)
class Settings:
    """Settings of a run; `train` takes each of them by name.

    steps: updates, each on `batch` rows of at most `length` tokens, computed in `accumulate` parts one after another.
    learning_rate: at its peak, reached after `warmup` steps (None: a twentieth); from there `schedule` leads to
    `final` times it, for wsd over the last `decay` share of the steps. weight_decay: not on norms and biases. betas:
    of AdamW. clip: largest gradient norm (inf: any). label_smoothing: share of the target that is spread over all
    tokens, in training only. ema: decay of a running mean of the weights, which is then what is measured and kept
    (0: none). seed: of initial weights (if the model has none), order of the data and dropout.
    precision: f32, or bf16 or f16 for autocast with f32 weights (f16 with a scaled loss). device: None takes CUDA if
    there is one. compile: torch.compile. evaluate_every: steps between measurements on the held-out part (None: a
    tenth of the run). checkpoint_every: steps between checkpoints (None: at each measurement), of which the last
    `keep` stay. patience: measurements without a better held-out loss after which the run ends (0: never).
    memory: most megabytes for the activations of one part of a batch; what does not fit is computed again in the
    backward pass, which changes no number (None: all is kept).
    Of runs in several processes (see training/world.py): strategy: ddp, where each holds all weights, or fsdp, where
    they share them; tensor: how many processes share each layer. timeout: seconds they wait for each other.
    """

    steps: int
    batch: int = 16
    length: int = 128
    accumulate: int = 1
    learning_rate: float = 2e-3
    schedule: str = "cosine"
    warmup: int | None = None
    final: float = 0.1
    decay: float = 0.2
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    label_smoothing: float = 0.0
    ema: float = 0.0
    seed: int = 0
    precision: str = "f32"
    device: str | None = None
    compile: bool = False
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    keep: int = 2
    patience: int = 0
    memory: int | None = None
    strategy: str = "ddp"
    tensor: int = 1
    timeout: float = 600.0

    def __post_init__(self) -> None:
        for name, value in self.defaults().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in (
            "steps", "batch", "length", "accumulate", "learning_rate", "clip", "evaluate_every", "checkpoint_every",
            "keep", "tensor", "timeout",
        ):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected more than 0")
        if self.memory is not None and not self.memory > 0:
            raise ConfigError(f"memory is {self.memory}, expected more than 0 megabytes")
        for name in ("warmup", "weight_decay", "seed", "patience"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 0")
        for name in ("learning_rate", "weight_decay", "timeout"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a finite number")
        if not all(0 <= b < 1 for b in self.betas):
            raise ConfigError(f"betas are {list(self.betas)}, expected two from 0 to less than 1")
        for name in ("label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 0 and less than 1")
        for name in ("final", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 0 to 1")
        if self.batch * self.length > _MOST_TOKENS:
            what = f"batch {self.batch} of length {self.length} is {self.batch * self.length} tokens"
            raise ConfigError(f"{what} a step, expected at most {_MOST_TOKENS}")
        if self.batch % self.accumulate:
            raise ConfigError(f"a batch of {self.batch} rows cannot be computed in {self.accumulate} equal parts")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"no precision is called {self.precision!r}{did_you_mean(self.precision, PRECISIONS)}")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"no schedule is called {self.schedule!r}{did_you_mean(self.schedule, SCHEDULES)}")
        if self.strategy not in STRATEGIES:
            raise ConfigError(f"no strategy is called {self.strategy!r}{did_you_mean(self.strategy, STRATEGIES)}")
        _check_device(str(self.device))

    def defaults(self) -> dict[str, Any]:
        """What stands for None, where it depends on other settings or on the machine."""
        every = self.evaluate_every or max(self.steps // 10, 1)
        return {
            "warmup": self.steps // 20,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "evaluate_every": every,
            "checkpoint_every": every,
        }

    @staticmethod
    def of(given: Mapping[str, Any]) -> Settings:
        """Settings by name. Raises ConfigError for a name there is not, a value of another type or out of its range."""
        known = {f.name for f in dataclasses.fields(Settings)}
        for name in given:
            if name not in known:
                meant = did_you_mean(name, known)
                hint = "" if meant else f"the settings are {', '.join(sorted(known))}"
                raise ConfigError(f"no setting is called {name!r}{meant}", hint=hint)
        if "steps" not in given:
            raise ConfigError("steps is missing: how many updates")
        return Settings(**typed_fields(Settings, given))

    @property
    def on(self) -> str:
        """The device."""
        assert self.device is not None
        return self.device

    @property
    def kind(self) -> str:
        """The kind of device: cpu or cuda."""
        return self.on.partition(":")[0]

    @property
    def between_measurements(self) -> int:
        assert self.evaluate_every is not None
        return self.evaluate_every

    @property
    def between_checkpoints(self) -> int:
        assert self.checkpoint_every is not None
        return self.checkpoint_every

    def course(self) -> dict[str, Any]:
        """What must stay the same for a run to go on to the same numbers, as JSON values."""
        values: dict[str, Any] = {name: getattr(self, name) for name in COURSE}
        return {**values, "betas": list(self.betas)}


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"no device is called {name!r}", hint="cpu, cuda, cuda:1, ...") from None
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= count and device.type == "cuda":
        raise ConfigError(f"device is {name!r}, but PyTorch finds {count} CUDA devices")
