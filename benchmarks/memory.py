"""Peak memory of a piece of work in a process of its own: what the benchmarks of memory share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monograph.machine import peak_memory


def peak_of(work: Callable[[], Any]) -> tuple[int, Any]:
    """(bytes by which resident memory rises at most above what it is now, what the work gives). Linux only."""
    Path("/proc/self/clear_refs").write_text("5")  # Sets the high-water mark to what is resident now.
    before = peak_memory()
    result = work()
    return peak_memory() - before, result


def in_process(script: str, *arguments: str, exact: bool = False) -> dict[str, Any]:
    """What a benchmark script prints as JSON in its last line, run with these arguments.

    exact: glibc gives freed memory back at once, so that what is resident is what is in use; this costs time.
    """
    environment = {**os.environ, **({"MALLOC_MMAP_THRESHOLD_": "65536"} if exact else {})}
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{script} {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
