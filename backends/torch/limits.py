"""What a device can do at most: measured, because shares of it tell more than seconds."""

from __future__ import annotations

import time

import torch


def peak_flops(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, size: int = 2048, rounds: int = 3
) -> float:
    """Operations per second of the best of `rounds` products of square matrices, after one that does not count.

    The best, not the median: a limit is what the machine can do, and neighbours only take away from it.
    """
    a, b = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
    cuda = torch.device(device).type == "cuda"
    times: list[float] = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        torch.mm(a, b)
        if cuda:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times[1:])
