"""Memory of a session in pages of 2 MB, so that kernels which read every weight once a token seek fewer pages.

Linux gives small pages unless told, and the runtime does not tell it. `madvise(2)`: MADV_COLLAPSE, since Linux 6.1.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

HUGE = 2 << 20
"""Bytes of a huge page where ordinary ones have 4 kB."""

_COLLAPSE = 25
_MAPS = Path("/proc/self/maps")

Span = tuple[int, int]
"""The first address of a region, and the first behind it."""


@contextlib.contextmanager
def huge_pages(wanted: bool) -> Generator[None]:
    """What the process allocates and fills within the block lies in huge pages after it, where the system has them."""
    if not wanted or sys.platform != "linux" or not _MAPS.exists():
        yield
        return
    before = list(_private())
    yield
    system: Any = ctypes.CDLL(None, use_errno=True)
    for span in new_spans(list(_private()), before):
        if not all(_collapsed(system, start) for start in filled_pages(system, span)):
            return  # The kernel does not know the request, or has no whole pages left.


def new_spans(now: list[Span], before: list[Span]) -> list[Span]:
    """The parts of regions `now` that no region `before` covers; both in the order of addresses."""
    found = list[Span]()
    for start, end in now:
        for first, last in before:
            if first < end and start < last:
                if start < first:
                    found.append((start, first))
                start = max(start, last)
        if start < end:
            found.append((start, end))
    return found


def filled_pages(system: Any, span: Span) -> Iterator[int]:
    """Addresses of whole huge pages in a region, all of whose memory is resident already."""
    small = HUGE // mmap.PAGESIZE
    resident = (ctypes.c_ubyte * small)()
    for start in range(-(-span[0] // HUGE) * HUGE, span[1] - HUGE + 1, HUGE):
        told = system.mincore(ctypes.c_void_p(start), ctypes.c_size_t(HUGE), resident)
        if told == 0 and all(byte & 1 for byte in resident):
            yield start


def _collapsed(system: Any, start: int) -> bool:
    return system.madvise(ctypes.c_void_p(start), ctypes.c_size_t(HUGE), _COLLAPSE) == 0


def _private() -> Iterator[Span]:
    """Regions of this process that it may write, and that no file is behind: the heap, and what is mapped for it."""
    for line in _MAPS.read_text().splitlines():
        where, rights, _, _, _, *name = line.split(maxsplit=5)
        if rights == "rw-p" and (not name or name[0].strip() == "[heap]"):
            start, end = where.split("-")
            yield int(start, 16), int(end, 16)
