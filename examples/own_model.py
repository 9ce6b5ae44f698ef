"""A model of your own in one file: its op, its task, its layers; trained, exported, built, decoded and verified.

It reads a token and four sensor readings at each step and forecasts both. python examples/own_model.py [folder]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import torch
from monograph import Value
from monograph.frontends.layers import attention
from monograph.frontends.recurrent import compacted, recurrent, spread
from monograph.ir import Op, TensorType, op
from monograph.ir.weights import Weights

CHANNELS, VOCAB = 4, 16


class SquaredRelu(Op):
    """max(x, 0) ** 2. (So et al. 2021)"""

    elementwise = True

    def infer(self, x: Value) -> TensorType:
        return x.type

    def body(self, x: Value) -> Value:
        positive = mg.ops.relu(x)
        return positive * positive

    def torch(self, torch: Any, x: Any) -> Any:
        return torch.square(torch.relu(x))

    def onnx(self, op: Any, x: Any) -> Any:
        positive = op.Relu(x)
        return op.Mul(positive, positive)


squared_relu = op(SquaredRelu)

FORECAST = mg.Task(
    "forecast",
    {"input_ids": "i64[B,S]", "attention_mask": "i64[B,S]", "readings": f"f32[B,S,{CHANNELS}]"},
    generates=True,
)


class Hybrid(mg.Config):
    dim: int = 32
    heads: int = 4
    window: int = 6
    eps: float = 1e-6


@mg.model(task=FORECAST, std=0.1)
def hybrid(m: mg.Scope, c: Hybrid, input_ids: Value, attention_mask: Value, readings: Value) -> dict[str, Value]:
    mask, options = mg.key_mask(attention_mask), {"heads": c.heads, "causal": True}
    x = m.embed("embedding", input_ids, VOCAB, c.dim) + m.linear("readings", readings, c.dim)
    x = x + gru(m / "gru", m.rms_norm("gru_norm", x, c.eps), c.dim, attention_mask)
    x = x + attention(m / "near", m.rms_norm("near_norm", x, c.eps), **options, mask=mask, window=c.window)
    bias = alibi(input_ids, c.heads, x.dtype)
    x = x + attention(m / "far", m.rms_norm("far_norm", x, c.eps), **options, mask=mask, bias=bias)
    x = x + m.linear("down", squared_relu(m.linear("up", m.rms_norm("up_norm", x, c.eps), 4 * c.dim)), c.dim)
    x = m.rms_norm("norm", x, c.eps)
    return {"logits": m.linear("head", x, VOCAB), "forecast": m.linear("forecast", x, CHANNELS, bias=True)}


def gru(m: mg.Scope, x: Value, dim: int, attention_mask: Value) -> Value:
    """A GRU that passes over padding, wherever it is."""
    order, place, lengths = compacted(attention_mask)
    y, _ = recurrent(m, "gru", spread(x, order), dim, 1, lengths)
    return spread(y, place)


def alibi(ids: Value, heads: int, dtype: mg.DType) -> Value:
    """Bias [heads,S,S] that falls with the distance, in each head at another rate. (Press et al. 2021)"""
    place = mg.ops.iota(start=0, length=ids.shape[1], dtype=dtype)
    rates = tuple(((2.0 ** (-8.0 * (i + 1) / heads),),) for i in range(heads))
    return (place - place.reshape(ids.shape[1], 1)) * mg.ops.constant(value=rates, dtype=dtype)


def batch(rows: int, length: int, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Waves of four channels, and the level of the first as a token; one step more than is read."""
    rng = np.random.default_rng(seed)
    rate, phase = rng.uniform(0.2, 0.5, (rows, 1, CHANNELS)), rng.uniform(0, 6, (rows, 1, CHANNELS))
    waves = np.sin(np.arange(length + 1)[None, :, None] * rate + phase).astype(np.float32)
    tokens = np.floor((waves[:, :, 0] + 1) / 2 * (VOCAB - 1) + 0.5).astype(np.int64)
    return {"input_ids": tokens, "readings": waves, "attention_mask": np.ones((rows, length), np.int64)}


def train(model: mg.Model, steps: int) -> list[float]:
    """Fit both forecasts with AdamW; the model gets its weights. Gives the loss of each step."""
    module, losses = mg.to_torch(model), list[float]()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for step in range(steps):
        given = {k: torch.from_numpy(v) for k, v in batch(16, 24, step).items()}
        tokens, waves = given["input_ids"], given["readings"]
        found = module(**given | {"input_ids": tokens[:, :-1], "readings": waves[:, :-1]})
        loss = torch.nn.functional.cross_entropy(found["logits"].flatten(0, 1), tokens[:, 1:].flatten())
        loss = loss + torch.nn.functional.mse_loss(found["forecast"], waves[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.weights = Weights.of({k: v.detach().numpy() for k, v in module.state_dict().items()})
    return losses


def decode(model: mg.Model, engine: Any, steps: int = 16) -> float:
    """Serve three rows of different lengths: prompts, chunks of 3 and single steps. Gives the largest difference from
    the logits of each row alone, read at once.
    """
    counts, given = np.array([9, 4, 6]), batch(3, 9 + steps, seed=999)
    tokens, waves, rows = given["input_ids"], given["readings"], np.arange(3)[:, None]
    module = mg.to_torch(model).eval()
    alone = ({k: torch.from_numpy(v[i : i + 1, : 9 + steps]) for k, v in given.items()} for i in range(3))
    wanted = [module(**one)["logits"][0].detach().numpy() for one in alone]
    found = engine.session.prefill(tokens[:, :9], counts, {"readings": waves[:, :9]})
    worst, read = 0.0, counts
    while True:
        worst = max(worst, *(float(np.abs(found[i] - wanted[i][read[i] - 1]).max()) for i in range(3)))
        size = 3 if (read - counts).max() < steps // 2 else 1
        if (read - counts).max() + size > steps:
            return worst
        columns = read[:, None] + np.arange(size)
        found = engine.session.append(tokens[rows, columns], inputs={"readings": waves[rows, columns]})
        read = read + size


def main(folder: Path, steps: int = 60) -> dict[str, float]:
    """Train, export, build, verify and decode; gives the numbers."""
    model = hybrid()
    losses = train(model, steps)
    mg.export(model, folder / "portable")
    engine = mg.build(model, folder / "built", threads=1)
    parity = mg.verify(model, engine)
    portable = mg.verify(model, folder / "portable", torch=False)
    worst = max(r.difference for r in (*parity.rows, *portable.rows))
    return {"first loss": losses[0], "last loss": losses[-1], "verify": worst, "decode": decode(model, engine)}


if __name__ == "__main__":
    for name, number in main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/own")).items():
        print(f"{name}: {number:.3g}")
