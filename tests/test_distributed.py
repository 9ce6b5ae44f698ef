"""Several processes train the model that one does: losses, weights, checkpoints across layouts, and clean ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed_jobs import (
    SIZES,
    TEXT,
    adapted,
    broken,
    dealt,
    distilled,
    full,
    given,
    gradients,
    held,
    interrupted,
    measured,
    objective,
    run,
    tiny,
    train_once,
)
from monograph.backends.torch import to_torch
from monograph.data import Dataset, Recipe, prepare
from monograph.frontends.huggingface import load_folder
from monograph.ir.errors import ConfigError, WeightsError
from monograph.ir.weights import Weights
from monograph.passes.pipelines import train as train_pipeline
from monograph.training import sharded
from monograph.training.adapters import Lora
from monograph.training.corpus import Corpus
from monograph.training.loop import train
from monograph.training.loss import with_loss
from monograph.training.progress import Step
from ranks import Failure, Ranks

pytestmark = pytest.mark.slow

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "2 ddp": (2, {}),
    "2 fsdp": (2, {"strategy": "fsdp"}),
    "2 tensor": (2, {"tensor": 2}),
    "2x2 ddp": (4, {"tensor": 2}),
    "2x2 fsdp": (4, {"tensor": 2, "strategy": "fsdp"}),
}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    saved = torch.get_num_threads()
    torch.set_num_threads(1)
    with Ranks(4) as found:
        yield found
    torch.set_num_threads(saved)


def close(expected: dict[str, Any], found: dict[str, Any]) -> None:
    first = found["steps"][0] - 1
    np.testing.assert_allclose(found["losses"], expected["losses"][first:], atol=1e-5, rtol=0)
    np.testing.assert_allclose(found["norms"], expected["norms"][first:], atol=1e-5, rtol=0)
    held_out = expected["held_out"][-len(found["held_out"]) :]
    np.testing.assert_allclose(found["held_out"], held_out, atol=1e-5, rtol=0)
    assert found["weights"].keys() == expected["weights"].keys()
    for k, x in expected["weights"].items():
        # AdamW's first steps are of the size of the rate whatever the gradient: noise of f32 is not scaled down.
        np.testing.assert_allclose(found["weights"][k], x, atol=2e-4, rtol=0, err_msg=k)


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return run()


# -- the same numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_of_every_layout_are_those_of_one_process(ranks: Ranks, one: dict[str, Any], layout: str) -> None:
    size, settings = LAYOUTS[layout]
    for found in ranks.run(size, run, **settings):
        assert found["steps"] == list(range(1, 21))
        close(one, found)


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        (2, {"accumulate": 2}),
        (2, {"accumulate": 2, "strategy": "fsdp"}),
        (4, {"accumulate": 2, "strategy": "fsdp", "tensor": 2}),
    ],
)
def test_accumulation_counts_labels_over_all_processes(
    ranks: Ranks, one: dict[str, Any], size: int, settings: dict[str, Any]
) -> None:
    for found in ranks.run(size, run, **settings):
        close(one, found)


def test_a_running_mean_and_patience_over_shards(ranks: Ranks) -> None:
    settings = {"ema": 0.9, "patience": 3, "evaluate_every": 4, "learning_rate": 0.01}
    expected = run(**settings)
    for found in ranks.run(4, run, strategy="fsdp", tensor=2, **settings):
        close(expected, found)


def test_measuring_a_running_mean_leaves_the_weights_that_are_trained(ranks: Ranks, tmp_path: Path) -> None:
    """Without a checkpoint at the measurement nothing else makes FSDP gather the outer weights again."""
    settings = {"ema": 0.9, "evaluate_every": 4, "checkpoint_every": 50}
    expected = run(**settings)
    for found in ranks.run(2, run, strategy="fsdp", folder=tmp_path, **settings):
        close(expected, found)


def test_dropout_under_tensor_parallelism_is_that_of_one_process(ranks: Ranks) -> None:
    """GPT-2: packed projections, transposed weights, dropout on whole activations with one mask on all ranks."""
    for found in ranks.run(2, run, "gpt2", tensor=2):
        close(run("gpt2"), found)


def test_accuracy_and_metrics_are_those_of_one_process(ranks: Ranks) -> None:
    expected = measured()
    assert len(expected) == 2 and expected[-1]["accuracy"] > 0.02
    for found in ranks.run(4, measured, tensor=2, strategy="fsdp"):
        for a, b in zip(expected, found, strict=True):
            assert a["accuracy"] == b["accuracy"]
            np.testing.assert_allclose(a["sum"], b["sum"], rtol=1e-4)


@pytest.mark.parametrize(("size", "settings"), [(2, {"strategy": "fsdp"}), (4, {"tensor": 2, "accumulate": 2})])
def test_losses_outside_the_graph_too(ranks: Ranks, size: int, settings: dict[str, Any]) -> None:
    expected = distilled()
    for found in ranks.run(size, distilled, **settings):
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", SIZES)
def test_gradients_of_shared_layers(ranks: Ranks, family: str) -> None:
    graph = with_loss(tiny(family).graph()) if family != "bert" else tiny(family).graph()
    module = to_torch(train_pipeline(graph), Weights.initialize(graph, 1))
    loss = objective(module(**given(graph)))
    loss.backward()
    settings = [(2, {"tensor": 2}), (4, {"tensor": 2, "strategy": "fsdp"})]
    if family == "gpt2":
        settings = []  # Its dropout draws other numbers here; the run above holds it.
    for size, layout in settings:
        for found in ranks.run(size, gradients, family, **layout):
            np.testing.assert_allclose(found.pop("loss"), loss.item(), atol=1e-5)
            expected = {k: p.grad for k, p in module.named_parameters() if p.grad is not None}
            assert found.keys() == expected.keys()
            for k, x in expected.items():
                np.testing.assert_allclose(found[k], x.numpy(), atol=2e-5, err_msg=k)


def test_each_process_holds_its_share_only(ranks: Ranks) -> None:
    weights, moments, norms = held()
    assert weights == moments
    for found in ranks.run(2, held, strategy="fsdp"):
        assert found == (weights // 2, weights // 2, norms // 2)
    cut = weights - 300 * 32 - norms
    for found in ranks.run(2, held, tensor=2):
        assert found == (weights - cut // 2, weights - cut // 2, norms)
    for found in ranks.run(4, held, tensor=2, strategy="fsdp"):
        assert found == ((weights - cut // 2) // 2, (weights - cut // 2) // 2, norms // 2)


# -- rows of packed documents ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    words = [f"w{i}" for i in range(60)]
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(words, int(n))) for n in generator.integers(4, 30, 160)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    tables = {
        "input": {"paths": [str(folder / "a.jsonl")]}, "split": {"held_out": 0.25, "seed": 1},
        "tokenizer": {"vocab": 300}, "clean": {"filters": []},
    }  # fmt: skip
    prepare(Recipe.of(tables), folder / "run")
    return folder / "run"


@pytest.mark.parametrize("settings", [{}, {"tensor": 2, "strategy": "fsdp"}, {"accumulate": 2}])
def test_rows_of_packed_documents_are_dealt_without_loss_or_overlap(
    ranks: Ranks, packed: Path, settings: dict[str, Any]
) -> None:
    data = Dataset.open(packed)
    (whole, losses, held_out), found = dealt(packed), ranks.run(4, dealt, packed, **settings)
    assert len(np.unique(np.concatenate([r[2] for r in whole["train"]]))) > 2, "rows hold several documents"
    size = settings.get("tensor", 1)
    for part in ("train", "held_out"):
        rows = [[r.tobytes() for r in seen[part]] for seen, _, _ in found]
        assert all(rows[i] == rows[i - i % size] for i in range(4)), "a tensor-parallel group reads the same rows"
        together = sorted(r for i in range(0, 4, size) for r in rows[i])
        expected = sorted(r.tobytes() for r in whole[part])
        if part == "train":
            assert together == expected and len(expected) == 3 * 8
        else:
            # Where the last batch has too few rows, one is read again and counts for nothing.
            assert set(together) == set(expected)
            assert len(expected) == -(-data.held_out.tokens // 32)
    for _, theirs, theirs_held_out in found:
        np.testing.assert_allclose(theirs, losses, atol=1e-5, rtol=0)
        np.testing.assert_allclose(theirs_held_out, held_out, atol=1e-5, rtol=0)


# -- checkpoints -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["2 ddp", "2 fsdp", "2 tensor"])
def test_a_checkpoint_of_two_goes_on_with_one_and_four(
    ranks: Ranks, one: dict[str, Any], layout: str, tmp_path: Path
) -> None:
    size, settings = LAYOUTS[layout]
    folder = tmp_path / "run"
    said = ranks.run(size, interrupted, 12, folder=folder, **settings)
    assert "a signal to another process ended the run after step 13 of 20" in said[0]
    assert "SIGTERM ended the run after step 13 of 20" in said[1]
    assert [p.name for p in sorted((folder / "checkpoints").iterdir())] == ["step-00000010", "step-00000013"]
    assert not list(folder.rglob("*.tmp")) and not list(folder.rglob("*.metadata")), "no pickle, nothing half-written"
    for resumed in ((1, {}), (4, {"strategy": "fsdp"}), (4, {"tensor": 2})):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        for found in ranks.run(resumed[0], run, folder=copy, resume=True, **resumed[1]):
            assert found["steps"] == list(range(14, 21))
            close(one, found)
        lines = [json.loads(x)["step"] for x in (copy / "log.jsonl").read_text().splitlines()]
        assert lines == list(range(1, 21)), "one process logs"
        published = load_folder(copy).weights
        assert published is not None
        assert all(np.array_equal(published.numpy(k), x) for k, x in found["weights"].items())
        shutil.rmtree(copy)


def test_one_process_and_packed_projections_across_layouts(ranks: Ranks, tmp_path: Path) -> None:
    config = {"dropout": 0.0, "embedding_dropout": 0.0}
    expected = run("gpt2", config=config)
    folder, steps = tmp_path / "run", []
    for i, (size, settings) in enumerate([(1, {}), (4, {"tensor": 2, "strategy": "fsdp"}), (2, {"tensor": 2})]):
        said = ranks.run(
            size, interrupted, 3 + 5 * i, family="gpt2", folder=folder, config=config, resume=i > 0, **settings
        )
        assert f"ended the run after step {4 + 5 * i} of 20" in said[-1]
        steps.append(int(sorted((folder / "checkpoints").iterdir())[-1].name[5:]))
    assert steps == [4, 9, 14]
    close(expected, run("gpt2", folder=folder, resume=True, config=config))


@pytest.mark.parametrize("quantized", [False, True])
def test_adapters_are_shared_and_go_on_across_layouts(ranks: Ranks, tmp_path: Path, quantized: bool) -> None:
    expected = adapted(quantized=quantized)
    assert isinstance(expected, dict)
    layouts = [(2, {}), (4, {"tensor": 2, "strategy": "fsdp"}), (1, {})]
    for i, (size, settings) in enumerate(layouts):
        given = {**settings, "quantized": quantized, "folder": tmp_path, "resume": i > 0}
        (said, *_) = ranks.run(size, adapted, 2 * i + 1, **given)
        assert f"ended the run after step {2 * i + 2} of 8" in said
        if not quantized:
            (other, _) = ranks.each(2, adapted, lora=Lora(rank=2, alpha=4.0), folder=tmp_path, resume=True)
            assert isinstance(other, Failure) and "alpha=4.0" in other.text
    for found in ranks.run(2, adapted, tensor=2, folder=tmp_path, resume=True, quantized=quantized):
        assert list(found["losses"]) == [7, 8]
        for step, loss in found["losses"].items():
            assert abs(loss - expected["losses"][step]) < 1e-5
        for k, x in expected["adapter"].items():
            np.testing.assert_allclose(found["adapter"][k], x, atol=2e-4, err_msg=k)
    assert (tmp_path / "adapter_model.safetensors").exists()


def test_a_part_that_is_gone_is_named(ranks: Ranks, tmp_path: Path) -> None:
    ranks.run(2, run, folder=tmp_path, strategy="fsdp", steps=10)
    folder = tmp_path / "checkpoints" / "step-00000010"
    weights = sharded.open_sharded(folder, lambda name: name == "model.norm.weight")
    assert weights.numpy("model.norm.weight").shape == (32,)
    parts = sorted((folder / sharded.SHARDED).iterdir())
    parts[0].unlink()
    with pytest.raises(WeightsError, match=r"tensor model\.norm\.weight cannot be read\n.*process 0: "):
        weights.numpy("model.norm.weight")
    again = sharded.open_sharded(folder, lambda name: name == "model.norm.weight")
    with pytest.raises(WeightsError, match=r"tensor model\.norm\.weight has 16 of 32 elements"):
        again.numpy("model.norm.weight")


def test_a_damaged_part_is_found_on_reading(ranks: Ranks, tmp_path: Path) -> None:
    ranks.run(2, run, folder=tmp_path, strategy="fsdp")
    newest = tmp_path / "checkpoints" / "step-00000020" / sharded.SHARDED
    part = sorted(newest.iterdir())[-1]
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    (_, found) = ranks.run(2, run, folder=tmp_path, resume=True, tensor=2)
    assert found["steps"][0] == 11


# -- when it goes wrong ------------------------------------------------------------------------------------------


def test_a_full_disk_of_one_ends_all_with_the_checkpoint_before(ranks: Ranks, tmp_path: Path) -> None:
    for found in ranks.each(2, full, folder=tmp_path, strategy="fsdp"):
        assert isinstance(found, Failure)
        assert found.kind == "TrainingError"
        assert "No space left on device" in found.text
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]


def test_a_loss_that_is_not_finite_ends_all_alike(ranks: Ranks, tmp_path: Path) -> None:
    settings = {"learning_rate": 1e30, "clip": 1e30, "warmup": 12, "weight_decay": 1e9, "schedule": "constant"}
    found = ranks.each(4, train_once, folder=tmp_path, tensor=2, strategy="fsdp", **settings)
    assert all(isinstance(x, Failure) and x.kind == "TrainingError" and " is nan" in x.text for x in found)
    assert len({x.text for x in found}) == 1


def test_a_process_that_dies_does_not_hang_the_others(tmp_path: Path) -> None:
    with Ranks(2) as two:
        begin = time.monotonic()
        other = two.survivor(2, broken, folder=tmp_path, strategy="fsdp")
        assert time.monotonic() - begin < 50, "the group's timeout is 60 seconds"
    assert isinstance(other, Failure) and other.kind == "TrainingError"
    assert "another process was lost after step 4" in other.text
    assert f"the weights after step 4 are kept in {tmp_path}" in other.text
    assert load_folder(tmp_path).weights is not None


# -- what cannot be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tensor": 4}, "2 processes cannot be divided into tensor-parallel groups of 4"),
        ({"batch": 9}, "a batch of 9 rows cannot be shared equally 2 ways, each in 1 parts"),
        ({"precision": "f16", "strategy": "fsdp"}, "precision f16 needs whole gradients"),
        ({"tensor": 2, "config": {"heads": 4, "kv_heads": 1}}, "1 key/value heads for 4 query heads"),
        ({"tensor": 2, "config": {"ffn": 63}}, "63 channels cannot be shared equally by 2 ranks"),
    ],
)
def test_layouts_that_cannot_be(ranks: Ranks, settings: dict[str, Any], message: str) -> None:
    for found in ranks.each(2, train_once, **settings):
        assert isinstance(found, Failure) and found.kind == "ConfigError"
        assert message in found.text


def test_more_that_cannot_be(ranks: Ranks) -> None:
    with pytest.raises(ConfigError, match=r"tensor is 2, but there is one process\n.*torchrun --nproc-per-node 2"):
        train_once(tensor=2)
    with pytest.raises(ConfigError, match="no strategy is called 'fdsp', did you mean 'fsdp'"):
        train_once(strategy="fdsp")


def test_a_layout_that_cannot_be_leaves_no_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="a batch of 9 rows cannot be shared equally 2 ways"):
        train_once(batch=9)
    assert not torch.distributed.is_initialized()


# -- torchrun ----------------------------------------------------------------------------------------------------


def test_torchrun_follows_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    config = "".join(f"{k} = {str(v).lower()}\n" for k, v in SIZES["llama"].items())
    (tmp_path / "recipe.toml").write_text(
        f"[model]\nfamily = 'llama'\n[model.config]\n{config}[data]\npaths = ['a.txt']\n[tokenizer]\nvocab = 300\n"
        "[train]\nsteps = 6\nbatch = 8\nlength = 16\ndevice = 'cpu'\ntensor = 2\n"
    )
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*start, "-m", "monograph", "train", "recipe.toml", "out"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert (done.stderr.count("step 6/6"), done.stdout.count("wrote out in ")) == (1, 1), "one process speaks"
    lines = [json.loads(x) for x in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    expected = train_losses(tmp_path)
    np.testing.assert_allclose([x["loss"] for x in lines], expected, atol=1e-5, rtol=0)
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"model.safetensors", "config.json", "recipe.toml"}


def train_losses(folder: Path) -> list[float]:
    history: list[Step] = []
    corpus = Corpus.read([folder / "a.txt"], vocab=300, held_out=0.05)
    train(tiny(), corpus, steps=6, batch=8, length=16, device="cpu", progress=False, observe=history.append)
    return [s.loss for s in history]
