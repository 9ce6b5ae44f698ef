"""Decoding on a CUDA device in f16, bf16, int4 and f32: same ids as the CPU, captured and not, shares of its bandwidth.

All of it is one run of eight minutes at most; what does not fit is left out and said. Without a device there are no
figures: it ends with the reason.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
from monograph.assets import fetch
from monograph.backends.onnxruntime import Session
from monograph.backends.onnxruntime import open as open_session
from monograph.backends.onnxruntime.files import DATA
from monograph.backends.onnxruntime.held import bytes_of
from monograph.backends.onnxruntime.memory_cuda import CudaMemory, DeviceBuffer
from monograph.backends.onnxruntime.options import check_device
from monograph.console import out
from monograph.frontends.dsl import Model, load_family
from monograph.frontends.huggingface import save_pretrained
from monograph.inference.prompts import rows_of
from monograph.ir import DType, MonographError
from monograph.ir.encoded import Encoded
from monograph.ir.encodings import Encoding
from monograph.ir.tensors import ArrayTensor, Tensor
from monograph.ir.types import TensorType, f32
from monograph.ir.weights import Weights
from monograph.machine import median
from monograph.passes.quantize.rounding import Nearest
from report import WORK, Row, parser, publish

Array = np.ndarray[Any, Any]
PRECISIONS: dict[str, dict[str, Any]] = {
    "f16": {"dtype": "f16"},
    "bf16": {"dtype": "bf16"},
    "int4": {"quantize": "int4", "dtype": "f16"},
    "f32": {"dtype": "f32"},
}
TEXTS = ("The capital of France is", "def fibonacci(n):", "Once upon a time, in a small village,")
LOADS = ((1, 128), (1, 2048), (8, 128), (8, 2048))
"""Rows, and tokens that each has read before the steps that are measured."""
BILLION = {"vocab": 128_256, "dim": 2048, "layers": 16, "heads": 32, "kv_heads": 8, "head_dim": 64, "ffn": 8192,
           "max_positions": 4096, "tied": True}  # fmt: skip
WARM, STEPS, ROUNDS, PREFILL = 8, 32, 3, 512
LAST = 45
"""Seconds that must be left for a measurement to begin."""
CODES = "int4(block=32,scale=f16)"
COPIED = 1 << 30
"""Bytes of the array that is copied to measure bandwidth."""


@dataclass(frozen=True)
class Subject:
    """A model to measure. prompts: ids that it goes on from, `greedy` times each, on both devices. precisions: those
    that it is built in; in int4 its weights may be in blocks already."""

    name: str
    model: Model
    prompts: list[list[int]]
    greedy: int
    precisions: tuple[str, ...] = tuple(PRECISIONS)


@dataclass
class Clock:
    """Seconds that are left of a budget."""

    seconds: float
    start: float = field(default_factory=time.perf_counter)

    @property
    def left(self) -> float:
        return self.seconds - (time.perf_counter() - self.start)


def smollm2(path: str) -> Subject:
    """SmolLM2-135M, with the weights as plain numbers: in its file they are in blocks."""
    folder = WORK / "smollm2-f32"
    if not (folder / "config.json").exists():
        save_pretrained(mg.load(path or fetch("smollm2")), folder, dtype=DType.f32)
    model = mg.load(folder)
    return Subject("SmolLM2 135M", model, rows_of(list(TEXTS), model.tokenizer), 128)


def billion() -> Subject:
    """A llama of 1.24 billion weights, a million random numbers again and again."""
    model = load_family("llama")(**BILLION)
    drawn = np.random.default_rng(0).standard_normal((1 << 20) + 7, np.float32)
    found: dict[str, Array] = {}
    for name, shape in shapes_of(model).items():
        x = np.resize(drawn, shape)
        found[name] = 1 + 0.01 * x if len(shape) == 1 else x * np.float32(shape[-1] ** -0.5)
    model = dataclasses.replace(model, weights=Weights.of(found))
    return Subject("llama 1.2B, random", model, [list(range(3, 40))], 16, ("f16", "bf16", "f32"))


def billion_codes() -> Subject:
    """The same in int4: random codes, for rounding a billion weights would take the time that there is."""
    model, encoding = load_family("llama")(**BILLION), Encoding.parse(CODES)
    rng = np.random.default_rng(0)
    found: dict[str, Tensor] = {}
    for name, shape in shapes_of(model).items():
        if len(shape) == 1:
            found[name] = ArrayTensor(np.ones(shape, np.float32))
            continue
        along = encoding.along(-1, 2)
        some = rng.standard_normal((1024, shape[1]), np.float32) * np.float32(shape[1] ** -0.5)
        lines = Nearest().lines(name, some, along)
        lines = lines[rng.integers(0, len(lines), shape[0])]
        found[name] = Encoded(ArrayTensor(lines), TensorType(f32, shape, along))
    model = dataclasses.replace(model, weights=Weights(found))
    return Subject("llama 1.2B, random", model, [list(range(3, 40))], 16, ("int4",))


def coded(model: Model) -> bool:
    """Whether weights are in blocks already."""
    return model.weights is not None and any(t.type.encoding is not None for t in model.weights.values())


def shapes_of(model: Model) -> dict[str, tuple[int, ...]]:
    return {k: tuple(int(str(n)) for n in v.shape) for k, v in model.graph().params.items()}


# -- the same ids ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """What the CPU says in f32: ids and the logits they were chosen from, for each prompt."""

    ids: list[list[int]]
    logits: list[Array]


def told(subject: Subject, folder: Path) -> Told:
    """Greedy ids and logits [N,V] on the CPU."""
    with mg.build(subject.model, folder, target="cpu") as engine:
        session, ids, logits = engine.session, list[list[int]](), list[Array]()
        for prompt in subject.prompts:
            found = [session.prefill(np.array([prompt]), [len(prompt)])[0].copy()]
            for _ in range(subject.greedy - 1):
                found.append(session.step([int(found[-1].argmax())])[0])
            ids.append([int(x.argmax()) for x in found])
            logits.append(np.stack(found))
    shutil.rmtree(folder)
    return Told(ids, logits)


def verified(session: Session, subject: Subject, expected: Told) -> Row:
    """How many ids are those of the CPU where both have read the same, and how far logits are off."""
    same = total = 0
    worst = 0.0
    for prompt, ids, logits in zip(subject.prompts, expected.ids, expected.logits, strict=True):
        found = session.prefill(np.array([prompt]), [len(prompt)])[0]
        for number, (id, wanted) in enumerate(zip(ids, logits, strict=True)):
            if number:
                found = session.step([ids[number - 1]])[0]
            same, total = same + (int(found.argmax()) == id), total + 1
            worst = max(worst, float(np.abs(found - wanted).max() / np.abs(wanted).max()))
    return {"ids as on the CPU": f"{same} of {total}", "logits off by": worst}


# -- speed -------------------------------------------------------------------------------------------------------------


def bandwidth(memory: CudaMemory, size: int = COPIED, rounds: int = 10) -> float:
    """Bytes read and written in a second by a copy on the device; the best of some."""
    count, unit = size // 4, np.dtype(np.int32)
    arrays = [memory.allocate((count,), unit) for _ in range(2)]
    source, target = (a.seen((count,)) for a in arrays if isinstance(a, DeviceBuffer))
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        memory.once("copy", {"x": source}, {"y": target}, unit)
        best = min(best, time.perf_counter() - start)
    return 2 * size / best


def prefill_speed(session: Session, vocab: int, length: int) -> float:
    """Tokens of a prompt in a second, after one to warm up."""
    prompt = np.random.default_rng(0).integers(0, vocab, (1, length))
    seconds: list[float] = []
    for _ in range(1 + ROUNDS):
        start = time.perf_counter()
        session.prefill(prompt, [length])
        seconds.append(time.perf_counter() - start)
    return length / median(seconds[1:])


def steps(session: Session, vocab: int, rows: int, context: int) -> tuple[float, list[list[int]]]:
    """(seconds of a greedy step, the ids of all of them); only ids leave the device."""
    prompts = np.random.default_rng(1).integers(0, vocab, (rows, context))
    tokens = session.prefill(prompts, np.full(rows, context)).argmax(-1)
    ids, seconds = list[list[int]](), list[float]()
    for round in range(1 + ROUNDS):
        count = STEPS if round else WARM
        start = time.perf_counter()
        for _ in range(count):
            tokens = session.step_greedy(tokens)
            ids.append(tokens.tolist())
        seconds.append((time.perf_counter() - start) / count)
    return median(seconds[1:]), ids


def read_bytes(session: Session, rows: int, context: int) -> int:
    """Bytes that a step reads at least: the weights once, and what each row remembers."""
    weights = (session.folder / DATA).stat().st_size
    return weights + rows * sum(bytes_of(s, context) for s in session.contract.slots)


def measured(subject: Subject, precision: str, folder: Path, expected: Told, peak: float, clock: Clock, target: str,
             loads: tuple[tuple[int, int], ...] = LOADS) -> Iterator[Row]:  # fmt: skip
    """Rows of the table for one model in one precision."""
    head: dict[str, Any] = {"model": subject.name, "precision": precision}
    if clock.left < LAST:
        yield {**empty(head), "note": "not measured: the time is up"}
        return
    try:
        built = {k: v for k, v in PRECISIONS[precision].items() if k != "quantize" or not coded(subject.model)}
        mg.build(subject.model, folder, target=target, **built).close()
        capacity = max(c for _, c in loads) + WARM + ROUNDS * STEPS + 1
        plain = open_session(folder, capacity=capacity, capture=False)
        same = verified(plain, subject, expected)
        vocab = expected.logits[0].shape[-1]
        prompt = prefill_speed(plain, vocab, PREFILL)
        eager = {load: steps(plain, vocab, *load) for load in loads}
        del plain
        session = open_session(folder, capacity=capacity, capture="check")
        for load in loads:
            yield {**head, **same, **speeds(session, load, eager[load], vocab, peak), "prompt tokens/s": prompt}
    except MonographError as e:
        yield {**empty(head), "note": str(e).splitlines()[0]}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def speeds(
    session: Session, load: tuple[int, int], eager: tuple[float, list[list[int]]], vocab: int, peak: float
) -> dict[str, Any]:
    """Steps of a session that captures, beside those of one that does not."""
    rows, context = load
    captured = steps(session, vocab, rows, context) if session.captured else None
    seconds = captured[0] if captured else eager[0]
    agree = "" if captured is None else "captured ids as eager" if captured[1] == eager[1] else "captured ids DIFFER"
    return {
        "rows": rows,
        "context": context,
        "step (ms)": 1e3 * eager[0],
        "captured step (ms)": 1e3 * captured[0] if captured else None,
        "tokens/s": rows / seconds,
        "of bandwidth": read_bytes(session, rows, context) / seconds / peak,
        "note": agree or str(session.captured).splitlines()[0],
    }


def empty(head: dict[str, Any]) -> dict[str, Any]:
    """A row without figures."""
    names = ("ids as on the CPU", "logits off by", "rows", "context", "step (ms)", "captured step (ms)", "tokens/s",
             "of bandwidth", "prompt tokens/s")  # fmt: skip
    return {**head, **dict.fromkeys(names)}


def run(subjects: list[Callable[[], Subject]], precisions: list[str], clock: Clock, target: str = "cuda") -> Row:
    """Everything: the rows of the table, and the bandwidth before and after them."""
    check_device(target)
    memory = CudaMemory()
    before = bandwidth(memory)
    rows: list[Row] = []
    for make in subjects:
        if clock.left < LAST:
            continue
        subject = make()
        expected = told(subject, WORK / "cuda-told")
        for precision in (p for p in subject.precisions if p in precisions):
            out().print(f"{subject.name} {precision}: {clock.left:.0f} s left", markup=False)
            rows += measured(subject, precision, WORK / "cuda", expected, before, clock, target)
    return {"rows": rows, "bandwidth": [before, bandwidth(memory)]}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--smollm2", default="", help="its GGUF file, where it cannot be fetched")
    options.add_argument("--only", choices=("smollm2", "billion"), help="one of the two models")
    options.add_argument("--precisions", nargs="+", choices=[*PRECISIONS], default=[*PRECISIONS])
    options.add_argument("--minutes", type=float, default=8.0, help="no measurement begins after so many")
    given = options.parse_args()
    makes: dict[str, list[Callable[[], Subject]]] = {
        "smollm2": [lambda: smollm2(given.smollm2)],
        "billion": [billion, billion_codes],
    }
    chosen = [make for name, some in makes.items() if given.only in (None, name) for make in some]
    try:
        found = run(chosen, given.precisions, Clock(60 * given.minutes))
    except MonographError as e:
        sys.exit(f"{type(e).__name__}: {e}")
    first, last = (b / 1e9 for b in found["bandwidth"])
    note = (
        f"A copy on the device moves {first:,.0f} GB/s before and {last:,.0f} GB/s after. Medians of {ROUNDS} rounds "
        f"of {STEPS} greedy steps; ids where CPU (f32) and device have read the same; a step reads weights and caches."
    )
    publish("cuda", found["rows"], note=note, only_print=given.no_publish, bandwidth=found["bandwidth"])


if __name__ == "__main__":
    main()
