"""Runs one check in a process of its own, which may then have the simulated device: it can be set
up once per process, and never taken down.
"""

import subprocess
import sys
from pathlib import Path

import msgspec

from interlock.qualify.check import Evidence, beyond

_PROGRAM = Path(__file__).with_name("other_rounding.py")


def evidence(check: str, *device: str) -> Evidence:
    """What `check` ("module:function" of interlock.qualify) finds at the quick level on a device;
    by default on a healthy simulated one that rounds otherwise.
    """
    ran = subprocess.run(
        [sys.executable, str(_PROGRAM), f"interlock.qualify.{check}", "quick", *device],
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr.decode()[-4000:]
    return msgspec.msgpack.decode(ran.stdout, type=Evidence)


def failed(evidence: Evidence) -> list[str]:
    """The names of the measures beyond their limits, the worst first."""
    return [measure.name for measure in evidence.measures if beyond(measure)]
