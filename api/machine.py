"""What this machine is and what it can do at most: cores, memory, measured bandwidth and arithmetic."""

from __future__ import annotations

import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class Ceilings:
    """Measured limits of the machine: bytes read and float32 operations per second, with this many threads."""

    bandwidth: float
    flops: float
    threads: int

    def best(self, other: Ceilings) -> Ceilings:
        """The higher of two measurements: a busy moment only ever lowers them."""
        return Ceilings(max(self.bandwidth, other.bandwidth), max(self.flops, other.flops), self.threads)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Physical memory, or the limit of the control group if that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(text)) if text.isdigit() else total


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def resident_memory() -> int:
    """Bytes of this process that are in memory now; where the system tells only the peak, that."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else peak_memory()


def peak_memory() -> int:
    """Most bytes of resident memory this process has had so far."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if platform.system() == "Darwin" else used * 1024


def reset_peak() -> None:
    """Let `peak_memory` count from what is resident now, where the system can do that."""
    marks = Path("/proc/self/clear_refs")
    if marks.exists():
        marks.write_text("5")


def measure(
    threads: int | None = None, *, megabytes: int = 512, size: int = 2048, rounds: int = 5, working_set: int = 0
) -> Ceilings:
    """Read arrays and multiply matrices with ONNX Runtime and, where it is installed, PyTorch, `rounds` times each; the
    best counts.

    The best, not the median: a limit is what the machine can do, and neighbours only take away from it; nor is one
    library the machine (PyTorch's product reaches half of ONNX Runtime's on some processors). Arrays are
    read by a sum and by a product with a vector, and have `megabytes` and, if that is given, the bytes of
    `working_set`: what is small enough stays in the caches, which are faster than memory.
    """
    threads = threads or cores()
    found = _measure_in_runtime(threads, megabytes, size, rounds)
    if not has_torch():
        return found
    import torch

    from .backends.torch.limits import peak_bandwidth, peak_flops

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        amounts = {megabytes * 1_000_000, *([working_set] if 0 < working_set < megabytes * 1_000_000 else [])}
        bandwidth = max(peak_bandwidth(amount, rounds=rounds) for amount in amounts)
        flops = max(peak_flops(size=n, rounds=rounds) for n in (max(size // 2, 1), size))
    finally:
        torch.set_num_threads(before)
    return found.best(Ceilings(bandwidth, flops, threads))


def has_torch() -> bool:
    """Whether PyTorch is installed. It is not imported."""
    try:
        return importlib.util.find_spec("torch") is not None
    except ImportError:  # Something hides it.
        return False


def _measure_in_runtime(threads: int, megabytes: int, size: int, rounds: int) -> Ceilings:
    """The same with a sum and a product of ONNX Runtime."""
    from onnx import TensorProto, helper

    from .backends import ort

    def session(op: str, shapes: list[list[int]], **attributes: Any) -> Any:
        names = [f"x{i}" for i in range(len(shapes))]
        inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(names, shapes, strict=True)]
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph([helper.make_node(op, names, ["y"], **attributes)], "limit", inputs, [output])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        options = ort.library().SessionOptions()
        options.intra_op_num_threads = threads
        content = bytes(model.SerializeToString())
        return ort.library().InferenceSession(content, options, providers=["CPUExecutionProvider"])

    count, value = megabytes * 250_000, ort.library().OrtValue.ortvalue_from_numpy
    read, multiply = session("ReduceSum", [[count]], keepdims=0), session("MatMul", [[size, size]] * 2)
    long, square = value(np.ones(count, np.float32)), value(np.ones((size, size), np.float32))
    reading = min(seconds(lambda: read.run_with_ort_values(["y"], {"x0": long})) for _ in range(rounds))
    feeds = {"x0": square, "x1": square}
    product = min(seconds(lambda: multiply.run_with_ort_values(["y"], feeds)) for _ in range(rounds + 1))
    return Ceilings(4 * count / reading, 2 * size**3 / product, threads)


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(works: dict[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call every work once per round, in turn, so that a noisy minute hits all alike; gives their results by name."""
    results: dict[str, list[T]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            results[name].append(work())
    return results


def median(values: list[float]) -> float:
    return statistics.median(values)
