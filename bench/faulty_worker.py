"""The stub worker of tests/support for bench/recovery.py: a witness of its own faults.

One line per fault goes to $STUB_STATE with the suffix .struck: time.monotonic() and its name. When
it is given a store it really fetches the weights from there, which it then does not use.
"""

import time

import stub_worker  # type: ignore[import-not-found]

from interlock.errors import SyncError
from interlock.processes.channel import Channel
from interlock.records.rl import WeightVersion
from interlock.workers.protocol import Failed, Failure, Load, Open


class Witness(stub_worker.Stub):
    def due(self, event: str, *faults: str) -> str:
        fault: str = super().due(event, *faults)
        if fault:
            with open(self.state.with_suffix(".struck"), "a") as file:
                file.write(f"{time.monotonic()} {fault}\n")
        return fault

    def open(self, asked: Open) -> None:
        self.replica = None
        if asked.store:
            from interlock.sync.replica import Replica  # imports torch

            self.replica = Replica(asked.store)
        super().open(asked)

    def load(self, asked: Load) -> None:
        try:
            if self.replica is not None:
                self.replica.fetch(WeightVersion(asked.number, asked.digest))
        except SyncError as error:
            self.send(Failed(str(error), Failure.LINK, [asked.id]))
            return
        super().load(asked)


def serve(channel: Channel) -> None:
    stub_worker.Stub = Witness
    stub_worker.serve(channel)
