"""How a worker may come back from quarantine: its device is qualified anew, in its place.

    quarantined ──begin──> qualifying ──Qualified──> judge ──> restarting
         ^                     │                       │
         └──── keep_out ───────┴── failed, lost, late ─┘

The worker was killed; another program (qualify/worker.py) runs in its environment and on its
device. Who is put in quarantine, and what becomes of what it gave, is for pool.py.
"""

import math
import time

import msgspec

from interlock.config.schema import FleetSettings
from interlock.errors import ConfigError
from interlock.fleet.base import Fleet
from interlock.records.metrics import WorkerState
from interlock.text import one_line
from interlock.workers import protocol, sizes
from interlock.workers.admission import verdict
from interlock.workers.handle import MESSAGE, Note, WorkerHandle
from interlock.workers.protocol import Qualified, Qualify

_PROGRAM = "interlock.qualify.worker"  # of a higher floor: known by name only


class Requalification:
    """Has workers that were quarantined qualify again, each where it runs."""

    def __init__(self, fleet: Fleet, settings: FleetSettings, note: Note) -> None:
        self._fleet, self._settings, self._note = fleet, settings, note

    def begin(self, worker: WorkerHandle) -> None:
        """Put the program in its place that finds out whether it may come back."""
        worker.may_return = False
        worker.facts.requalified += 1
        worker.accused = time.time()
        device, limit = worker.open.settings.device, self._settings.qualify_s
        try:
            self._fleet.start(msgspec.structs.replace(worker.spec, module=_PROGRAM))
        except ConfigError as error:
            self.keep_out(worker, str(error))
            return
        worker.begin(WorkerState.QUALIFYING, time.monotonic() + limit)
        worker.heard = math.inf  # like an engine, it may start in silence
        asked = Qualify(device, "quick", id=worker.number())
        most = sizes.reply_bytes(asked, worker.open.canary)
        self._fleet.send(worker.name, protocol.encode(asked), most)
        message = f"{worker.name}: {device} is being qualified, {limit:g} s at most"
        self._note("worker_qualifying", message, worker.name)

    def judge(self, worker: WorkerHandle, reply: Qualified) -> None:
        """It comes back with a clean slate, or not at all."""
        settings = worker.open.settings
        if why := verdict(reply, settings, worker.stack, worker.accused):
            self.keep_out(worker, one_line(why, MESSAGE))
            return
        self._fleet.kill(worker.name)
        worker.failures, worker.warned, worker.reason = 0, False, ""
        worker.forget_process()
        worker.begin(WorkerState.RESTARTING, time.monotonic())
        message = f"{worker.name} comes back: {settings.device} passed qualify --quick"
        self._note("worker_readmitted", message, worker.name)

    def keep_out(self, worker: WorkerHandle, why: str) -> None:
        self._fleet.kill(worker.name)
        worker.facts.state, worker.reason = WorkerState.QUARANTINED, f"{worker.reason}; {why}"
        message = f"{worker.name} stays in quarantine: {worker.reason}"
        self._note("worker_quarantined", message, worker.name)
