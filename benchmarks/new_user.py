"""The path of a new user, timed: clone, install, follow the tutorial line by line, then serve from a small install.

Everything happens in a folder of its own (--folder), with environments that hold nothing before. The blocks of
docs/tutorial.md are run as they stand there, the training too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from report import ROOT, WORK, Row, parser, publish

SECTION = re.compile(
    r"^## ([^\n]+)$|^```(python|console|bash)( title=\"([^\"]+)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
BEFORE = """
import json as _json, subprocess as _run, sys as _sys, time as _time
_times, _began = {}, _time.perf_counter()


def _section(name):
    global _began
    now = _time.perf_counter()
    _times[name] = now - _began
    _began = now
"""
SERVE = ["run", "served", "The for statement", "--max-new-tokens", "20"]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--folder", type=Path, default=WORK / "new_user", help="is emptied first")
    given = options.parse_args()
    place: Path = given.folder.absolute()
    shutil.rmtree(place, ignore_errors=True)
    (place / "work").mkdir(parents=True)
    rows = list(path(place))
    seconds = sum(float(str(row["seconds"])) for row in rows)
    note = f"Together {seconds:.0f} s, training included. Sizes: what the environment takes on the disk."
    publish("new_user", rows, note=note, only_print=given.no_publish)


def path(place: Path) -> Iterator[Row]:
    """One row a step, in the order that a new user takes them."""
    clone, work = place / "monograph", place / "work"
    yield step("clone", ["git", "clone", "--quiet", str(ROOT), str(clone)], place)
    yield from installed(clone, place / "full", "train")
    script = work / "tutorial.py"
    script.write_text("\n".join(program(clone / "docs" / "tutorial.md")), encoding="utf-8")
    run([place / "full" / "bin" / "python", script], work)
    for section, seconds in json.loads((work / "times.json").read_text()).items():
        yield {"step": f"tutorial: {section}", "seconds": seconds, "MB": None}
    yield from installed(clone, place / "small", "cpu")
    yield step("serve it from the small install", [place / "small" / "bin" / "monograph", *SERVE], work)


def installed(clone: Path, environment: Path, extra: str) -> Iterator[Row]:
    """A new environment with the project in it."""
    start = time.perf_counter()
    run([sys.executable, "-m", "venv", environment], clone)
    pip = [environment / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    run([*pip, "-c", "constraints.txt", "-e", f".[{extra}]"], clone)
    seconds = time.perf_counter() - start
    size = sum(p.stat().st_size for p in environment.rglob("*") if p.is_file() and not p.is_symlink())
    yield {"step": f"install monograph[{extra}]", "seconds": seconds, "MB": round(size / 1e6)}


def program(tutorial: Path) -> Iterator[str]:
    """The blocks of the tutorial as one script that measures each section: files are written, commands are run."""
    yield BEFORE
    section = ""
    for title, language, _, file, text in SECTION.findall(tutorial.read_text(encoding="utf-8")):
        if title:
            if section:
                yield f"_section({section!r})"
            section = title
        elif file:
            yield f"open({file!r}, 'w').write({text!r})"
        elif language == "python":
            yield text
        else:
            lines = [
                line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ") or language == "bash"
            ]
            yield from (
                f"_run.run([_sys.executable, '-m', {', '.join(map(repr, line.split()))}], check=True)" for line in lines
            )
    yield "open('times.json', 'w').write(_json.dumps(_times))"


def step(name: str, command: list[str | Path], folder: Path) -> Row:
    start = time.perf_counter()
    run(command, folder)
    return {"step": name, "seconds": time.perf_counter() - start, "MB": None}


def run(command: list[str | Path], folder: Path) -> None:
    """Run a command without what the environment of this process says about Python. Its output is shown."""
    own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    subprocess.run([str(c) for c in command], cwd=folder, env=own, check=True)


if __name__ == "__main__":
    main()
