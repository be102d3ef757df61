"""Memory of the host that was freed stays with the process, to be used again."""

import ctypes
import sys

# From <malloc.h> of glibc.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1
_STEP = 64 << 20  # bytes that the heap grows by


def keep_freed() -> None:
    """For a process that computes on the CPU; without effect where the C library is not glibc.

    glibc gives large blocks back to the kernel when they are freed. A step allocates the same ones
    again, and every page of them then costs a fault: a fifth of the time of a step on a CPU.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "gnu_get_libc_version"):
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    libc.mallopt(_TOP_PAD, _STEP)
