"""What the comparison of a small twin costs in a build: seconds of the processor, and its share of the build."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import monograph as mg
from monograph.backends.onnxruntime.choices import chosen
from monograph.backends.target import Target
from monograph.machine import median
from monograph.twins import check_passes
from report import Row, parser, publish


def measured(source: str, repeats: int) -> Row:
    """One model, built and compared several times in this process; the first time is not counted."""
    model, target = mg.load(source), chosen(Target.of("cpu"), None)
    builds, checks = list[float](), list[float]()
    said = ""
    for _ in range(repeats + 1):
        with tempfile.TemporaryDirectory() as scratch:
            start = time.process_time()
            mg.build(model, Path(scratch) / "built", twin=False).close()
            middle = time.process_time()
            said = str(check_passes(model, target))
            builds.append(middle - start)
            checks.append(time.process_time() - middle)
    build, check = median(builds[1:]), median(checks[1:])
    return {
        "model": model.folder.name if model.folder is not None else model.name,
        "build (s)": build,
        "twin (s)": check,
        "share of both (%)": 100 * check / (build + check),
        "compared": said,
    }


def main() -> None:
    options: argparse.ArgumentParser = parser(__doc__)
    options.add_argument("--models", nargs="*", default=["minilm", "smollm2"], help="names of assets, or folders")
    options.add_argument("--repeats", type=int, default=5, help="builds that are counted")
    given = options.parse_args()
    rows = [measured(source, given.repeats) for source in given.models]
    note = "Seconds of the processor, medians of builds in one process, one thread; the first build is not counted."
    publish("twin_check", rows, note=note, only_print=given.no_publish)


if __name__ == "__main__":
    main()
