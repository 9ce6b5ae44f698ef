"""A family against transformers: one tiny random checkpoint, run three ways, with every mask, by steps and in chunks.

Used by the tests of the families and by benchmarks/families.py: a file `test_family_<name>.py` has a table CASES.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import monograph as mg
import numpy as np
import onnxruntime as ort
import torch
import transformers
from monograph.frontends.task import Role, fill_stream
from monograph.ir.types import f32
from monograph.portable import first_state, next_state, slots_of

Array = np.ndarray[Any, Any]
Inputs = dict[str, Array]
Errors = dict[str, dict[str, float]]
"""By the way to run a model and by what is run."""
Draw = Callable[[str, torch.Tensor], "torch.Tensor | None"]

TOLERANCE = 1e-4
"""Largest error of a logit, as a share of the largest logit."""
ROWS, LENGTH, SOURCE = 3, 11, 9
STEPS, CHUNK = 16, 5
PROMPTS = np.array([7, 3, 5])
"""Tokens of each row before the first step."""

PYTORCH, PORTABLE, RUNTIME = "PyTorch", "portable", "ONNX Runtime"
RUNNERS = (PYTORCH, PORTABLE, RUNTIME)
MASKS, DECODE, CHUNKS = "masks", "decode", "chunks"
PARTS = (MASKS, DECODE, CHUNKS)

transformers.utils.logging.disable_progress_bar()


def masks(length: int) -> dict[str, Array]:
    """Which of `length` tokens count in each of the rows, i64, by the name of the kind."""
    counts = np.array([length, length // 2 + 1, 2])[:, None]
    columns, holes = np.arange(length)[None], np.ones((ROWS, length), np.int64)
    holes[0, 3:6] = holes[1, 1] = holes[2, [2, 4, length - 3]] = 0
    return {
        "ones": np.ones((ROWS, length), np.int64),
        "right": (columns < counts).astype(np.int64),
        "left": (columns >= length - counts).astype(np.int64),
        "hole": holes,
    }


@dataclass(frozen=True)
class Case:
    """A tiny model of transformers.

    architecture: its class. settings: of its config, whose class it knows. draw: (name, tensor) -> the values of a
    parameter or buffer that wants its own distribution, or None. masks: kinds that transformers gives a meaning.
    """

    architecture: str
    settings: Mapping[str, Any]
    draw: Draw = lambda name, tensor: None
    masks: tuple[str, ...] = ("ones", "right", "left", "hole")


def reference_model(case: Case, seed: int = 0) -> Any:
    """The model in evaluation mode, with weights under which every parameter moves the logits."""
    cls = getattr(transformers, case.architecture)
    model = cls(cls.config_class(**case.settings, attn_implementation="eager")).eval()
    rng = torch.Generator().manual_seed(seed)
    buffers = ((k, v) for k, v in model.named_buffers() if k in model.state_dict())
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *buffers):
            own = case.draw(name, tensor)
            tensor.copy_(_drawn(name, tensor, rng) if own is None else own)
    return model


def _drawn(name: str, tensor: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Weights of norms around one, biases a third of the values they are added to, products that keep the scale."""
    values = torch.randn(tensor.shape, generator=rng)
    if tensor.dim() < 2:
        return 1 + 0.3 * values if name.endswith("weight") else 0.3 * values
    if any(part in name for part in ("embed", "shared", "wte", "wpe", "relative_attention_bias", "token")):
        return values
    return values * (tensor[0].numel() ** -0.5)


class Pair:
    """The same weights in transformers and here."""

    def __init__(self, case: Case, folder: Path, seed: int = 0) -> None:
        self.case, self.folder = case, folder
        self.reference = reference_model(case, seed)
        self.reference.save_pretrained(folder / "checkpoint")
        self.model = mg.load(folder / "checkpoint")
        self.task = self.model.task
        self.graph = self.model.graph(f32)
        self.output = self.task.output
        self._accepted = inspect.signature(self.reference.forward).parameters
        self.vocabulary = int(case.settings.get("vocab_size", 0))

    @property
    def decodes(self) -> bool:
        return bool(self.task.generates)

    def inputs(self, mask: str, seed: int = 1) -> Inputs:
        """Values for every input of the graph under one kind of mask."""
        rng = np.random.default_rng(seed)
        given: Inputs = {}
        for stream in self.task.streams:
            length = LENGTH if stream is self.task.stream else SOURCE
            given[stream.ids] = rng.integers(0, self.vocabulary, (ROWS, length))
            given[stream.mask] = masks(length)[mask]
        given |= self.features(rng)
        return self.task.fill(given, self.graph.inputs)

    def features(self, rng: np.random.Generator) -> Inputs:
        """Values for inputs that are no tokens."""
        own = {k: v for k, v in self.graph.inputs.items() if self.task.role(k) is Role.features}
        sizes = {k: tuple(n if isinstance(n, int) else ROWS for n in v.shape) for k, v in own.items()}
        return {k: rng.standard_normal(sizes[k]).astype(np.float32) for k in own}

    def want(self, inputs: Inputs) -> Inputs:
        """What transformers gives for the outputs of the graph."""
        given = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in inputs.items() if k in self._accepted}
        with torch.no_grad():
            found = self.reference(**given)
        return {k: found[k].numpy() for k in self.graph.outputs if k in found}

    def valid(self, inputs: Inputs) -> Array:
        """bool [B,S]: the positions that count; all rows of an output without positions."""
        stream = self.task.stream
        return np.ones((ROWS, 1), bool) if stream is None else inputs[stream.mask] != 0

    # -- by steps: each row alone and without padding is what the batch must give --------------------------------

    def tokens(self) -> Array:
        """Token ids i64 [B, longest prompt + steps]."""
        return np.random.default_rng(2).integers(0, self.vocabulary, (ROWS, int(PROMPTS.max()) + STEPS))

    def source(self) -> Inputs:
        """What an encoder reads, padded on the right."""
        stream, rng = self.task.source, np.random.default_rng(3)
        given = self.features(rng)
        if stream is None:
            return given
        given[stream.ids], given[stream.mask] = rng.integers(0, self.vocabulary, (ROWS, SOURCE)), masks(SOURCE)["right"]
        fill_stream(given, stream)
        return {k: v for k, v in given.items() if k in self.graph.inputs}

    def alone(self) -> list[Array]:
        """Logits of each row at each of its tokens, from one forward of transformers without padding."""
        stream, source, tokens = self.task.stream, self.source(), self.tokens()
        found: list[Array] = []
        for row, count in enumerate(PROMPTS + STEPS):
            given = {stream.ids: tokens[row : row + 1, :count], **{k: v[row : row + 1] for k, v in source.items()}}
            found.append(self.want(self.task.fill(given, self.graph.inputs))[self.output][0])
        return found


class Runner(Protocol):
    """One way to run a model."""

    def full(self, inputs: Inputs) -> Inputs:
        """The outputs without a past."""
        ...

    def decode(self, chunk: int) -> Iterable[tuple[int, Array]]:
        """Read the prompts, then `chunk` tokens of each row at a time: (tokens after the prompt, logits [B,V])."""
        ...


class Torch:
    def __init__(self, pair: Pair) -> None:
        self.module = mg.to_torch(pair.model).eval()

    def full(self, inputs: Inputs) -> Inputs:
        with torch.no_grad():
            found = self.module(**{k: torch.from_numpy(np.array(v)) for k, v in inputs.items()})
        return {k: v.numpy() for k, v in found.items()}

    def decode(self, chunk: int) -> Iterable[tuple[int, Array]]:
        return ()


class Portable:
    """The exported files in plain sessions, fed by name as another client would."""

    def __init__(self, pair: Pair) -> None:
        self.pair, folder = pair, mg.export(pair.model, pair.folder / "portable")
        encoder = folder / "encoder_model.onnx"
        self.encoder = session(encoder) if encoder.exists() else None
        self.main = session(folder / ("decoder_model.onnx" if encoder.exists() else "model.onnx"))
        self.slots = slots_of(self.main)

    def full(self, inputs: Inputs) -> Inputs:
        encoded = self.encoded(inputs)
        return call(self.main, {**inputs, **encoded, **first_state(self.main, ROWS), **next_state(encoded, self.slots)})

    def encoded(self, inputs: Inputs) -> Inputs:
        return {} if self.encoder is None else call(self.encoder, inputs)

    def decode(self, chunk: int) -> Iterable[tuple[int, Array]]:
        """Rows are padded on the left, so that all of them end in the same column."""
        task, longest, tokens = self.pair.task, int(PROMPTS.max()), self.pair.tokens()
        starts = longest - PROMPTS
        padded = np.stack([np.roll(row, start) for row, start in zip(tokens, starts, strict=True)])
        mask = (np.arange(padded.shape[1])[None] >= starts[:, None]).astype(np.int64)
        given = {**(source := self.pair.source()), **(encoded := self.encoded(source))}
        state = {**first_state(self.main, ROWS), **next_state(encoded, self.slots)}
        every = {task.stream.ids: padded, task.stream.mask: mask}
        fill_stream(every, task.stream)
        for begin in (0, *range(longest, longest + STEPS - chunk + 1, chunk)):
            end = begin + chunk if begin else longest
            now = {k: v[:, begin:end] for k, v in every.items()} | {task.stream.mask: mask[:, :end]}
            found = call(self.main, {**given, **now, **state})
            state |= next_state(found, self.slots)
            yield end - longest, found[self.pair.output][:, -1]


class Served:
    """The folder that `build` makes, in a session of ours."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.session = mg.build(pair.model, pair.folder / "served", threads=1).session

    def full(self, inputs: Inputs) -> Inputs:
        return self.session.run(inputs)

    def decode(self, chunk: int) -> Iterable[tuple[int, Array]]:
        tokens, rows = self.pair.tokens(), np.arange(ROWS)[:, None]
        if source := self.pair.source():
            self.session.encode(source)
        yield 0, self.session.prefill(tokens[:, : int(PROMPTS.max())], PROMPTS)
        for done in range(0, STEPS - chunk + 1, chunk):
            new = tokens[rows, PROMPTS[:, None] + done + np.arange(chunk)]
            yield done + chunk, self.session.step(new[:, 0]) if chunk == 1 else self.session.append(new)


def session(file: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def call(session: Any, given: Mapping[str, Array]) -> Inputs:
    names = [o.name for o in session.get_outputs()]
    feeds = {i.name: np.ascontiguousarray(given[i.name]) for i in session.get_inputs()}
    return dict(zip(names, session.run(names, feeds), strict=True))


MAKE: dict[str, Callable[[Pair], Runner]] = {PYTORCH: Torch, PORTABLE: Portable, RUNTIME: Served}


def mask_errors(pair: Pair, runner: Runner) -> dict[str, float]:
    """The largest error at positions that count, by kind of mask."""
    found: dict[str, float] = {}
    for kind in pair.case.masks if pair.task.streams else ("ones",):
        inputs = pair.inputs(kind)
        valid, got = pair.valid(inputs), runner.full(inputs)
        found[kind] = 0.0
        for name, want in pair.want(inputs).items():
            assert got[name].shape == want.shape, f"{name}, {kind}: {got[name].shape}, expected {want.shape}"
            kept = valid if want.shape[:2] == valid.shape else slice(None)
            found[kind] = max(found[kind], error(got[name][kept], want[kept]))
    return found


def decode_error(pair: Pair, runner: Runner, chunk: int) -> float:
    """The largest error after the prompts and after each `chunk` tokens behind them."""
    alone = pair.alone()
    scale = max(float(np.abs(row).max()) for row in alone)
    worst = 0.0
    for done, got in runner.decode(chunk):
        want = np.stack([row[count + done - 1] for row, count in zip(alone, PROMPTS, strict=True)])
        worst = max(worst, error(got, want, scale))
    return worst


def error(got: Array, want: Array, scale: float | None = None) -> float:
    """The largest difference as a share of the largest number; infinite where it is no number."""
    difference = float(np.abs(got.astype(np.float64) - want).max()) / (scale or float(np.abs(want).max()))
    return difference if np.isfinite(difference) else float("inf")


def errors(case: Case, folder: Path, runners: Iterable[str] = RUNNERS, parts: Iterable[str] = PARTS) -> Errors:
    """The largest error by runner and part; parts that a runner or a model does not have are left out."""
    pair, wanted = Pair(case, folder), tuple(parts)
    found: Errors = {}
    for name in runners:
        runner = MAKE[name](pair)
        row = {f"{MASKS}: {kind}": e for kind, e in mask_errors(pair, runner).items()} if MASKS in wanted else {}
        if pair.decodes and name != PYTORCH:
            row |= {part: decode_error(pair, runner, n) for part, n in ((DECODE, 1), (CHUNKS, CHUNK)) if part in wanted}
        found[name] = row
    return found


def check(case: Case, folder: Path, **only: Iterable[str]) -> None:
    """Assert that every way to run the model agrees with transformers. only: `runners`, `parts`."""
    for name, row in errors(case, folder, **only).items():
        for part, found in row.items():
            assert found <= TOLERANCE, f"{name}, {part}: {found:.1e} of the largest logit"
