"""Memory of the host that was freed stays with the process, to be used again."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# From <malloc.h> of glibc.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1
_STEP = 64 << 20  # bytes that the heap grows by


def keep_freed() -> None:
    """For a process that computes on the CPU; without effect where the C library is not glibc.

    glibc gives large blocks back to the kernel when they are freed. A step allocates the same ones
    again, and every page of them then costs a fault: a fifth of the time of a step on a CPU.
    """
    if (libc := _glibc()) is None:
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    libc.mallopt(_TOP_PAD, _STEP)


@contextmanager
def apart() -> Iterator[None]:
    """Around one phase of a step: what is free before and after it goes back to the kernel.

    Phases cannot use the pieces well that others left: without this, a process that generates and
    updates in turns holds up to a fifth more than the hungriest of them needs.
    """
    release()
    try:
        yield
    finally:
        release()


def release() -> None:
    """Give all that is free at this moment back to the kernel."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if libc is not None and hasattr(libc, "gnu_get_libc_version") else None
