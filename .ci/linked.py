"""Lays the package out as it is installed, by links, for a type checker: `python .ci/linked.py out/typed`.

The rooms stand beside each other in the repository and below `monograph` where they are installed (see
`package-dir` in pyproject.toml). A checker reads folders, not the finder of an editable install.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


def link(into: Path) -> None:
    """Make `into`/monograph anew: folders of the installed names, whose files are links."""
    folders: dict[str, str] = tomllib.loads((HERE / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    shutil.rmtree(into / "monograph", ignore_errors=True)
    for package, folder in folders.items():
        for file in (HERE / folder).rglob("*.py"):
            link = into.joinpath(*package.split("."), file.relative_to(HERE / folder))
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(file)


if __name__ == "__main__":
    link(Path(sys.argv[1]))
