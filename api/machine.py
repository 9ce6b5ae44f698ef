"""What this machine is and what it can do at most: cores, memory, measured bandwidth and arithmetic."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

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
    """Bytes of this process that are in memory now. Raises OSError where the system does not tell."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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


def measure(
    threads: int | None = None, *, megabytes: int = 512, sizes: Sequence[int] = (1024, 2048), rounds: int = 5,
    working_set: int = 0,
) -> Ceilings:  # fmt: skip
    """Read arrays and multiply matrices with PyTorch, `rounds` times each; the best counts.

    The best, not the median: a limit is what the machine can do, and neighbours only take away from it. Arrays are
    read by a sum and by a product with a vector, and have `megabytes` and, if that is given, the bytes of
    `working_set`: what is small enough stays in the caches, which are faster than memory.
    """
    import torch

    from .backends.torch.limits import peak_bandwidth, peak_flops

    threads = threads or cores()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        amounts = {megabytes * 1_000_000, *([working_set] if 0 < working_set < megabytes * 1_000_000 else [])}
        bandwidth = max(peak_bandwidth(amount, rounds=rounds) for amount in amounts)
        flops = max(peak_flops(size=size, rounds=rounds) for size in sizes)
    finally:
        torch.set_num_threads(before)
    return Ceilings(bandwidth, flops, threads)


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
