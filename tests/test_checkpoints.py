"""Checkpoints: whatever a kill, a disk or a hand did to them, a run goes on from a whole one, to the same bits."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from monograph.ir.errors import ConfigError
from monograph.training.checkpoint import open_checkpoint, sweep, writing
from monograph.training.corpus import Corpus
from monograph.training.errors import TrainingError
from monograph.training.log import read_log
from training_runs import TEXT, assert_same_weights, dropping, numbers, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

STEPS: dict[str, Any] = {"steps": 10, "evaluate_every": 2, "ema": 0.9, "seed": 5}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.of(TEXT, vocab=300)


@pytest.fixture(scope="module")
def whole(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(dropping(), corpus, folder=folder, **STEPS)


@pytest.fixture(scope="module")
def killed_once(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    assert len(run(dropping(), corpus, folder=folder, until=7, **STEPS)) == 7
    return folder


@pytest.fixture
def killed(killed_once: Path, tmp_path: Path) -> Path:
    """A run that was left after step 7, with checkpoints of steps 4 and 6."""
    return Path(shutil.copytree(killed_once, tmp_path / "run"))


def newest(folder: Path) -> Path:
    return folder / "checkpoints" / "step-00000006"


def truncate(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = newest(folder) / name
        path.write_bytes(path.read_bytes()[:-7])

    return damage


def flip(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = newest(folder) / name
        data = bytearray(path.read_bytes())
        data[len(data) * 2 // 3] ^= 1
        path.write_bytes(data)

    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (newest(folder) / name).unlink()


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = newest(folder) / "state.json"
        state = json.loads(path.read_text())
        change(state)
        path.write_text(json.dumps(state))

    return damage


WEIGHTS, MOMENTS, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated weights": (truncate(WEIGHTS), f"{WEIGHTS} has \\d+ bytes, expected \\d+"),
    "truncated optimizer": (truncate(MOMENTS), f"{MOMENTS} has \\d+ bytes, expected \\d+"),
    "truncated state": (truncate(STATE), f"{STATE} is damaged"),
    "empty state": (lambda f: (newest(f) / STATE).write_text(""), f"{STATE} is damaged"),
    "a bit of the weights": (flip(WEIGHTS), f"{WEIGHTS} is damaged: its SHA-256"),
    "a bit of the optimizer": (flip(MOMENTS), f"{MOMENTS} is damaged: its SHA-256"),
    "a bit of the state": (flip(STATE), f"{STATE} is (damaged|of)"),
    "no weights": (remove(WEIGHTS), f"{WEIGHTS} is missing"),
    "no optimizer": (remove(MOMENTS), f"{MOMENTS} is missing"),
    "no state": (remove(STATE), f"{STATE} is damaged: FileNotFoundError"),
    "no tokenizer": (remove("tokenizer.json"), "tokenizer.json is missing"),
    "another count of updates": (edit(lambda s: s.update(updates=5)), f"{STATE} is damaged: its SHA-256"),
    "no files listed": (edit(lambda s: s["files"].clear()), f"{STATE} is damaged: its SHA-256"),
    "of another step": (edit(lambda s: s.update(step=4)), f"{STATE} is of monograph-run-2 and step 4"),
    "of another format": (edit(lambda s: s.update(format="x")), f"{STATE} is of x and step 6"),
    "a list": (lambda f: (newest(f) / STATE).write_text("[]"), f"{STATE} is damaged"),
    "nothing in it": (lambda f: (shutil.rmtree(newest(f)), newest(f).mkdir()), f"{STATE} is damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_is_found(killed: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    assert open_checkpoint(newest(killed)).step == 6
    damage(killed)
    with pytest.raises(TrainingError, match=f"^{newest(killed)}: {message}"):
        open_checkpoint(newest(killed))


@pytest.mark.parametrize("name", ["truncated weights", "a bit of the optimizer", "another count of updates"])
def test_a_damaged_newest_falls_back_and_goes_on_to_the_same_bits(
    corpus: Corpus, whole: tuple[Path, list[Any]], killed: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage, message = DAMAGES[name]
    damage(killed)
    history = run(dropping(), corpus, folder=killed, resume=True, **STEPS)
    first, second = caplog.messages
    assert first.startswith(f"{newest(killed)}: {message.split(' has')[0].split(' is')[0]}")
    assert first.endswith("; going on from step 4")
    assert second == f"{killed}: going on after step 4 of 10"
    assert numbers(history) == numbers(whole[1])[4:]
    assert_same_weights(killed, whole[0])
    assert numbers_of(killed) == numbers_of(whole[0])
    steps = sorted(p.name for p in (killed / "checkpoints").iterdir())
    assert steps == ["step-00000008", "step-00000010"]


def numbers_of(folder: Path) -> list[tuple[Any, ...]]:
    return [(x["step"], repr(x["loss"]), repr(x.get("held_out"))) for x in read_log(folder)]


def test_the_message_is_on_stderr_where_steps_are_shown(
    corpus: Corpus, killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truncate(WEIGHTS)(killed)
    run(dropping(), corpus, folder=killed, resume=True, **{**STEPS, "progress": True, "until": 5})
    lines = capsys.readouterr().err.splitlines()
    first, second, third, fourth = lines[:4]
    assert first == "preparing the first step"
    assert second.startswith(f"{newest(killed)}: {WEIGHTS} has ") and second.endswith("going on from step 4")
    assert third.endswith("going on after step 4 of 10") and fourth.startswith("step 5/10")


def test_no_whole_checkpoint(corpus: Corpus, killed: Path) -> None:
    truncate(STATE)(killed)
    shutil.copyfile(newest(killed) / STATE, killed / "checkpoints" / "step-00000004" / STATE)
    before = (killed / "log.jsonl").read_bytes()
    with pytest.raises(TrainingError, match="has no whole checkpoint to go on from") as e:
        run(dropping(), corpus, folder=killed, resume=True, **STEPS)
    assert len(e.value.details) == 2, "one line for each"
    assert (killed / "log.jsonl").read_bytes() == before, "nothing is touched"


def test_what_a_kill_leaves_is_not_loaded_and_goes(corpus: Corpus, whole: tuple[Path, list[Any]], killed: Path) -> None:
    """A folder half written, one half removed, and files on their way into the folder of the run."""
    into = killed / "checkpoints"
    half = into / ".step-00000008.0123abcd.tmp"
    shutil.copytree(newest(killed), half)
    (half / STATE).unlink()
    (half / WEIGHTS).write_bytes(b"half")
    shutil.copytree(newest(killed), into / ".step-00000002.4567.tmp")
    for name in (".model.safetensors.89ab.tmp", ".log.jsonl.cdef.tmp", ".recipe.toml.0.tmp"):
        (killed / name).write_text("half")
    history = run(dropping(), corpus, folder=killed, resume=True, **STEPS)
    assert numbers(history) == numbers(whole[1])[6:]
    assert_same_weights(killed, whole[0])
    assert not list(killed.rglob(".*.tmp"))


def test_sweep_leaves_everything_else(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    kept = [tmp_path / ".hidden", tmp_path / "notes.tmp", tmp_path / "checkpoints" / "step-00000001" / ".a.tmp"]
    for path in kept:
        path.write_text("mine")
    sweep(tmp_path)
    assert all(path.exists() for path in kept)


@pytest.mark.parametrize("keep", [1, 3, 100])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    for step in range(2, 12, 2):
        with writing(tmp_path, step, {}, keep) as folder:
            (folder / "a").write_text(str(step))
    expected = [f"step-{s:08d}" for s in (2, 4, 6, 8, 10)][-keep:]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == expected
    for name in expected:
        found = open_checkpoint(tmp_path / "checkpoints" / name)
        assert (found.folder / "a").read_text() == str(found.step)


def test_an_error_while_writing_leaves_the_older_ones(tmp_path: Path) -> None:
    with writing(tmp_path, 1, {}, 1) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(KeyError), writing(tmp_path, 2, {}, 1) as folder:
        (folder / "a").write_text("2")
        raise KeyError
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    open_checkpoint(tmp_path / "checkpoints" / "step-00000001")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 1e-3}, "learning_rate is 0.001, but the run was begun with 0.005"),
        ({"steps": 20}, "steps is 20, but the run was begun with 10"),
        ({"seed": 6}, "seed is 6, but"),
        ({"ema": 0.0}, "ema is 0.0, but"),
        ({"betas": (0.9, 0.99)}, r"betas is \[0.9, 0.99\], but the run was begun with \[0.9, 0.95\]"),
        ({"precision": "bf16"}, "precision is 'bf16', but"),
    ],
)
def test_other_settings_are_refused(corpus: Corpus, killed: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{newest(killed)}: {message}"):
        run(dropping(), corpus, folder=killed, resume=True, **{**STEPS, **change})
    assert open_checkpoint(newest(killed)).step == 6


def test_settings_that_do_not_change_numbers_may_change(
    corpus: Corpus, whole: tuple[Path, list[Any]], killed: Path
) -> None:
    more = {**STEPS, "checkpoint_every": 1, "keep": 4}
    history = run(dropping(), corpus, folder=killed, resume=True, **more)
    assert numbers(history) == numbers(whole[1])[6:]
    assert sorted(p.name[-2:] for p in (killed / "checkpoints").iterdir()) == ["07", "08", "09", "10"]


def test_other_data_is_refused(killed: Path) -> None:
    other = Corpus.of(TEXT.replace("mat", "rug"), vocab=300)
    with pytest.raises(ConfigError, match="the first batch of the data is not the one the run was begun with"):
        run(dropping(), other, folder=killed, resume=True, **STEPS)


def test_another_run_in_the_folder_is_not_replaced(corpus: Corpus, killed: Path) -> None:
    before = {p: p.read_bytes() for p in killed.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match="holds a run that got to step-00000006, which a new one would replace") as e:
        run(dropping(), corpus, folder=killed, **STEPS)
    assert "or take another folder" in str(e.value)
    assert {p: p.read_bytes() for p in killed.rglob("*") if p.is_file()} == before


def test_resume_without_a_checkpoint_begins(
    corpus: Corpus, whole: tuple[Path, list[Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(dropping(), corpus, folder=tmp_path, until=1, **STEPS)
    assert [x["step"] for x in read_log(tmp_path)] == [1]
    history = run(dropping(), corpus, folder=tmp_path, resume=True, **STEPS)
    assert caplog.messages == [f"{tmp_path} holds no checkpoint yet: beginning with step 1"]
    assert numbers(history) == numbers(whole[1])
    assert [x["step"] for x in read_log(tmp_path)] == list(range(1, 11))


def test_a_run_that_is_done_has_nothing_to_do(corpus: Corpus, whole: tuple[Path, list[Any]], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole[0], tmp_path / "run"))
    (folder / "model.safetensors").unlink()
    assert run(dropping(), corpus, folder=folder, resume=True, **STEPS) == []
    assert_same_weights(folder, whole[0])


# -- a full disk -----------------------------------------------------------------------------------------------

FULL = """
    import resource, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import torch
    from monograph.training import log
    from monograph.training.corpus import Corpus
    from monograph.training.errors import TrainingError
    from monograph.training.loop import train
    from training_runs import SETTINGS, TEXT, dropping

    torch.set_num_threads(1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def observe(step):
        if step.step == {at}:  # From here on no file can grow beyond this, as on a full disk: EFBIG in place of ENOSPC.
            resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, limits[1]))

    corpus = Corpus.of(TEXT, vocab=300)
    settings = {{**SETTINGS, **{steps!r}, "folder": Path({folder!r}), "observe": observe, "patience": {patience}}}
    try:
        train(dropping(), corpus, **settings)
    except TrainingError as e:
        print(e)
        print("kept", len(e.model.weights), sum(float(t.numpy().sum()) for t in e.model.weights.values()))
"""


def on_a_full_disk(folder: Path, limit: str, at: int = 5, patience: int = 0) -> list[str]:
    code = FULL.format(
        tests=str(Path(__file__).parent), limit=limit, steps=STEPS, folder=str(folder), patience=patience, at=at
    )
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("limit", "what"),
    [
        ("4096", "the checkpoint of step 6 cannot be written: File too large"),
        ("(Path({folder!r}) / log.LOG).stat().st_size + 10", "after step 6: File too large"),
    ],
    ids=["checkpoint", "log"],
)
def test_a_full_disk_ends_the_run_with_the_last_good_state(
    corpus: Corpus, whole: tuple[Path, list[Any]], tmp_path: Path, limit: str, what: str
) -> None:
    lines = on_a_full_disk(tmp_path, limit.format(folder=str(tmp_path)))
    assert lines[0] == what
    assert lines[1] == f"  the weights after step 4 are kept in {tmp_path}/checkpoints/step-00000004"
    assert lines[2].startswith("kept ") and len(lines) == 3
    assert not list(tmp_path.rglob(".*.tmp"))
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoints", "log.jsonl"}
    steps = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert steps == ["step-00000002", "step-00000004"]
    for step in steps:
        open_checkpoint(tmp_path / "checkpoints" / step)
    history = run(dropping(), corpus, folder=tmp_path, resume=True, **STEPS)
    assert numbers(history) == numbers(whole[1])[4:], "with room again it goes on"
    assert_same_weights(tmp_path, whole[0])


def test_no_room_for_the_model_at_the_end(corpus: Corpus, whole: tuple[Path, list[Any]], tmp_path: Path) -> None:
    lines = on_a_full_disk(tmp_path, "4096", at=10)
    assert lines[0] == "after step 10: File too large"
    assert lines[1] == f"  the weights after step 10 are kept in {tmp_path}/checkpoints/step-00000010"
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoints", "log.jsonl"}
    assert run(dropping(), corpus, folder=tmp_path, resume=True, **STEPS) == []
    assert_same_weights(tmp_path, whole[0])


def test_the_best_weights_survive_a_full_disk_in_the_checkpoint(tmp_path: Path) -> None:
    lines = on_a_full_disk(tmp_path, "4096", patience=3)
    assert lines[0] == "the checkpoint of step 6 cannot be written: File too large"
    kept = open_checkpoint(tmp_path / "checkpoints" / "step-00000004")
    assert lines[1] == "  the weights after step 6 are kept in this error's `model`", "measured, but not written"
    assert kept.state["kept"] == 4
    assert {f"best/{n}" for n in ("model.safetensors", "config.json", "tokenizer.json")} <= set(kept.state["files"])
