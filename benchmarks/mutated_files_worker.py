"""Reads and optimizes ONNX files that may be hostile, each in a process of its own with little memory and time.

A line of input has the path of a file; a line of output has what became of it, as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import monograph as mg
import monograph.frontends.gguf  # The rest before the fork, too: what is read there has not changed meanwhile.
import monograph.frontends.onnx
import monograph.optimizing
import monograph.passes.imported
import monograph.resolve
import numpy as np
import onnxruntime  # noqa: F401 - Before the fork: its own memory is no file's.
from monograph.frontends.onnx.crashes import check_runs
from monograph.frontends.onnx.file import open_onnx
from monograph.hard_inputs import Trial
from monograph.ir.errors import MonographError
from monograph.ir.interpret import interpret
from monograph.original import Original, apart, session

MEMORY, SECONDS, LONGEST = 2 << 30, 30, 600.0
"""For one file: bytes of address space beyond those of a process that has read nothing, seconds of the processor, and
seconds of the clock, which others may use."""
EXTRA = (Trial("holed", 2, 9), Trial("right-padded", 3, 6))
"""Inputs that `optimize` does not compare on."""


def error_of(error: BaseException, path: Path) -> dict[str, Any]:
    """What was raised; `typed` if it is an error on purpose that names the file and is short enough to read."""
    text = str(error)
    typed = isinstance(error, MonographError) and path.parent.as_posix() in text and len(text) < 4000
    if typed:
        return {"typed": True, "kind": type(error).__name__, "text": text[:400]}
    frames = traceback.extract_tb(error.__traceback__)
    at = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-5:]))
    return {"typed": False, "kind": type(error).__name__, "text": text[:400], "at": at}


def numbers_differ(model: mg.Model, original: Original) -> str:
    """What the graph computes in NumPy that the file computes otherwise in ONNX Runtime; "" if nothing."""
    graph, weights = model.graph(), model.weights
    assert weights is not None
    params = {k: weights.numpy(k) for k in graph.params}
    for one in original.expected:
        empty: list[bool] = []
        try:
            found = interpret(graph, one.hard.feeds, params, lambda _, ys, e=empty: e.extend(y.size == 0 for y in ys))
        except MemoryError:
            continue  # Sizes that a file says may be more than this process may have.
        except MonographError as e:
            return f"{one.trial}: NumPy refuses what ONNX Runtime computes: {e}"
        if any(empty):
            continue  # "Reduction over an empty set of values yields undefined." (ONNX, ReduceMean)
        for name, (wanted, counts) in one.outputs.items():
            wrong, _ = apart(wanted, np.asarray(found[name]), counts, original.bound)
            if wrong:
                return f"{one.trial}: output {name}{wrong}"
    return ""


def judged(path: Path) -> dict[str, Any]:
    """What loading and optimizing a file come to."""
    told: dict[str, Any] = {"load": "loaded", "optimize": "optimized", "numbers": "", "left": []}
    original: Original | None = None
    try:
        model = mg.load(path)
    except BaseException as e:
        told["load"] = error_of(e, path)
    else:
        try:
            check_runs(open_onnx(path))
            original = Original.of(path, model.graph(), EXTRA)
            told["runtime"] = f"{len(original.expected)} trials"
        except MonographError as e:
            told["runtime"] = str(e)[:300]
        if original is not None:
            try:
                told["numbers"] = numbers_differ(model, original)
            except BaseException as e:
                told["load"] = error_of(e, path)
    out = path.parent.parent / "out"
    try:
        report = mg.optimize(path, out)
    except BaseException as e:
        told["optimize"] = error_of(e, path)
        told["left"] = sorted(
            p.name for p in path.parent.parent.iterdir() if p.name not in (path.parent.name, "secret.bin")
        )
    else:
        told["undone"] = [str(u) for u in report.undone] + ([report.kept] if report.kept else [])
        if original is not None:
            told["numbers"] = told["numbers"] or original.difference(out / "model.onnx")[0]
    used = resource.getrusage(resource.RUSAGE_SELF)
    told |= {"peak": used.ru_maxrss << 10, "seconds": used.ru_utime + used.ru_stime}
    return told


def taken(path: Path) -> bool:
    """Whether ONNX Runtime opens a file; it may crash on one."""
    try:
        session(path)
    except MonographError:
        return False
    return True


def apart_from_others(path: Path) -> dict[str, Any]:
    """The same in a forked process with limits: a crash and a hang are results, too."""
    reader, writer = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.dup2(2, 1)  # Libraries print.
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        code = 3
        try:
            told = judged(path)
            os.write(writer, json.dumps(told).encode())
            if told["load"] != "loaded":
                os.write(writer, json.dumps({**told, "taken": taken(path)}).encode().join((b"\n", b"")))
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    data, ends = b"", start + LONGEST
    while select.select([reader], [], [], max(0.0, ends - time.monotonic()))[0]:
        part = os.read(reader, 1 << 16)
        if not part:
            break
        data += part
    else:
        os.kill(child, signal.SIGKILL)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - start
    died = {"died": f"status {status} after {seconds:.0f} s"}
    told: dict[str, Any] = json.loads(data.splitlines()[-1]) if data else died
    return {"seconds": seconds, **told}


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(apart_from_others(Path(line.strip()))), flush=True)


if __name__ == "__main__":
    main()
