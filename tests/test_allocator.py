"""Freed memory stays with the process once it is told to keep it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

RESIDENT = """
import torch
from monograph.backends.torch.allocator import keep_pages
from monograph.machine import resident_memory
told = {told} and keep_pages()
before = resident_memory()
tensors = [torch.ones(1 << 20) for _ in range(64)]
del tensors
print(told, resident_memory() - before)
"""
ALL = 64 * 4 * (1 << 20)


def kept(told: bool) -> tuple[bool, int]:
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT.format(told=told)], capture_output=True, text=True, check=True
    )
    said, size = done.stdout.split()
    return said == "True", int(size)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="speaks to glibc only")
def test_pages_stay() -> None:
    assert kept(False)[1] < 0.1 * ALL
    told, size = kept(True)
    assert told and size > 0.9 * ALL
