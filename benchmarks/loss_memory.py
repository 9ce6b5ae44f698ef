"""Peak memory of the loss over 262,144 tokens: in chunks against plain, forward and backward pass."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch
from memory import in_process, peak_of
from monograph.backends.torch.loss import linear_cross_entropy
from monograph.machine import cores, interleaved, median
from report import parser, publish

VOCAB, ROWS, CHANNELS = 262_144, 512, 640

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def plain(x: torch.Tensor, w: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, w), labels)


LOSSES: dict[str, Loss] = {"plain": plain, "in chunks": linear_cross_entropy}


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [rows, channels], w [vocabulary, channels], labels [rows]: of a size that logits have in a trained model."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, CHANNELS, generator=generator).requires_grad_()
    w = torch.randn(VOCAB, CHANNELS, generator=generator).mul_(CHANNELS**-0.5).requires_grad_()
    return x, w, torch.randint(0, VOCAB, (ROWS,), generator=generator)


def one(name: str) -> dict[str, float]:
    """Peak above inputs and weights, so with both gradients, and seconds; in this process."""
    given = problem()
    start = time.perf_counter()
    peak, _ = peak_of(lambda: LOSSES[name](*given).backward())
    return {"peak": peak, "seconds": time.perf_counter() - start}


def differences() -> dict[str, float]:
    """Largest difference of the loss and of each gradient, and the largest gradient."""
    results = []
    for loss in LOSSES.values():
        x, w, labels = problem()
        value = loss(x, w, labels)
        results.append((value.detach(), *torch.autograd.grad(value, (x, w))))
    (a, ax, aw), (b, bx, bw) = results
    return {
        "loss": abs(a - b).item(),
        "of x": (ax - bx).abs().max().item(),
        "of w": (aw - bw).abs().max().item(),
        "largest": max(ax.abs().max().item(), aw.abs().max().item()),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--one", choices=[*LOSSES, "differences"], help="measure one in this process, print JSON")
    given = options.parse_args()
    if given.one:
        print(json.dumps(differences() if given.one == "differences" else one(given.one)))
        return
    runs = interleaved({n: lambda n=n: in_process(__file__, "--one", n, exact=True) for n in LOSSES}, given.rounds)
    apart = in_process(__file__, "--one", "differences")
    peaks = {n: median([r["peak"] for r in rs]) / 1e6 for n, rs in runs.items()}
    gradients = 4 * CHANNELS * (VOCAB + ROWS) / 1e6
    rows = [
        {
            "loss": n,
            "peak (MB)": peaks[n],
            "of plain (%)": 100 * peaks[n] / peaks["plain"],
            "without the gradients (MB)": peaks[n] - gradients,
            "time (s)": median([r["seconds"] for r in runs[n]]),
        }
        for n in LOSSES
    ]
    note = (
        f"{ROWS} rows of {CHANNELS} channels, vocabulary {VOCAB:,}, float32, {cores()} threads; forward and backward "
        f"pass in a process of its own, median of {given.rounds}, in turn. Peak: highest resident memory above that of "
        f"inputs and weights; the two gradients take {gradients:.0f} MB of it, all logits would take "
        f"{4 * ROWS * VOCAB / 1e6:.0f} MB. Largest difference of the loss {apart['loss']:.1e}, of a gradient "
        f"{max(apart['of x'], apart['of w']):.1e} where gradients reach {apart['largest']:.2g}."
    )
    publish("loss_memory", rows, note=note, only_print=given.no_publish, differences=apart)


if __name__ == "__main__":
    main()
