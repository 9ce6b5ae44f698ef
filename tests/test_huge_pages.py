"""Memory of sessions in huge pages: which regions are new and filled, and that nothing in them changes."""

from __future__ import annotations

import ctypes
import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monograph.backends.onnxruntime import huge_pages as module
from monograph.backends.onnxruntime.huge_pages import HUGE, filled_pages, huge_pages, new_spans

LINUX = Path("/proc/self/smaps").exists()


@pytest.mark.parametrize(
    ("now", "before", "wanted"),
    [
        ([(0, 10)], [], [(0, 10)]),
        ([(0, 10)], [(0, 10)], []),
        ([(0, 10)], [(0, 4)], [(4, 10)]),
        ([(0, 10)], [(4, 12)], [(0, 4)]),
        ([(0, 10)], [(2, 4), (6, 8)], [(0, 2), (4, 6), (8, 10)]),
        ([(0, 4), (6, 10)], [(2, 8)], [(0, 2), (8, 10)]),
        ([(4, 6)], [(0, 3), (7, 9)], [(4, 6)]),
    ],
)
def test_what_is_new(now: list[tuple[int, int]], before: list[tuple[int, int]], wanted: list[tuple[int, int]]) -> None:
    assert new_spans(now, before) == wanted


def private(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@pytest.mark.skipif(not LINUX, reason="asks Linux which pages are resident")
def test_only_filled_pages() -> None:
    """A huge page of which one small page was never touched is left out: it would grow."""
    system: Any = ctypes.CDLL(None, use_errno=True)
    memory = private(6 * HUGE)
    start = address(memory)
    first = -(-start // HUGE) * HUGE
    whole = np.frombuffer(memory, np.uint8)
    whole[:: mmap.PAGESIZE] = 1
    found = [first + i * HUGE for i in range((start + 6 * HUGE - first) // HUGE)]
    assert list(filled_pages(system, (start, start + 6 * HUGE))) == found
    assert system.madvise(ctypes.c_void_p(first + HUGE + mmap.PAGESIZE), ctypes.c_size_t(mmap.PAGESIZE), 4) == 0
    found.remove(first + HUGE)
    assert list(filled_pages(system, (start, start + 6 * HUGE))) == found


def held(start: int) -> int:
    """kB of huge pages in the mapping with an address."""
    kept, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= start < int(found[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            kept = int(line.split()[1])
    return kept


@pytest.mark.skipif(not LINUX, reason="asks Linux which pages are huge")
@pytest.mark.parametrize("wanted", [True, False])
def test_memory_of_the_block_keeps_its_content(wanted: bool) -> None:
    numbers = np.random.default_rng(0).integers(0, 256, 8 * HUGE, np.uint8)
    with huge_pages(wanted):
        memory = private(8 * HUGE)
        memory[:] = numbers.tobytes()
    middle = address(memory) + 4 * HUGE
    np.testing.assert_array_equal(np.frombuffer(memory, np.uint8), numbers)
    system: Any = ctypes.CDLL(None, use_errno=True)
    able = system.madvise(ctypes.c_void_p(middle // HUGE * HUGE), ctypes.c_size_t(HUGE), module._COLLAPSE) == 0
    assert (held(middle) >= 6 * HUGE // 1024) == (wanted and able)


def test_what_fails_inside_comes_out() -> None:
    with pytest.raises(ZeroDivisionError), huge_pages(True):
        _ = 1 / 0
