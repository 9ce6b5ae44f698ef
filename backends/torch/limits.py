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


def peak_bandwidth(amount: int, *, rounds: int = 3) -> float:
    """Bytes per second that this machine reads `amount` bytes of f32 with, by the best of two ways and `rounds` tries.

    A sum reads one array in the order of memory; a product of a matrix with a vector is what decoding does. Small
    amounts are read many times in one try, so that the clock tells them apart.
    """
    columns = min(1024, max(amount // 4, 1))
    x = torch.ones(max(amount // (4 * columns), 1), columns)
    vector, repeats = torch.ones(columns), max(1, 16_000_000 // amount)
    times: list[float] = []
    for read in (x.sum, lambda: torch.mv(x, vector)):
        read()
        for _ in range(rounds):
            start = time.perf_counter()
            for _ in range(repeats):
                read()
            times.append((time.perf_counter() - start) / repeats)
    return 4 * x.numel() / min(times)
