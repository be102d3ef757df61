"""A run of a benchmark that goes on where it was cut off, and is not run again once finished."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from interlock.errors import RunError
from interlock.rundir import RunDir


def finish(command: Sequence[str], directory: Path) -> None:
    """`interlock train …` without its directory. Raises CalledProcessError when it fails."""
    try:
        status = RunDir.read(directory).status
    except RunError:
        status = None
    if status != "finished":
        resume = [] if status is None else ["--resume"]
        subprocess.run([*command, "--run", str(directory), *resume], check=True)
