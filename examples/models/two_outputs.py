"""Two outputs and a loss of their own: from sensor readings, what comes next and whether something is wrong.

python examples/models/two_outputs.py data.npz        # made-up readings to train on
monograph train recipe.toml run                       # [model] path = "two_outputs.py", [data] kind = "arrays"
monograph build run built && monograph run built --input readings=readings.npy
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
from monograph import Value, ops
from monograph.frontends.layers import attention

# Names and types of everything the task speaks of. What only the loss reads is no input of the served model.
WATCH = mg.Task(
    "watch",
    {"readings": "f32[B,steps,channels]", "next_readings": "f32[B,steps,channels]", "alarm": "f32[B]"},
    output="forecast",
)


class Watch(mg.Config):
    steps: int = 12
    channels: int = 3
    dim: int = 32
    heads: int = 4
    layers: int = 2


def loss(found: dict[str, Value], next_readings: Value, alarm: Value) -> Value:
    """Of each row the squared error of the forecast, and log(1 + exp(-z)) of the alarm, where z has the sign of what is
    right (binary cross-entropy). Training makes the mean over the rows small.
    """
    gap, right = found["forecast"] - next_readings, alarm * 2.0 - 1.0
    squared = ops.mean((gap * gap).reshape(gap.shape[0], -1), axis=-1, keepdims=False)
    return squared + ops.log(ops.exp(-(found["alarm_score"] * right)) + 1.0)


@mg.model(task=WATCH, loss=loss, std=0.1)
def watch(m: mg.Scope, c: Watch, readings: Value) -> dict[str, Value]:
    batch = readings.shape[0]
    x = m.linear("read", readings, c.dim, bias=True) + m.param("place", c.steps, c.dim)
    for b in m.layers("layers", c.layers):
        x = x + attention(b / "attention", b.rms_norm("norm1", x, 1e-6), heads=c.heads, causal=True)
        x = x + b.linear("down", ops.gelu(b.linear("up", b.rms_norm("norm2", x, 1e-6), 4 * c.dim)), c.dim)
    x = m.rms_norm("norm", x, 1e-6)
    score = m.linear("alarm", ops.mean(x, axis=1, keepdims=False), 1, bias=True).reshape(batch)
    return {"forecast": m.linear("forecast", x, c.channels, bias=True), "alarm_score": score}


def made_up(rows: int, seed: int = 0, c: Watch | None = None) -> dict[str, np.ndarray[Any, Any]]:
    """Waves of several channels; in half of the rows one of them breaks off."""
    c, rng = c or Watch(), np.random.default_rng(seed)
    rate, phase = rng.uniform(0.2, 0.5, (rows, 1, c.channels)), rng.uniform(0, 6, (rows, 1, c.channels))
    waves = np.sin(np.arange(c.steps + 1)[None, :, None] * rate + phase).astype(np.float32)
    alarm = rng.random(rows) < 0.5
    waves[alarm, c.steps // 2 :, 0] = 0
    return {"readings": waves[:, :-1], "next_readings": waves[:, 1:], "alarm": alarm.astype(np.float32)}


if __name__ == "__main__":
    np.savez(Path(sys.argv[1] if len(sys.argv) > 1 else "data.npz"), **made_up(512))  # pyright: ignore[reportArgumentType]
