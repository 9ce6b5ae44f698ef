"""What is written about a run while it goes: JSON lines, TensorBoard events if asked for, and a plot at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from ..data.tables import is_table
from ..ir.documents import parse_json
from ..ir.errors import ConfigError
from ..ir.files import staged
from .progress import Step

LOG, PLOT, EVENTS = "log.jsonl", "loss.png", "tensorboard"


class Log:
    """Appends one line of JSON a step to log.jsonl; of a resumed run, after the line of step `done`.

    A number that is not finite is written as null.

    tensorboard: also write event files. Raises ConfigError if TensorBoard is not installed.
    """

    def __init__(self, folder: Path, done: int = 0, *, tensorboard: bool = False) -> None:
        self.events = _events(folder / EVENTS, done) if tensorboard else None
        folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_log(folder) if line["step"] <= done]
        with staged(folder) as stage, stage.open(LOG) as f:
            f.writelines((json.dumps(line) + "\n").encode() for line in kept)
        self.file = (folder / LOG).open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        for part in filter(None, (self.file, self.events)):
            # What a full disk could not take was told by the write before, whose error is on its way.
            with contextlib.suppress(OSError):
                part.close()

    def write(self, step: Step) -> None:
        """The line is on its way to the disk before a checkpoint of the same step is."""
        values = {k: _finite(v) for k, v in dataclasses.asdict(step).items() if v is not None}
        self.file.write(json.dumps(values, allow_nan=False) + "\n")
        self.file.flush()
        if self.events is not None:
            for name, value in step.numbers().items():
                self.events.add_scalar(name, value, step.step)

    def flush(self) -> None:
        """Before a checkpoint is written: a resumed run does not write the events before it again."""
        if self.events is not None:
            self.events.flush()


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """The steps that log.jsonl tells of, each once and in order; a line that a kill cut off is left out."""
    path = Path(folder) / LOG
    found: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            values = parse_json(line)
            found[int(values["step"])] = values
        except (ValueError, KeyError, TypeError):
            continue
    return [found[step] for step in sorted(found)]


def plot_losses(folder: str | Path) -> Path:
    """Write loss.png from log.jsonl: losses and, below, the learning rate. Raises ConfigError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("a plot needs matplotlib", hint='pip install "monograph[plot]"') from None
    lines = read_log(folder)
    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    losses.plot([x["step"] for x in lines], [x["loss"] for x in lines], lw=0.8, label="training")
    measured = [x for x in lines if "held_out" in x]
    if measured:
        losses.plot([x["step"] for x in measured], [x["held_out"] for x in measured], "o-", label="held out")
    losses.set(ylabel="nats per label")
    losses.grid(alpha=0.3)
    losses.legend()
    rates.plot([x["step"] for x in lines], [x["learning_rate"] for x in lines])
    rates.set(xlabel="step", ylabel="learning rate")
    with staged(folder) as stage, stage.open(PLOT) as f:
        cast(Any, figure).savefig(f, format="png", dpi=110)
    return Path(folder) / PLOT


def _finite(value: Any) -> Any:
    """JSON has no numbers that are not finite: the gradient norm of an f16 step that was left out becomes null."""
    if is_table(value):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _events(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("events need TensorBoard", hint='pip install "monograph[tensorboard]"') from None
    return SummaryWriter(folder, purge_step=done + 1)


def perplexity(loss: float) -> float:
    """exp(loss), and infinity where that is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf
