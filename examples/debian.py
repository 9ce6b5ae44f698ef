"""Text out of Debian's packages: fetched by name with apt, unpacked beside the tree, nothing installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from monograph import MonographError
from monograph.assets import cache_folder


class PackageError(MonographError):
    """A package could not be fetched or unpacked."""


def unpacked(package: str) -> Path:
    """The files of a Debian package, fetched once into the cache. Raises PackageError where apt cannot."""
    folder = cache_folder() / "debian" / package
    if folder.exists():
        return folder
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise PackageError(f"{package} is a Debian package, and {tool} is not there", hint="run it on Debian")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{package}-", dir=folder.parent) as work:
        _fetch(package, Path(work))
        (found,) = Path(work).glob("*.deb")
        _run(["dpkg-deb", "-x", str(found), f"{work}/files"], Path(work))
        (Path(work) / "files").rename(folder)
    return folder


def _fetch(package: str, work: Path) -> None:
    """Download; where apt does not know the package yet, bring its lists up to date first."""
    command = ["apt-get", "download", "-q", package]
    if subprocess.run(command, cwd=work, capture_output=True, check=False).returncode:
        subprocess.run(["apt-get", "update", "-q"], capture_output=True, check=False)
        _run(command, work)


def _run(command: list[str], work: Path) -> None:
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise PackageError(f"{' '.join(command)} ended with {done.returncode}", details=lines[-3:])
