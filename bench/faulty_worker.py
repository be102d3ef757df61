"""The stub worker of tests/support, which also writes down when a fault struck: bench/recovery.py.

One line per fault goes to $STUB_STATE with the suffix .struck: time.monotonic() and its name.
"""

import time

import stub_worker  # type: ignore[import-not-found]

from interlock.fleet.base import Channel


class Witness(stub_worker.Stub):  # type: ignore[misc]
    def due(self, event: str, *faults: str) -> str:
        fault: str = super().due(event, *faults)
        if fault:
            with open(self.state.with_suffix(".struck"), "a") as file:
                file.write(f"{time.monotonic()} {fault}\n")
        return fault


def serve(channel: Channel) -> None:
    stub_worker.Stub = Witness
    stub_worker.serve(channel)
