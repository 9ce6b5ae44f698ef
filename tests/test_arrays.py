"""Training on arrays under the names of inputs, with a loss of one's own or with labels; arrays in and out of `run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import pytest
import torch
from command_line import call
from monograph import Value, ops
from monograph.data.errors import CorpusError
from monograph.ir.errors import ConfigError
from monograph.training.learner import Learner
from monograph.training.loop import Run
from monograph.training.settings import Settings

pytestmark = pytest.mark.slow

SENSE = mg.Task(
    "sense", {"x": "f32[B,steps,3]", "extra": "f32[B,2]", "y": "f32[B,steps]", "kind": "i64[B]"}, output="guess"
)
SETTINGS: dict[str, Any] = {"batch": 4, "progress": False, "device": "cpu", "learning_rate": 1e-2}


class Sense(mg.Config):
    steps: int = 5
    dim: int = 8


def loss(found: dict[str, Value], y: Value, kind: Value) -> Value:
    gap = found["guess"] - y
    squared = ops.mean((gap * gap).reshape(-1), axis=-1, keepdims=False)
    return squared + ops.cross_entropy(found["kinds"], kind)


def network(m: mg.Scope, c: Sense, x: Value, extra: Value) -> dict[str, Value]:
    h = m.linear("read", x, c.dim, bias=True) + m.linear("extra", extra, c.dim).reshape(x.shape[0], 1, c.dim)
    q, k, v = (m.linear(name, h, c.dim).split_heads(2) for name in "qkv")
    h = h + ops.attention(q, k, v).merge_heads()
    guess = m.linear("guess", h, 1).reshape(x.shape[0], c.steps)
    return {"guess": guess, "kinds": m.linear("kinds", ops.mean(h, axis=1, keepdims=False), 3)}


sense = mg.model(task=SENSE, loss=loss, std=0.3, name="sense")(network)


def rows(count: int = 12, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 5, 3))
    return {
        "x": x,
        "extra": rng.standard_normal((count, 2)).astype(np.float32),
        "y": x.sum(-1),
        "kind": rng.integers(0, 3, count),
    }


def test_the_loss_and_its_gradient_are_those_of_torch() -> None:
    data = mg.Arrays.of(rows(), held_out=0.0)
    model = mg.init(sense)
    run = Run(model, data, Settings.of({"steps": 1, "batch": 12, "device": "cpu"}))
    learner: Learner = run.learner
    batch = run.source.held_out_batches(1, 1) and next(run.source.batches(12, 1))
    run.objective.loss(learner, batch).backward()
    module = mg.to_torch(model)
    given = {k: torch.from_numpy(v) for k, v in batch.items()}
    found = module(x=given["x"], extra=given["extra"])
    expected = torch.nn.functional.mse_loss(found["guess"], given["y"])
    expected = expected + torch.nn.functional.cross_entropy(found["kinds"], given["kind"])
    expected.backward()
    for name, parameter in module.named_parameters():
        mine = learner.module.get_parameter(name).grad
        assert torch.allclose(mine, parameter.grad, atol=1e-6), name


def test_training_makes_it_small_and_the_served_model_takes_no_targets(tmp_path: Path) -> None:
    steps: list[Any] = []
    data = mg.Arrays.of(rows(40), held_out=0.1)
    model = mg.train(sense(), data, steps=30, accumulate=2, folder=tmp_path / "run", observe=steps.append, **SETTINGS)
    assert sum(s.loss for s in steps[-5:]) < 0.8 * sum(s.loss for s in steps[:5])
    assert steps[-1].unit == "rows"
    assert steps[-1].metrics == {}
    assert set(model.graph().inputs) == {"x", "extra"}
    with mg.build(model) as engine:
        assert mg.verify(model, engine).passed
        found = engine.run({"x": rows()["x"].astype(np.float32), "extra": rows()["extra"]})
    assert {k: v.shape for k, v in found.items()} == {"guess": (12, 5), "kinds": (12, 3)}
    again = mg.load(tmp_path / "run", family=sense)
    assert (again.weights is not None) and (model.weights is not None)
    assert (again.weights.numpy("guess.weight") == model.weights.numpy("guess.weight")).all()


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    data, settings = mg.Arrays.of(rows(40)), {**SETTINGS, "checkpoint_every": 2, "schedule": "constant"}
    whole = mg.train(sense(), data, steps=6, **settings)

    class Stop(Exception):
        pass

    def stop(step: Any) -> None:
        if step.step == 4:
            raise Stop

    with pytest.raises(Stop):
        mg.train(sense(), data, steps=6, folder=tmp_path, observe=stop, **settings)
    resumed = mg.train(sense(), data, steps=6, folder=tmp_path, resume=True, **settings)
    assert whole.weights is not None
    assert resumed.weights is not None
    assert (whole.weights.numpy("q.weight") == resumed.weights.numpy("q.weight")).all()


class Small(mg.Config):
    height: int = 4
    width: int = 4
    channels: int = 1


@mg.model(task="image-classification")
def small(m: mg.Scope, c: Small, pixel_values: Value) -> Value:
    return m.linear("classifier", pixel_values.reshape(pixel_values.shape[0], 16), 3, bias=True)


def test_labels_train_a_model_without_a_loss_of_its_own() -> None:
    """A picture model of the built-in task, on the loss of labels."""

    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((60, 1, 4, 4)).astype(np.float32)
    labels = pixels[:, 0, 0, :3].argmax(-1)
    steps: list[Any] = []
    data = mg.Arrays.of({"pixel_values": pixels, "labels": labels}, held_out=0.2)
    mg.train(small(), data, steps=80, observe=steps.append, **{**SETTINGS, "learning_rate": 5e-2})
    assert steps[-1].metrics["accuracy"] > 0.7


WRONG = {
    "unknown name": ({**rows(), "z": [1] * 12}, "has no input 'z'"),
    "misspelt": ({("kinds" if k == "kind" else k): v for k, v in rows().items()}, "did you mean 'kind'"),
    "missing": ({k: v for k, v in rows().items() if k != "x"}, "input x .* is missing"),
    "shape": ({**rows(), "x": np.zeros((12, 4, 3))}, "axis 1 of x is 4, expected 5"),
    "rank": ({**rows(), "y": np.zeros(12)}, r"y has shape \[11\], expected"),
    "not finite": ({**rows(), "y": np.full((12, 5), np.nan)}, "y has numbers that are not finite"),
    "floats for ids": ({**rows(), "kind": np.zeros(12)}, "kind is float64, expected i64"),
    "rows": ({**rows(), "kind": [1, 2]}, "different numbers of rows"),
    "texts": ({**rows(), "kind": ["a"] * 12}, "kind is <U1, expected numbers"),
    "ragged": ({**rows(), "y": [[1.0] * 5, [1.0]]}, "rows of y have different shapes"),
    "one number": ({**rows(), "kind": 3}, "kind is one number"),
    "nothing": ({}, "there are no rows"),
    "no rows": ({k: v[:0] for k, v in rows().items()}, "there are no rows"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arrays_that_do_not_fit(name: str) -> None:
    given, message = WRONG[name]
    with pytest.raises((ConfigError, CorpusError), match=message):
        mg.train(sense(), mg.Arrays.of(given), steps=1, **SETTINGS)


def test_a_model_without_a_loss_says_what_to_do() -> None:
    plain = mg.model(task=SENSE, name="sense")(network)
    with pytest.raises(ConfigError, match=r"no loss of its own\n.*loss=function"):
        mg.train(plain(), mg.Arrays.of(rows()), steps=1, **SETTINGS)
    with pytest.raises(ConfigError, match="label_smoothing is of the loss of labels"):
        mg.train(sense(), mg.Arrays.of(rows()), steps=1, label_smoothing=0.1, **SETTINGS)


class Guess(torch.nn.Module):
    """Numbers for rows of `x`; the second output is how far the first is from `y`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        guess = self.layer(x)[..., 0]
        return {"guess": guess, "gap": (guess - y) ** 2}


@pytest.mark.parametrize("written", ["outside", "in the module"])
def test_a_module_is_trained_with_a_loss_of_its_own_as_pytorch_trains_it(written: str) -> None:
    given = {k: v for k, v in rows().items() if k in ("x", "y")}
    module = Guess()
    own = {"outside": lambda found, y: (found["guess"] - y) ** 2.0, "in the module": lambda found: found["gap"]}[
        written
    ]
    batch = torch.export.Dim("batch", min=1, max=64)
    example = {k: torch.from_numpy(np.asarray(v, np.float32)) for k, v in given.items()}
    with pytest.raises(ConfigError, match=r"no loss of its own\n.*mg.load\(\.\.\., loss=function\)"):
        mg.train(mg.load(module, example), mg.Arrays.of(given), steps=1, **SETTINGS)
    model = mg.load(module, example, dynamic_shapes={k: {0: batch} for k in example}, loss=own)
    # One step over all rows at once: which rows come first does not count.
    settings = {
        **SETTINGS,
        "batch": len(given["x"]),
        "weight_decay": 0.0,
        "clip": float("inf"),
        "schedule": "constant",
        "warmup": 0,
    }
    trained = mg.train(model, mg.Arrays.of(given, held_out=0.0), steps=1, **settings)
    module(**example)["gap"].mean().backward()
    torch.optim.AdamW(module.parameters(), SETTINGS["learning_rate"], weight_decay=0.0).step()
    assert trained.weights is not None
    for name, p in module.named_parameters():
        np.testing.assert_allclose(trained.weights.numpy(name), p.detach().numpy(), atol=1e-6)
    with pytest.raises(mg.MonographError, match="no input is called 'z'"):
        mg.load(module, example, loss=lambda found, z: z)


def test_a_loss_that_is_none_is_one_message() -> None:
    with pytest.raises(mg.MonographError, match="no input is called 'yy', did you mean 'y'"):
        mg.model(task=SENSE, loss=lambda found, yy: yy)(network)
    for wrong, message in ((lambda found, y: None, "is nothing"), (lambda found, kind: kind, r"is i64\[B\]")):
        with pytest.raises(mg.MonographError, match=f"the loss of network {message}, expected a number"):
            mg.train(mg.model(task=SENSE, loss=wrong)(network)(), mg.Arrays.of(rows()), steps=1, **SETTINGS)
    broken = mg.model(task=SENSE, loss=lambda found, y: found["gues"] - y)(network)
    with pytest.raises(mg.MonographError, match=r"test_arrays.py:\d+: KeyError: there is no 'gues'"):
        mg.train(broken(), mg.Arrays.of(rows()), steps=1, **SETTINGS)


def test_files_are_read_and_damage_is_named(tmp_path: Path) -> None:
    given = rows()
    np.savez(tmp_path / "a.npz", **given)
    lines = [json.dumps({k: np.asarray(v[i]).tolist() for k, v in given.items()}) for i in range(12)]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    both = mg.Arrays.read([tmp_path / "a.npz", tmp_path / "b.jsonl"], held_out=0.5)
    assert (len(both.train), len(both.held_out)) == (12, 12)
    assert np.allclose(both.train.arrays["x"], both.held_out.arrays["x"])
    for name, content in {
        "c.npz": b"PK\x03\x04",
        "d.jsonl": b"{",
        "e.jsonl": b"[1]",
        "f.txt": b"",
        "g.npz": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorpusError, match=name):
            mg.Arrays.read(tmp_path / name)
    with pytest.raises(CorpusError, match=r"none\.npz"):
        mg.Arrays.read(tmp_path / "none.npz")


FILE = """import monograph as mg
TASK = mg.Task("pair", {"a": "f32[B,4]", "b": "i64[B,2]"}, output="sum")

class Pair(mg.Config):
    dim: int = 3

@mg.model(task=TASK)
def pair(m: mg.Scope, c: Pair, a, b):
    x = m.linear("w", a, c.dim)
    return {"sum": x + 1.0, "looked_up": m.embed("table", b, 5, c.dim)}
"""


def test_run_takes_arrays_of_every_kind_and_saves_them(tmp_path: Path) -> None:
    file, built = tmp_path / "pair.py", tmp_path / "built"
    file.write_text(FILE)
    call("build", file, built, "--random")
    a, b = np.arange(8, dtype=np.float32).reshape(2, 4), np.array([[0, 1], [2, 4]])
    np.save(tmp_path / "a.npy", a)
    np.savez(tmp_path / "both.npz", a=a, b=b)
    (tmp_path / "both.json").write_text(json.dumps({"a": a.tolist(), "b": b.tolist()}))
    (tmp_path / "b.json").write_text(json.dumps(b.tolist()))
    ways = [
        ["-i", f"a={tmp_path / 'a.npy'}", "-i", "b=[[0, 1], [2, 4]]"],
        ["-i", tmp_path / "both.npz"],
        ["-i", tmp_path / "both.json"],
        ["-i", f"a={tmp_path / 'both.npz'}", "-i", f"b={tmp_path / 'b.json'}"],
        ["-i", "a=[[0, 1, 2, 3], [4, 5, 6, 7]]", "-i", f"b={tmp_path / 'b.json'}"],
    ]
    found = [json.loads(call("run", built, *way, "--json").stdout) for way in ways]
    assert all(np.allclose(one["sum"], found[0]["sum"]) for one in found)
    assert np.array(found[0]["looked_up"]).shape == (2, 2, 3)
    assert "looked_up" in call("run", file, "--random", *ways[1]).output
    call("run", built, *ways[1], "--output", tmp_path / "out.npz")
    assert np.allclose(np.load(tmp_path / "out.npz")["sum"], found[0]["sum"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "give a text, or --input NAME=FILE for each of: a f32[B,4], b i64[B,2]"),
        (["-i", "a=[1]"], "a"),
        (["-i", "c=[1]", "-i", "b=[[1,2]]"], "no input 'c'"),
        (["-i", "a=no.npy"], "no.npy"),
        (["-i", "a=[1, [2]]"], "rows of different lengths"),
        (["-i", 'a="x"'], "expected numbers"),
        (["-i", "a=[1", "-i", "b=[1]"], "is not JSON"),
        (["-i", "a=[[1,2,3,4]]", "-i", "a=[[1,2,3,4]]"], "gives a twice"),
        (["-i", "file.txt"], "expected NAME=FILE.npy"),
        (["-i", "a=[[1,2,3,4]]", "-i", "b=[[1,9]]"], "b"),
        (["a text"], "tokenizer"),
    ],
)
def test_inputs_that_do_not_fit_are_one_message(tmp_path: Path, given: list[str], message: str) -> None:
    file = tmp_path / "pair.py"
    file.write_text(FILE)
    shown = call("run", file, "--random", *given, code=1).output
    assert shown.count("error: ") == 1
    assert message in shown
    assert "Traceback" not in shown


def test_bench_times_one_call_of_a_model_that_does_not_continue(tmp_path: Path) -> None:
    file = tmp_path / "pair.py"
    file.write_text(FILE)
    found = json.loads(call("bench", file, "--random", "--prompt", 4, "--rounds", 1, "--json").stdout)
    assert [r["variant"] for r in found["rows"]] == ["standard ops", "fused for ONNX Runtime"]
    assert found["unit"] == "calls"
    assert "one call (calls/s)" in call("bench", file, "--random", "--rounds", 1).output
