"""What the passes bring on ONNX Runtime: SmolLM2 taken apart, in standard ops, and fused for the CPU."""

from __future__ import annotations

from dataclasses import asdict

import monograph as mg
from monograph.assets import fetch
from monograph.console import working
from monograph.performance_pages import limits, rows
from report import parser, publish


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    with working("building and measuring"):
        found = mg.bench(mg.load(fetch("smollm2")), prompt=256, new_tokens=64, rounds=given.rounds)
    publish("passes_speed", rows(found), note=limits(found), only_print=given.no_publish, details=asdict(found))


if __name__ == "__main__":
    main()
