"""How large the source is against the house style, tests against source, and how many files know about an op."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

from monograph.console import out, table
from monograph.machine import median
from report import ROOT, Row, parser, publish

SOURCE = ("ir", "passes", "frontends", "backends", "data", "training", "inference", "api")
OTHER = ("tests", "benchmarks", "examples")
OPS = {
    "attention": "Attention", "rope": "Rope", "rms_norm": "RMSNorm", "linear": "Linear", "embedding": "Embedding",
    "softmax": "Softmax", "lstm": "LSTM", "gated_feed_forward": "GatedFeedForward", "cache_append": "CacheAppend",
    "slice": "Slice",
}  # fmt: skip
"""Ops of every kind by name and class. To call one is to use it; to compare with its name or class is to know it."""
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
        "median file": int(median([float(s) for s in sizes if s] or [0.0])),
        "longest file": max(sizes),
        "median function": int(median([float(n) for n in lengths])),
        "longest function": max(lengths),
    }


def too_long() -> list[str]:
    """Files and functions above the house limits."""
    paths = [p for folder in SOURCE for p in files(folder)]
    found = [(str(p.relative_to(ROOT)), len(p.read_text().splitlines()), FILE_MOST) for p in paths]
    found += [(name, n, FUNCTION_MOST) for p in paths for name, n in functions(p).items()]
    return [f"{name} {n}" for name, n, most in found if n > most]


def knowing(op: str, commit: str | None) -> list[str]:
    """Source files that name an op in quotes, or by its class, in the work tree or in a commit."""
    patterns = ["-e", rf"[\"']{op}[\"']", "-e", rf"\b{OPS[op]}\b"]
    where = [commit] if commit else []
    command = ["git", "grep", "-lE", *patterns, *where, "--", *(f"{folder}/*.py" for folder in SOURCE)]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    return sorted(line.removeprefix(f"{commit}:") for line in listed)


def op_rows(before: str | None) -> list[Row]:
    """For every op the files that know it, and how many did in another commit."""
    rows: list[Row] = []
    for op in OPS:
        now = knowing(op, None)
        earlier = {"files before": len(knowing(op, before))} if before else {}
        rows.append({"op": op, **earlier, "files": len(now), "which": " ".join(now)})
    return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--before", help="a commit to count the files that know an op in, too")
    given = options.parse_args()
    rows = [row(folder) for folder in (*SOURCE, *OTHER)]
    lines = {str(r["folder"]): int(r["lines"]) for r in rows}
    ratio = lines["tests"] / sum(lines[f] for f in SOURCE)
    note = (
        f"Lines that are not empty; tests / source = {ratio:.2f}. Aims: files of {FILE_AIM} lines (most {FILE_MOST}), "
        f"functions of {FUNCTION_AIM} (most {FUNCTION_MOST}). Above: {', '.join(too_long()) or 'none'}."
    )
    out().print(table("files that know an op", op_rows(given.before)))
    publish(
        "code_size",
        rows,
        note=note,
        only_print=given.no_publish,
        test_ratio=ratio,
        too_long=too_long(),
        ops=op_rows(given.before),
    )


if __name__ == "__main__":
    main()
