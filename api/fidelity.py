"""What quantization costs: perplexity, divergence and greedy tokens of what was built, beside those of its model."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .backends.onnxruntime.contract import FILE as CONTRACT
from .budgets import exponential, log_softmax
from .building import weights_of
from .frontends.dsl import Model
from .frontends.task import LOGITS
from .ir.display import Shown, Table, size
from .ir.errors import ConfigError
from .ir.silent import silent
from .ir.slots import TARGETS, TOKENS
from .ir.tensors import Array
from .passes.quantize.stream import Stream
from .runners import Portable
from .samples import WINDOW, Reader, Sample, samples_of
from .texts import Text, named

if TYPE_CHECKING:
    from .inference.engine import Engine

READ, PROMPTS, NEW = 4000, 8, 32
"""Tokens of text that are read; texts that are continued, and by how many tokens."""

_ROWS = 64
"""Positions whose logits are compared at a time."""


@dataclass(frozen=True, repr=False)
class Quality(Shown):
    """How near a built folder is to its model on a text.

    tokens: read in windows of `window`, each of which starts anew. perplexity: of the folder, of the tokens after the
    first of each window; before: that of the model (None: it was not given, or no model of text that goes on).
    agreement: share of positions whose likeliest token is that of the model. divergence: mean KL divergence of the
    folder's tokens from the model's, in nats. greedy: share of the tokens that the folder chose in its own texts
    (`prompts` of `new` tokens each) which the model would have chosen there. error: relative, of an output that is no
    logits. bytes: of the folder's data; bytes_before: of the model's weights. seconds: of
    measuring.
    """

    text: str
    tokens: int
    window: int
    perplexity: float | None = None
    before: float | None = None
    agreement: float | None = None
    divergence: float | None = None
    greedy: float | None = None
    prompts: int = 0
    new: int = 0
    error: float | None = None
    bytes: int = 0
    bytes_before: int = 0
    seconds: float = 0.0

    @property
    def rise(self) -> float | None:
        """Share by which perplexity is higher than before; None also where the model's is no finite number."""
        if self.perplexity is None or self.before is None or not math.isfinite(self.before):
            return None
        return self.perplexity / self.before - 1

    def table(self) -> Table:
        """What was measured, on what."""
        rows = [("text", f"{self.text}, {self.tokens:,} tokens in windows of {self.window}")]
        if self.perplexity is not None:
            before = "" if self.before is None else f", before {self.before:.3f}"
            before += "" if self.rise is None else f" ({100 * self.rise:+.2f} %)"
            rows.append(("perplexity", f"{self.perplexity:.3f}{before}"))
        shares = {"likeliest token equal": self.agreement, "greedy tokens equal": self.greedy}
        rows += [(k, f"{100 * v:.2f} %") for k, v in shares.items() if v is not None]
        rows += [("divergence", f"{self.divergence:.4f} nats")] if self.divergence is not None else []
        rows += [("error of the output", f"{100 * self.error:.2f} %")] if self.error is not None else []
        before = f", before {size(self.bytes_before)}" if self.bytes_before else ""
        return Table("quality", [*rows, ("weights", f"{size(self.bytes)}{before}")])

    def to_json(self) -> str:
        """As it stands in `quality.json`: null is what was not measured, or is no finite number."""
        said = {**asdict(self), "rise": self.rise}
        said = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in said.items()}
        return json.dumps(said, indent=2) + "\n"


def quality(
    built: str | Path | Engine,
    text: Text,
    *,
    against: Model | str | Path | None = None,
    tokens: int = READ,
    window: int = WINDOW,
    prompts: int = PROMPTS,
    new: int = NEW,
    observe: Callable[[str], None] | None = None,
) -> Quality:
    """Measure a built folder on a text; beside its model, if that is given.

    built: an engine or its folder, run as it serves, activations in 8 bits and all, or the folder of a portable export,
    run by ordinary sessions of ONNX Runtime; then `against` is needed. text: a text, several, or a file. against: the
    model before quantization, which runs layer by layer and is never in memory as a whole. observe: called with what
    runs. Raises ConfigError for a text without tokens, or a model that reads none, RuntimeInputError for a folder that
    cannot run here.
    """
    from .resolve import load

    observe, begun = observe or silent, time.perf_counter()
    model = None if against is None else load(against)
    folder = _measured(built, model)
    rows = folder.reader.first(text, tokens, window)
    own: list[list[int]] = []
    if model is not None and folder.reader.generates and not folder.encodes:
        observe("greedy tokens")
        own = folder.continued(rows, prompts, new)
    observe("the folder" if model is None else "the model, layer by layer")
    tally = _Tally(folder)
    with tempfile.TemporaryDirectory(prefix="monograph-") as scratch:
        expected = _expected(model, folder, [*rows, *own], Path(scratch))
        for row in rows:
            tally.read(row, next(expected))
        for row in own:
            tally.chose(row, next(expected), new)
    return Quality(
        named(text),
        sum(map(len, rows)),
        window,
        **tally.result(),
        prompts=len(own),
        new=new if own else 0,
        bytes=_bytes(folder.place),
        bytes_before=0 if model is None else weights_of(model).bytes,
        seconds=time.perf_counter() - begun,
    )


class _Measured(Protocol):
    """A folder that is measured: how it reads text, its main output, and what it makes of ids."""

    place: Path
    reader: Reader
    output: str
    encodes: bool

    def run(self, row: Sequence[int], beside: Sample) -> Array:
        """The main output for a row of ids, [S,...]. beside: what the model was given, for inputs that are no ids."""
        ...

    def continued(self, rows: Sequence[Sequence[int]], prompts: int, new: int) -> list[list[int]]:
        """The beginnings of some rows, each with the `new` tokens that the folder chooses behind it."""
        ...


def _measured(built: str | Path | Engine, model: Model | None) -> _Measured:
    from .building import open as open_engine

    if not isinstance(built, (str, Path)):
        return _Folder(built)
    if (Path(built) / CONTRACT).exists() or not any(Path(built).rglob("*.onnx")):
        return _Folder(open_engine(built))
    if model is None:
        raise ConfigError(
            "is a portable export, which is measured beside its model", place=str(built), hint="--against"
        )
    return _Export(Path(built), model)


def _begins(reader: Reader, rows: Sequence[Sequence[int]], prompts: int, new: int) -> list[list[int]]:
    """Beginnings of rows, and where there are too few rows, pieces from inside of them."""
    room = reader.positions - new
    begins = [list(row[: max(2, min(len(row) // 2, room, 64))]) for row in rows[:prompts]]
    while len(begins) < prompts and any(len(row) > 64 for row in rows):
        at = 64 * (1 + len(begins) // len(rows))
        begins.append(list(rows[len(begins) % len(rows)][at : at + 64]) or begins[0])
    return begins


class _Folder:
    """A built folder, as its engine serves it."""

    def __init__(self, engine: Engine) -> None:
        self.session, contract = engine.session, engine.session.contract
        self.place, self.encodes = engine.folder, bool(contract.encoder)
        generates = contract.kind == "decoder"
        positions = contract.positions or 2**31
        self.reader = Reader.of(
            contract.family, engine.tokenizer, positions, generates=generates, source=bool(contract.encoder)
        )
        taken = {k for types in contract.inputs.values() for k in types}
        streams = [s for s in (contract.stream, TOKENS, TARGETS) if s is not None]
        self.ids = [k for k in dict.fromkeys(s.ids for s in streams) if k in taken]
        self.output = contract.output
        if not self.ids:
            raise ConfigError(f"{contract.family} is a {contract.task} model, which reads no text")

    def run(self, row: Sequence[int], beside: Sample) -> Array:
        """See `_Measured`."""
        given = {k: np.array([row], np.int64) for k in self.ids}
        taken = {k for types in self.session.contract.inputs.values() for k in types}
        features = {k: v for k, v in beside.items() if k in taken and v.dtype.kind == "f"}
        return self.session.run({**given, **features})[self.output][0]

    def continued(self, rows: Sequence[Sequence[int]], prompts: int, new: int) -> list[list[int]]:
        """See `_Measured`."""
        found: list[list[int]] = []
        for begin in _begins(self.reader, rows, prompts, new):
            chosen = self.session.prefill(np.array([begin]), np.array([len(begin)])).argmax(-1)
            for _ in range(new - 1):
                begin.append(int(chosen[0]))
                chosen = self.session.step(chosen).argmax(-1)
            found.append([*begin, int(chosen[0])])
        return found


class _Export:
    """A portable folder, as any client of ONNX Runtime runs it."""

    def __init__(self, folder: Path, model: Model) -> None:
        self.place, self.model, self.output = folder, model, model.task.output
        self.reader = Reader.of_model(model)
        self.file = Portable(folder, model.graph())
        self.encodes = self.file.encoder is not None

    def run(self, row: Sequence[int], beside: Sample) -> Array:
        """See `_Measured`."""
        source, state = self.file.begin(beside)
        return self.file.read(beside, (0, len(row)), {**source, **state})[0][self.output][0]

    def continued(self, rows: Sequence[Sequence[int]], prompts: int, new: int) -> list[list[int]]:
        """See `_Measured`."""
        found: list[list[int]] = []
        for ids in _begins(self.reader, rows, prompts, new):
            state, known = self.file.begin(samples_of(self.model, [ids])[0])[1], 0
            for _ in range(new):
                results, state = self.file.read(samples_of(self.model, [ids])[0], (known, len(ids)), state)
                known = len(ids)
                ids.append(int(results[self.output][0, -1].argmax()))
            found.append(ids)
        return found


def _expected(
    model: Model | None, folder: _Measured, rows: Sequence[Sequence[int]], scratch: Path
) -> Iterator[tuple[Sample, Array | None]]:
    """The inputs of the model for each row, and its main output [S,...]; nothing and None where there is none."""
    if model is None:
        yield from (({}, None) for _ in rows)
        return
    samples = samples_of(model, rows)
    stream = Stream(model.graph(), weights_of(model), samples, scratch)
    for sample, outputs in zip(samples, stream.outputs(), strict=True):
        yield sample, outputs[folder.output][0]


class _Tally:
    """Sums over all positions that were compared."""

    def __init__(self, folder: _Measured) -> None:
        self.folder = folder
        self.count = self.predicted = self.chosen = 0
        self.surprise = self.before = self.equal = self.divergence = self.same = 0.0
        self.error = self.scale = 0.0
        self.compared = False

    def read(self, row: Sequence[int], given: tuple[Sample, Array | None]) -> None:
        """Compare a window of the text."""
        sample, wide = given
        found = self.folder.run(row, sample)
        self.compared |= wide is not None
        if self.folder.output != LOGITS or found.ndim != 2:
            if wide is not None:
                self.error += float(np.square(found.astype(np.float64) - wide).sum())
                self.scale += float(np.square(wide, dtype=np.float64).sum())
            return
        targets = np.array(row[1:]) if self.folder.reader.generates else None
        for at in range(0, len(found), _ROWS):
            self._logits(found[at : at + _ROWS], None if wide is None else wide[at : at + _ROWS],
                         None if targets is None else targets[at : at + _ROWS])  # fmt: skip

    def _logits(self, found: Array, wide: Array | None, targets: Array | None) -> None:
        narrow = log_softmax(found)
        expected = None if wide is None else log_softmax(wide)
        if targets is not None and len(targets):
            places = np.arange(len(targets)), targets
            self.surprise -= float(narrow[places].sum())
            self.before -= 0.0 if expected is None else float(expected[places].sum())
            self.predicted += len(targets)
        if expected is not None:
            self.divergence += float((np.exp(expected) * (expected - narrow)).sum())
            self.equal += float((expected.argmax(-1) == narrow.argmax(-1)).sum())
            self.count += len(found)

    def chose(self, row: Sequence[int], given: tuple[Sample, Array | None], new: int) -> None:
        """Compare the last `new` tokens of a row, which the folder chose, with those of the model."""
        wide = given[1]
        if wide is not None:
            self.same += float((wide[-new - 1 : -1].argmax(-1) == np.array(row[-new:])).sum())
            self.chosen += new

    def result(self) -> dict[str, Any]:
        """The fields of Quality that were measured."""
        known = self.predicted
        return {
            "perplexity": exponential(self.surprise / known) if known else None,
            "before": exponential(self.before / known) if known and self.compared else None,
            "agreement": self.equal / self.count if self.count else None,
            "divergence": self.divergence / self.count if self.count else None,
            "greedy": self.same / self.chosen if self.chosen else None,
            "error": (self.error / self.scale) ** 0.5 if self.scale else None,
        }


def _bytes(folder: Path) -> int:
    """Of the data files of a folder, or of its graphs where they hold their weights themselves."""
    data = [f.stat().st_size for f in folder.rglob("*.onnx*data")]
    return sum(data) or sum(f.stat().st_size for f in folder.rglob("*.onnx"))
