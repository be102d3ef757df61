"""One writer at a time, by a lock that the kernel takes back when its process ends, however."""

import fcntl
import time
from typing import TextIO

from interlock.processes.deadline import Deadline

# A reader holds a lock for an instant, to learn whether there is a writer; so does what a killed
# writer was about to start, until it has become another program.
_PATIENCE_S = 1.0


def locked(file: TextIO | int) -> bool:
    """Whether `file` is this process's now, until it is closed; False while another has it."""
    deadline = Deadline(_PATIENCE_S)
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if deadline.over:
                return False
            time.sleep(0.05)
        else:
            return True
