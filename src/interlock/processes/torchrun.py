"""What torchrun leaves to its processes."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_torchrun() -> None:
    """Under torchrun: be killed when its agent is, which then cannot end its ranks any more.

    The kernel does it, so it reaches a rank that is stopped or hangs in a collective. That notice
    comes when the thread ends that started this process; torchrun's is the main one. To be called
    first of all. Elsewhere than under Linux nothing is done.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
