"""How large the source is: files and functions of every folder against the house style, and tests against source."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

from monograph.machine import median
from report import ROOT, Row, parser, publish

SOURCE = ("ir", "passes", "frontends", "backends", "training", "inference", "api")
OTHER = ("tests", "benchmarks", "examples")
FILE_AIM, FILE_MOST, FUNCTION_AIM, FUNCTION_MOST = 150, 400, 8, 60


def files(folder: str) -> list[Path]:
    """Python files of a folder that git tracks."""
    listed = subprocess.run(["git", "ls-files", f"{folder}/*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / line for line in listed.stdout.splitlines()]


def code_lines(path: Path) -> int:
    """Lines that are not empty."""
    return sum(1 for line in path.read_text().splitlines() if line.strip())


def functions(path: Path) -> dict[str, int]:
    """Lines of every function of a file, by `file:name`, from `def` to the end of its body."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, kinds)]
    return {f"{path.relative_to(ROOT)}:{n.name}": (n.end_lineno or n.lineno) - n.lineno + 1 for n in found}


def row(folder: str) -> Row:
    paths = files(folder)
    lengths = [n for p in paths for n in functions(p).values()] or [0]
    sizes = [len(p.read_text().splitlines()) for p in paths] or [0]
    return {
        "folder": folder,
        "files": len(paths),
        "lines": sum(map(code_lines, paths)),
        "median file": int(median([s for s in sizes if s] or [0])),
        "longest file": max(sizes),
        "median function": int(median(lengths)),
        "longest function": max(lengths),
    }


def too_long() -> list[str]:
    """Files and functions above the house limits."""
    paths = [p for folder in SOURCE for p in files(folder)]
    found = [(str(p.relative_to(ROOT)), len(p.read_text().splitlines()), FILE_MOST) for p in paths]
    found += [(name, n, FUNCTION_MOST) for p in paths for name, n in functions(p).items()]
    return [f"{name} {n}" for name, n, most in found if n > most]


def main() -> None:
    given = parser(__doc__).parse_args()
    rows = [row(folder) for folder in (*SOURCE, *OTHER)]
    lines = {str(r["folder"]): int(r["lines"]) for r in rows}
    ratio = lines["tests"] / sum(lines[f] for f in SOURCE)
    note = (
        f"Lines that are not empty; tests / source = {ratio:.2f}. Aims: files of {FILE_AIM} lines (most {FILE_MOST}), "
        f"functions of {FUNCTION_AIM} (most {FUNCTION_MOST}). Above: {', '.join(too_long()) or 'none'}."
    )
    publish("code_size", rows, note=note, only_print=given.no_publish, test_ratio=ratio, too_long=too_long())


if __name__ == "__main__":
    main()
