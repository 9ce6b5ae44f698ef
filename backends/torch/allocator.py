"""Memory that a training step frees is kept for the next one."""

from __future__ import annotations

import ctypes
import platform

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Parameters of mallopt(3)."""
_LARGEST = 1 << 30


def keep_pages() -> bool:
    """Tell glibc not to give large blocks back to the kernel at every free; whether it took it.

    Every activation of a step is larger than what glibc keeps by itself, so each would be mapped, zeroed page by page
    when first written, and unmapped again, in every step. Acts on the whole process; elsewhere it does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))
