"""Seconds to build a graph and run all its passes, without weights, for 30 to 300 layers: is the growth linear?"""

from __future__ import annotations

import gc
import time

from monograph.frontends.dsl import load_family
from monograph.machine import median
from monograph.passes.pipelines import decompose, optimize
from report import Row, parser, publish

LAYERS = (30, 75, 150, 300)
SETTINGS = {"vocab": 49152, "dim": 576, "ffn": 1536, "heads": 9, "kv_heads": 3, "tied": True}


def measure(layers: int) -> dict[str, float]:
    """Seconds of each step for a llama of that many layers."""
    model = load_family("llama")(layers=layers, **SETTINGS)
    gc.collect()  # The graphs of the run before are cycles; clearing them away is not part of this one.
    t0 = time.perf_counter()
    graph = model.graph()
    t1 = time.perf_counter()
    fused, _ = optimize(graph, "decode")
    t2 = time.perf_counter()
    primitives = decompose(graph)
    t3 = time.perf_counter()
    optimize(primitives, "decode")
    t4 = time.perf_counter()
    steps = {"build": t1 - t0, "passes": t2 - t1, "decompose": t3 - t2, "raise again": t4 - t3}
    return {"nodes": len(graph), "primitives": len(primitives), "after passes": len(fused), **steps}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    measure(2)
    rows: list[Row] = []
    for layers in LAYERS:
        runs = [measure(layers) for _ in range(given.rounds)]
        middle = {k: median([r[k] for r in runs]) for k in runs[0]}
        counts = {k: int(middle[k]) for k in ("nodes", "primitives", "after passes")}
        spent = {f"{k} (s)": middle[k] for k in ("build", "passes", "decompose", "raise again")}
        total = middle["build"] + middle["passes"]
        rows.append({"layers": layers, **counts, **spent, "ms per layer": 1e3 * total / layers})
    growth = float(rows[-1]["ms per layer"]) / float(rows[0]["ms per layer"])
    note = (
        f"Time per layer (build and passes) at {LAYERS[-1]} layers is {growth:.2f} times that at {LAYERS[0]}; "
        "the graph is verified after every pass. `raise again`: the passes on the graph taken down to primitives."
    )
    publish("build_time", rows, note=note, only_print=given.no_publish)


if __name__ == "__main__":
    main()
