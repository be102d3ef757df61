"""A certificate of the simulated device here, filed as `interlock qualify` files it."""

import subprocess
import sys

import msgspec
from findings import findings_for

from interlock.chips import certificates
from interlock.records.trust import Certificate, Sizes, Stack, Trust

_DEADLINE = 240  # seconds


def simulated(name: str = "sim") -> Stack:
    """The stack of the simulated device, which this process may not have."""
    code = (
        "import msgspec, sys; from interlock.chips import device; "
        f"sys.stdout.buffer.write(msgspec.json.encode(device.stack(device.claim({name!r}))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=_DEADLINE)
    return msgspec.json.decode(done.stdout, type=Stack)


def certify(stack: Stack, trust: Trust, tried: Sizes = Sizes()) -> Certificate:  # noqa: B008
    made = Certificate(stack, "sim", 2, "quick", trust, [], findings_for(trust), 1.0, tried=tried)
    sealed = certificates.seal(made)
    certificates.keep(sealed)
    return sealed
