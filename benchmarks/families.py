"""Every family of models against transformers: the largest error of a logit, by the way to run it and what is run.

    python benchmarks/families.py [NAME ...]

NAME: of a family or of one of its cases (all of them if none is given). Tiny random checkpoints, from tests/.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from report import ROOT, Row, parser, publish

sys.path.insert(0, str(ROOT / "tests"))
from family_parity import MASKS, PARTS, RUNNERS, TOLERANCE, Case, Errors, errors
from monograph import MonographError
from monograph.console import working


def families() -> dict[str, Mapping[str, Case]]:
    """The cases of the file tests/test_family_<name>.py of each family that has one."""
    names = sorted(p.stem for p in (ROOT / "frontends" / "models").glob("[!_]*.py"))
    tested = [n for n in names if (ROOT / "tests" / f"test_family_{n}.py").exists()]
    return {n: importlib.import_module(f"test_family_{n}").CASES for n in tested}


def measured(name: str, case: Case) -> Errors:
    """The errors of a case; infinite for a way to run it that fails, whose reason is printed."""
    found: Errors = {}
    with tempfile.TemporaryDirectory() as folder:
        for runner in RUNNERS:
            try:
                found |= errors(case, Path(folder) / runner, runners=[runner])
            except (MonographError, AssertionError) as e:
                print(f"{name} on {runner}: {e}", file=sys.stderr)
                found[runner] = {MASKS: float("inf")}
    return found


def row(family: str, cases: Mapping[str, Errors]) -> dict[str, Any]:
    """The largest error of all cases for each way to run them and each part; None where there is no such part.

    lines: that are not empty, of the file of the family.
    """
    text = (ROOT / "frontends" / "models" / f"{family}.py").read_text()
    lines = sum(bool(line.strip()) for line in text.splitlines())
    result: dict[str, Any] = {"family": family, "lines": lines, "configs": len(cases)}
    for runner in RUNNERS:
        for part in PARTS:
            given = [e for c in cases.values() for k, e in c.get(runner, {}).items() if k.partition(":")[0] == part]
            if runner != RUNNERS[0] or part == MASKS:
                result[f"{runner}, {part}"] = max(given, default=None)
    return result


def main() -> int:
    options = parser(__doc__)
    options.add_argument("names", nargs="*", help="families or cases; by default all")
    given = options.parse_args()
    rows: list[Row] = []
    for family, cases in families().items():
        chosen = {k: c for k, c in cases.items() if not given.names or {k, family} & set(given.names)}
        if chosen:
            with working(family):
                rows.append(row(family, {k: measured(k, c) for k, c in chosen.items()}))
    if not rows:
        raise SystemExit(f"no family is called {' or '.join(given.names)}: there are {', '.join(families())}")
    worst = max(e for r in rows for e in r.values() if isinstance(e, float))
    note = (
        "The largest difference of a logit, as a share of the largest logit; batches of 3 of different lengths. "
        f"masks: none, on the right, on the left, holes; decode: 16 tokens one by one; chunks: 5 at a time. "
        f"Worst {worst:.1e}, aim {TOLERANCE:g}."
    )
    publish("families", rows, note=note, only_print=given.no_publish or bool(given.names))
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    raise SystemExit(main())
