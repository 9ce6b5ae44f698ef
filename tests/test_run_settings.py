"""Settings of a run: every name, type and range, and what stands for None."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from monograph.ir.errors import ConfigError
from monograph.training.settings import COURSE, Settings

pytestmark = pytest.mark.slow

POSITIVE = (
    "steps", "batch", "length", "accumulate", "learning_rate", "clip", "evaluate_every", "checkpoint_every", "keep",
    "tensor", "timeout",
)  # fmt: skip
NATURAL = ("warmup", "weight_decay", "seed", "patience")
FLOATS = ("learning_rate", "clip", "weight_decay", "label_smoothing", "ema", "final", "decay", "timeout")
NAN, INF = float("nan"), float("inf")

OUT_OF_RANGE: list[tuple[dict[str, Any], str]] = [
    *(({name: 0}, f"{name} is 0(.0)?, expected more than 0") for name in POSITIVE),
    *(({name: -1}, f"{name} is -1(.0)?, expected more than 0") for name in POSITIVE),
    *(({name: -1}, f"{name} is -1(.0)?, expected at least 0") for name in NATURAL),
    *(({name: 1.0}, f"{name} is 1.0, expected at least 0 and less than 1") for name in ("label_smoothing", "ema")),
    *(({name: -0.1}, f"{name} is -0.1, expected at least 0 and less") for name in ("label_smoothing", "ema")),
    *(({name: 1.1}, f"{name} is 1.1, expected 0 to 1") for name in ("final", "decay")),
    *(({name: -0.1}, f"{name} is -0.1, expected 0 to 1") for name in ("final", "decay")),
    *(({name: NAN}, f"{name} is nan, expected") for name in FLOATS),
    *(({name: INF}, f"{name} is inf, expected") for name in FLOATS if name != "clip"),
    ({"betas": (0.9, 1.0)}, r"betas are \[0.9, 1.0\], expected two from 0 to less than 1"),
    ({"betas": (-0.1, 0.9)}, "betas are"),
    ({"accumulate": 3}, "a batch of 16 rows cannot be computed in 3 equal parts"),
    ({"accumulate": 32}, "a batch of 16 rows cannot be computed in 32 equal parts"),
    ({"precision": "fp16"}, "no precision is called 'fp16', did you mean 'f16'"),
    ({"schedule": "linaer"}, "no schedule is called 'linaer', did you mean 'linear'"),
    ({"strategy": "fdsp"}, "no strategy is called 'fdsp', did you mean 'fsdp'"),
    ({"memory": 0}, "memory is 0, expected more than 0 megabytes"),
    ({"device": "gpu"}, "no device is called 'gpu'"),
]


@pytest.mark.parametrize(
    ("change", "message"), OUT_OF_RANGE, ids=lambda x: json.dumps(x) if isinstance(x, dict) else ""
)
def test_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        Settings.of({"steps": 10, **change})


@pytest.mark.parametrize("field", dataclasses.fields(Settings), ids=lambda f: f.name)
def test_wrong_types_and_misspelt_names(field: dataclasses.Field[Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{field.name} is .*, expected (a|true) "):
        Settings.of({"steps": 10, field.name: {"a": 1}})
    if str(field.type) in ("int", "int | None"):
        for wrong in (2.0, True, "2"):
            with pytest.raises(ConfigError, match=f"^{field.name} is {wrong!r}, expected a whole number"):
                Settings.of({"steps": 10, field.name: wrong})
    elif str(field.type) == "float":
        with pytest.raises(ConfigError, match=f"^{field.name} is '0.5', expected a number"):
            Settings.of({"steps": 10, field.name: "0.5"})
    if not str(field.type).endswith("None"):
        with pytest.raises(ConfigError, match=f"^{field.name} is None, expected"):
            Settings.of({"steps": 10, field.name: None})
    wrong = field.name[:-1] + "x"
    with pytest.raises(ConfigError, match=f"^no setting is called '{wrong}', did you mean '{field.name}'"):
        Settings.of({"steps": 10, wrong: 1})


def test_betas_are_two_numbers() -> None:
    for wrong in ((0.9,), (0.9, 0.95, 0.99), 0.9):
        with pytest.raises(ConfigError, match=f"^betas is {re.escape(repr(wrong))}, expected a list of 2"):
            Settings.of({"steps": 10, "betas": wrong})
    with pytest.raises(ConfigError, match=r"^betas\[1\] is 'x', expected a number"):
        Settings.of({"steps": 10, "betas": (0.9, "x")})


def test_steps_must_be_given() -> None:
    with pytest.raises(ConfigError, match=r"^steps is missing: how many updates"):
        Settings.of({"batch": 4})


def test_what_stands_for_none() -> None:
    s = Settings.of({"steps": 400})
    assert (s.warmup, s.evaluate_every, s.checkpoint_every) == (20, 40, 40)
    assert s.device == ("cuda" if torch.cuda.is_available() else "cpu")
    s = Settings.of({"steps": 400, "evaluate_every": 7, "warmup": 0, "device": "cpu"})
    assert (s.warmup, s.evaluate_every, s.checkpoint_every, s.kind) == (0, 7, 7, "cpu")
    assert Settings.of({"steps": 3}).evaluate_every == 1, "a tenth of less than ten"
    assert Settings.of({"steps": 3, "checkpoint_every": 2}).checkpoint_every == 2
    assert Settings.of({"steps": 3, "clip": INF}).clip == INF, "no clipping"


def test_numbers_of_numpy_become_plain_ones() -> None:
    s = Settings.of({"steps": np.int64(7), "learning_rate": np.float32(0.5), "seed": np.uint8(3), "ema": 0})
    assert [type(x) for x in (s.steps, s.learning_rate, s.seed, s.ema)] == [int, float, int, float]
    assert json.loads(json.dumps(s.course())) == s.course(), "what a checkpoint notes is what it reads"
    assert set(s.course()) == set(COURSE) <= {f.name for f in dataclasses.fields(Settings)}


def test_a_device_that_is_not_there() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(ConfigError, match=f"^device is 'cuda:{count}', but PyTorch finds {count} CUDA devices"):
        Settings.of({"steps": 1, "device": f"cuda:{count}"})


@pytest.mark.parametrize(("batch", "length"), [(10**20, 128), (2**31, 1), (16, 2**60), (2**20, 2**10)])
def test_a_batch_that_no_machine_holds(batch: int, length: int) -> None:
    with pytest.raises(ConfigError, match="tokens a step, expected at most"):
        Settings(steps=1, batch=batch, length=length)
