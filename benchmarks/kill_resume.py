"""A small run is killed with SIGKILL at random moments and resumed each time: are its losses and weights the same bits?

The moments are drawn by a seed: while the process starts, between steps, and while a checkpoint is being written.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monograph.training.checkpoint import CHECKPOINTS, open_checkpoint
from monograph.training.log import LOG, read_log
from report import WORK, Row, parser, publish

RECIPE = """[model]
family = "gpt2"
config = {{ dim = 32, layers = 2, heads = 2, max_positions = 64, dropout = 0.1, embedding_dropout = 0.1 }}
[data]
paths = ["text.txt"]
held_out = 0.1
[tokenizer]
vocab = 300
[train]
steps = {steps}
batch = 8
length = 32
accumulate = 2
learning_rate = 0.01
schedule = "wsd"
ema = 0.9
evaluate_every = 10
checkpoint_every = {every}
device = "cpu"
"""
SAME = ("loss", "gradient_norm", "held_out", "learning_rate")
MOMENTS = {"starting": 0.16, "stepping": 0.34, "writing a checkpoint": 0.5}
"""Where kills are aimed, and at what share of them."""
DAMAGED = re.compile(r"damaged|missing|bytes, expected")


@dataclass
class Kill:
    """One kill. hit: what it found under way in the checkpoint folder; resumed: the step the next process told of."""

    moment: str
    step: int
    hit: str = ""
    resumed: int | None = None


@dataclass
class Trial:
    """What came of a run: its kills, all lines it ever logged, what was wrong."""

    kills: list[Kill] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def prepare(folder: Path, steps: int, every: int) -> Path:
    """A text and a recipe in a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    draw = random.Random(1)
    words = "the a cat dog mat sat lay ran saw red blue big old and under over with".split()
    lines = [" ".join(draw.choices(words, k=12)) + ("\n\n" if i % 4 == 3 else "\n") for i in range(800)]
    (folder / "text.txt").write_text("".join(lines))
    (folder / "recipe.toml").write_text(RECIPE.format(steps=steps, every=every))
    return folder


def start(folder: Path, name: str) -> subprocess.Popen[str]:
    """A new process that begins or resumes the run; it leads a group of its own."""
    command = [sys.executable, "-m", "monograph", "train", "recipe.toml", name, "--resume", "--json"]
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def trial(
    folder: Path,
    kills: int,
    seed: int,
    shown: Callable[[str], None] = lambda text: None,
    start: Callable[[Path, str], Any] = start,
) -> Trial:
    """Kill and resume the run `killed` in a prepared folder until it is done. start: gives something like a Popen."""
    run, draw, found = folder / "killed", random.Random(seed), Trial()
    names = list(MOMENTS)
    moments = draw.choices(names, list(MOMENTS.values()), k=max(kills - len(names), 0)) + names[-kills:]
    draw.shuffle(moments)
    for moment in [*moments, None]:
        steps, old = steps_of(run), hidden(run)
        process = start(folder, run.name)
        if moment is not None:
            wait(moment, run, process, draw)
            process.kill()
        told = process.communicate()[1]
        after(told, steps, found)
        if moment is None:
            if process.returncode:
                found.wrong.append(f"the last process ended with {process.returncode}: {told}")
            break
        if process.returncode == 0:
            found.wrong.append(f"the run was done after {len(found.kills)} of {kills} kills")
            break
        kill = look(moment, run, old, found)
        shown(f"kill {len(found.kills)} of {kills}, {moment}: after step {kill.step} {kill.hit}")
    found.wrong += [f"no process told where it went on after {kill}" for kill in found.kills if kill.resumed is None]
    return found


def wait(moment: str, run: Path, process: subprocess.Popen[str], draw: random.Random) -> None:
    """Return at a random moment of the kind that is asked for, or when the process is done.

    Steps and checkpoints are counted, not seconds: a faster machine does not get further between two kills.
    """
    lines = (run / LOG).stat().st_mtime_ns if (run / LOG).exists() else 0
    if moment == "starting":
        end = time.monotonic() + draw.uniform(0.0, 3.0)
        while time.monotonic() < end and process.poll() is None and not logged(run, lines):
            time.sleep(0.001)
        return
    events, number = 0, draw.randint(1, 5)
    seen: set[str] = set()
    while process.poll() is None and events < number:
        if moment == "stepping":
            changed = logged(run, lines)
            events, lines = events + changed, (run / LOG).stat().st_mtime_ns if changed else lines
        else:
            fresh = hidden(run) - seen
            # What the kill before left is there from the start; it goes when the run begins.
            events += len(fresh) if process.poll() is None and logged(run, lines) else 0
            seen |= fresh
    time.sleep(draw.uniform(0.0, 0.02))


def logged(run: Path, since: int) -> bool:
    return (run / LOG).exists() and (run / LOG).stat().st_mtime_ns != since


def hidden(run: Path) -> set[str]:
    """Checkpoints on their way in or out."""
    return {p.name for p in (run / CHECKPOINTS).glob(".step-*.tmp")}


def steps_of(run: Path) -> list[int]:
    return sorted(int(p.name.removeprefix("step-")) for p in (run / CHECKPOINTS).glob("step-*"))


def look(moment: str, run: Path, old: set[str], found: Trial) -> Kill:
    """What a kill left behind: every checkpoint under its own name must be whole."""
    lines, steps = read_log(run), steps_of(run)
    found.lines += lines
    for step in steps:
        open_checkpoint(run / CHECKPOINTS / f"step-{step:08d}")
    coming = {int(name.split(".")[1].removeprefix("step-")) for name in hidden(run) - old}
    hit = "writing" if any(not steps or s > steps[-1] for s in coming) else "removing" if coming else ""
    kill = Kill(moment, lines[-1]["step"] if lines else 0, hit)
    found.kills.append(kill)
    return kill


def after(told: str, steps: list[int], found: Trial) -> None:
    """Note what a process said about where it went on, if it lived long enough: it must be the newest checkpoint."""
    if DAMAGED.search(told):
        found.wrong.append(told.strip())
    going = re.search(r"going on after step (\d+)", told)
    step = int(going[1]) if going else 0 if "holds no checkpoint yet" in told else None
    if step is None:
        return
    if step != max(steps, default=0):
        found.wrong.append(f"a process went on after step {step}, but the checkpoints were of {steps}")
    for kill in found.kills:
        kill.resumed = step if kill.resumed is None else kill.resumed


def differing(whole: Path, found: Trial) -> Iterator[str]:
    """Every logged number that is not, bit for bit, that of the run that was never killed."""
    expected = {x["step"]: x for x in read_log(whole)}
    for line in found.lines:
        for name in SAME:
            mine, theirs = line.get(name), expected[line["step"]].get(name)
            if repr(mine) != repr(theirs):
                yield f"step {line['step']}: {name} is {mine!r}, expected {theirs!r}"


def leftovers(folder: Path) -> list[str]:
    return [str(p.relative_to(folder)) for p in folder.rglob(".*.tmp")]


def digest(run: Path) -> str:
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def measure(
    folder: Path,
    kills: int,
    seed: int,
    shown: Callable[[str], None] = lambda text: None,
    start: Callable[[Path, str], Any] = start,
) -> Trial:
    """Both runs in a prepared folder; `wrong` tells every difference between them."""
    process = start(folder, "whole")
    if process.wait():
        raise SystemExit(process.communicate()[1])
    found = trial(folder, kills, seed, shown, start)
    whole, killed = folder / "whole", folder / "killed"
    found.lines += read_log(killed)
    # A log was read after each kill; lines tell the time, so those of the same process are equal and count once.
    found.lines = list({json.dumps(line): line for line in found.lines}.values())
    found.wrong += differing(whole, found)
    if len(read_log(killed)) != len(read_log(whole)) or not (killed / "model.safetensors").exists():
        found.wrong.append(f"the killed run logged {len(read_log(killed))} steps")
    elif digest(whole) != digest(killed):
        found.wrong.append(f"the weights are {digest(killed)}, expected {digest(whole)}")
    found.wrong += [f"{name} is left" for name in leftovers(killed)]
    return found


def table(found: Trial) -> list[Row]:
    rows: list[Row] = []
    for moment in MOMENTS:
        kills = [k for k in found.kills if k.moment == moment]
        again = [k.step - k.resumed for k in kills if k.resumed is not None]
        rows.append(
            {
                "killed while": moment,
                "kills": len(kills),
                "a checkpoint was being written": sum(k.hit == "writing" for k in kills),
                "an old one removed": sum(k.hit == "removing" for k in kills),
                "then told its step": len(again),
                "most steps done again": max(again, default=0),
            }
        )
    return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--kills", type=int, default=50)
    options.add_argument("--steps", type=int, default=120)
    options.add_argument("--seed", type=int, default=7)
    given = options.parse_args()
    begin = time.perf_counter()
    folder = prepare(WORK / "kill_resume", given.steps, 2)
    found = measure(folder, given.kills, given.seed, lambda text: print(text, file=sys.stderr, flush=True))
    for text in found.wrong:
        print(f"wrong: {text}", file=sys.stderr)
    note = (
        f"{given.kills} kills of a run of {given.steps} steps with dropout, a running mean of the weights and a "
        f"checkpoint every 2 steps: of {len(found.lines)} logged steps {len(found.wrong)} numbers differ from the run "
        f"that was never killed, and the final weights are the same bytes."
    )
    facts = {"seconds": time.perf_counter() - begin, "steps": given.steps, "seed": given.seed}
    facts |= {"lines": len(found.lines), "wrong": found.wrong, "sha256": digest(folder / "whole")}
    facts |= {"kills": [vars(k) for k in found.kills]}
    publish("kill_resume", table(found), note=note, only_print=given.no_publish or bool(found.wrong), **facts)
    sys.exit(bool(found.wrong))


if __name__ == "__main__":
    main()
