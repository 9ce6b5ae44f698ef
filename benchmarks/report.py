"""Where numbers go: a table on the terminal, JSON in results/, and Markdown between markers in README.md and docs/."""

from __future__ import annotations

import argparse
import json
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from monograph.console import out, shown, table
from monograph.machine import cores, cpu_name

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
WORK = ROOT / "out" / "benchmarks"
"""Where benchmarks put models and environments; ignored by git, kept between runs."""

Row = Mapping[str, Any]


def parser(about: str | None) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    result = argparse.ArgumentParser(description=about)
    result.add_argument("--no-publish", action="store_true", help="print only: leave results/ and the tables alone")
    return result


def publish(name: str, rows: Sequence[Row], *, note: str = "", only_print: bool = False, **facts: Any) -> None:
    """Show the rows; unless only_print, write results/<name>.json and the table between the markers of that name.

    note: one sentence under the table. facts: more numbers for the JSON.
    """
    out().print(table(name, rows))
    if note:
        out().print(note, markup=False)
    if only_print:
        return
    about = machine()
    RESULTS.mkdir(exist_ok=True)
    content = {"benchmark": name, "command": f"python benchmarks/{name}.py", **about, **facts, "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    under = f"`python benchmarks/{name}.py`, {about['date']}, {about['cpu']}, {about['cores']} cores. {note}".strip()
    text = f"{markdown(rows)}\n\n{under}\n"
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        page.write_text(replaced(page.read_text(), name, text))


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    packages = {p: version(p) for p in ("torch", "onnxruntime-gpu", "numpy", "transformers")}
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    return {"date": day, "cpu": cpu_name(), "cores": cores(), "python": platform.python_version(), "packages": packages}


def markdown(rows: Sequence[Row]) -> str:
    """Rows with the same keys as a Markdown table."""
    names = list(rows[0])
    numeric = [
        all(isinstance(r[n], (int, float, type(None))) and not isinstance(r[n], bool) for r in rows) for n in names
    ]
    lines = [names, ["---:" if n else "---" for n in numeric], *([shown(v) for v in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replaced(page: str, name: str, text: str) -> str:
    """The page with what stands between its `<!-- name -->` markers replaced; unchanged if it has none."""
    marker = re.escape(f"<!-- {name} -->"), re.escape(f"<!-- /{name} -->")
    return re.sub(f"({marker[0]}\n).*?({marker[1]})", lambda m: f"{m[1]}{text}{m[2]}", page, flags=re.DOTALL)
