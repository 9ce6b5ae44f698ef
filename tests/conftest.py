"""The fast tier: with `-m "not slow and not weights"` nothing may import torch, and files that run models on a
runtime are not read."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

HEAVY = ("torch", "transformers")
_RUNTIMES = r"torch|transformers|onnxruntime|monograph\.(backends\.(torch|onnxruntime)|inference)|test_onnx_ops"
_WHOLE_FILE = re.compile(rf"^pytestmark = .*pytest\.mark\.(slow|weights)|^(from|import) ({_RUNTIMES})\b", re.MULTILINE)
"""A file that is slow as a whole, or that imports a runtime at its top."""


def _fast(config: pytest.Config) -> bool:
    return "not slow" in str(config.getoption("markexpr"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files that need a runtime: importing torch alone takes as long as many tests of this tier."""
    if collection_path.suffix == ".py" and _fast(config) and _WHOLE_FILE.search(collection_path.read_text()):
        return True
    return None


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the fast tier if a test in it brought in a heavy library."""
    brought = [name for name in HEAVY if name in sys.modules]
    if _fast(session.config) and brought and exitstatus == 0:
        print(f"\nthe fast tier imported {', '.join(brought)}: mark that file or test `slow`")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="module")
def one_thread() -> Any:
    """Sums in the same order every time: runs are compared to the bit."""
    import torch  # Not at the top: the fast tier does without it.

    saved = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(saved)
