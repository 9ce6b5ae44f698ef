"""Training a 6-layer llama within memory budgets: what is kept, the peak, and what it costs in time."""

from __future__ import annotations

import json
import time
from typing import Any, cast

import torch
from memory import in_process, peak_of
from monograph.backends.torch import to_torch
from monograph.backends.torch.held import held_bytes
from monograph.frontends.dsl import load_family
from monograph.machine import cores, interleaved, median
from monograph.passes.padding_mask import drop_padding_mask
from monograph.passes.pipelines import train
from monograph.training.loss import with_loss
from report import parser, publish

SHAPE = {"vocab": 2048, "dim": 256, "ffn": 704, "layers": 6, "heads": 8, "kv_heads": 4, "tied": True}
ROWS, LENGTH, STEPS = 4, 256, 3
BUDGETS = (100, 50, 25, 12)
"""Percent of what is kept without a budget; 100 is plain PyTorch."""


def module_of(percent: int) -> Any:
    """The training module with its budget, and without a plan for 100 %."""
    graph = with_loss(load_family("llama")(**SHAPE).graph())
    drop_padding_mask(graph)
    ready, sizes = train(graph), {"B": ROWS, "S": LENGTH}
    full = cast("Any", to_torch(ready, memory=1 << 50, sizes=sizes))
    if percent == 100:
        module = cast("Any", to_torch(ready))
        module.plan = full.plan
        return module
    return to_torch(ready, memory=full.plan.bytes_before * percent // 100, sizes=sizes)


def batch(step: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, SHAPE["vocab"], (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(step))
    positions = torch.arange(LENGTH).expand(ROWS, LENGTH)
    return {"input_ids": ids[:, :-1].contiguous(), "position_ids": positions, "labels": ids[:, 1:].contiguous()}


def one(percent: int) -> dict[str, Any]:
    """Losses of some steps of AdamW, what is held after a forward pass, and the peak of the last step."""
    module, losses = module_of(percent), []
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3, fused=True)

    def step(number: int) -> float:
        optimizer.zero_grad(set_to_none=False)
        loss = module(**batch(number))["loss"]
        loss.backward()
        optimizer.step()
        return loss.item()

    losses = [step(n) for n in range(STEPS)]
    peak, last = peak_of(lambda: step(STEPS))
    held, _ = held_bytes(module, batch(0))
    plan = module.plan
    facts = {"again": plan.bytes_again, "share": plan.share}
    return {"losses": [*losses, last], "peak": peak, "held": held, "predicted": plan.bytes_after, **facts}


def times(rounds: int) -> dict[str, float]:
    """Median over rounds of the processor time of a forward and a backward pass on one thread, in turn, against plain.

    Not wall-clock time: on a shared machine that measures the neighbours.
    """
    torch.set_num_threads(1)
    modules = {p: module_of(p) for p in BUDGETS}

    def work(module: Any) -> float:
        module.zero_grad()
        start = time.process_time()
        module(**batch(0))["loss"].backward()
        return time.process_time() - start

    found = interleaved({str(p): lambda m=m: work(m) for p, m in modules.items()}, rounds + 1)
    return {k: median([t / p for t, p in zip(v[1:], found["100"][1:], strict=True)]) for k, v in found.items()}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--one", help="measure one budget, or `times`, in this process and print JSON")
    given = options.parse_args()
    if given.one:
        print(json.dumps(times(given.rounds) if given.one == "times" else one(int(given.one))))
        return
    runs = {p: in_process(__file__, "--one", str(p), exact=True) for p in BUDGETS}
    ratios = in_process(__file__, "--one", "times", "--rounds", str(given.rounds))
    rows = [
        {
            "budget (%)": p,
            "kept, predicted (MB)": r["predicted"] / 1e6,
            "kept, measured (MB)": r["held"] / 1e6,
            "again within a block (MB)": r["again"] / 1e6,
            "peak (MB)": r["peak"] / 1e6,
            "operations again (% of forward)": 100 * r["share"],
            "processor time (ratio)": ratios[str(p)],
            "losses": "equal" if r["losses"] == runs[100]["losses"] else "differ",
        }
        for p, r in runs.items()
    ]
    note = (
        f"llama of {SHAPE['layers']} layers, {SHAPE['dim']} channels, {ROWS} rows of {LENGTH} tokens, float32, "
        f"{cores()} threads. Kept: for the backward pass, with the gradients that the loss makes. Peak: highest "
        "resident memory of a step above weights, gradients and optimizer, each budget in its own process. Time: "
        f"of the processor for a forward and a backward pass, against the first row, median of {given.rounds}, in "
        f"turn. Losses: of {STEPS + 1} steps, bit by bit."
    )
    publish("recompute", rows, note=note, only_print=given.no_publish)


if __name__ == "__main__":
    main()
