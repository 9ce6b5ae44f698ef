"""What of CUDA is provable without a GPU: every graph for it, run on the CPU against the NumPy reference.

    python benchmarks/cuda_cases.py [--no-publish] [NAME ...]

NAME: of a family or of one of the small models of tests/cuda_models.py (all of them if none is given). Each is built
with `--target cuda` in f32, f16, bf16 and int4 (blocks of 32, activations in f16), checked against the table of CUDA
kernels, and run on the CPU by the same nodes: on all-ones, padded and holed masks, batch 1 and 3, as one call, as a
prompt with single tokens after it, and in chunks. A difference may be as large as `monograph.passes.depth.rounding`
says: 1.5 times the distance of the type from 1 to the next number, times the products in a row.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from cuda_models import KINDS, SUBJECTS, checked  # noqa: E402
from monograph.backends.onnxruntime.capturable import capture_refusals  # noqa: E402
from monograph.backends.target import Target  # noqa: E402
from monograph.ir.errors import MonographError  # noqa: E402
from report import parser, publish  # noqa: E402


def run(name: str, kind: str) -> dict[str, Any]:
    """Cases, failures, the worst difference, and whether the step can be captured."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        try:
            found = checked(name, kind, Path(place))
        except MonographError as e:
            return {
                "model": name,
                "kind": kind,
                "cases": 0,
                "failed": 1,
                "worst": 0.0,
                "capture": str(e).splitlines()[0],
            }
        rows = found.parity.rows
        refusals = capture_refusals(onnx_ir.load(str(found.folder / "model.onnx")), Target.of("cuda"))
    return {
        "model": name,
        "kind": kind,
        "cases": len(rows),
        "failed": sum(not r.passed for r in rows),
        "worst": round(found.worst, 6),
        "capture": "yes" if not refusals else refusals[0],
        "seconds": round(time.perf_counter() - start, 1),
    }


def by_kind(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a kind: models, cases, failures, the worst difference and where it is."""
    found: list[dict[str, Any]] = []
    for kind in KINDS:
        own = [r for r in rows if r["kind"] == kind]
        if own:
            worst = max(own, key=lambda r: r["worst"])
            found.append(
                {
                    "kind": kind,
                    "models": len(own),
                    "cases": sum(r["cases"] for r in own),
                    "failed": sum(r["failed"] for r in own),
                    "worst": f"{worst['worst']:.2g} ({worst['model']})",
                    "captured steps": sum(r["capture"] == "yes" for r in own),
                }
            )
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("names", nargs="*", metavar="NAME")
    options.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    given = options.parse_args()
    rows: list[dict[str, Any]] = []
    for name in given.names or SUBJECTS:
        for kind in given.kinds:
            rows.append(run(name, kind))
            print(*(f"{k} {v}" for k, v in rows[-1].items()), sep=", ", flush=True)
    note = "Not run on a GPU: the same nodes on the CPU, widened where it has no kernel in the type."
    publish("cuda_cases", by_kind(rows), note=note, only_print=given.no_publish, each=rows)
    sys.exit(any(r["failed"] for r in rows))


if __name__ == "__main__":
    main()
