"""Memory of a CPU: what one pass of a network frees, the next takes again.

glibc maps every large tensor anew and unmaps it when it is freed, so that the system fills the same pages with zeros
over and over: 15 to 30 % of the time of a 3-D network. Kept memory has gaps, for a quarter to a third more of it. Other
C libraries are left as they are.
"""

import ctypes
from functools import cache

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of mallopt: https://man7.org/linux/man-pages/man3/mallopt.3.html
KEPT_AT_THE_TOP = 512 << 20  # bytes at the end of the heap; what is freed below them stays in any case


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018
        return library
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return None


def keep_freed_memory() -> None:
    """Keep what is freed, for the rest of this process."""
    if library := _glibc():
        library.mallopt(MMAP_MAX, 0)
        library.mallopt(TRIM_THRESHOLD, KEPT_AT_THE_TOP)


def return_freed_memory() -> None:
    """Give what was kept back to the system."""
    if library := _glibc():
        library.malloc_trim(ctypes.c_size_t(0))
