"""Which worker is given what: weights to whoever serves others, units to whoever has room for them.

    Room, what it serves ──> give_out ──Load──────> as soon as weights are published, one at a time
                                     └──Generate──> the most urgent unit, to whoever has most room

A worker asks for work: it says how many sequences it could take, a few to look ahead included, so
that its slots are filled again without waiting for the answer. It is given units while it has any
room at all. An exact unit needs a worker that holds nothing, and has it to itself.
"""

import time
from collections.abc import Sequence
from functools import partial

import msgspec

from interlock.config.schema import FleetSettings
from interlock.fleet.base import Fleet
from interlock.workers import protocol, sizes
from interlock.workers.handle import UP, HeldUnit, PendingLoad, WorkerHandle
from interlock.workers.protocol import Generate, Load
from interlock.workers.queue import Unit, UnitQueue
from interlock.workers.replies import Target


class Placement:
    """Gives units to the workers that have room for them and serve the right weights."""

    def __init__(self, fleet: Fleet, settings: FleetSettings, queue: UnitQueue) -> None:
        self._fleet, self._settings, self._queue = fleet, settings, queue

    def give_out(self, workers: Sequence[WorkerHandle], target: Target) -> None:
        """Everything that can be given out now. `target`: the weights to serve."""
        now = time.monotonic()
        up = [worker for worker in workers if worker.facts.state in UP]
        willing = [worker for worker in up if now >= worker.idle_until]
        for worker in willing:
            if worker.wants(target, now):
                self._load(worker, target, now)
        names = {worker.name for worker in up}
        free = [worker for worker in willing if worker.free]
        while free:
            worker = max(free, key=lambda each: each.room)
            unit = self._queue.pick(worker.name, names, partial(worker.takes, target=target))
            if unit is not None:
                self._give(worker, unit, now)
            if unit is None or not worker.free:
                free.remove(worker)

    def ask(self, worker: WorkerHandle, message: protocol.Ask) -> int:
        """Send it under the next number, which it returns."""
        number = worker.number()
        numbered = msgspec.structs.replace(message, id=number)
        most = sizes.reply_bytes(message, worker.open.canary)
        worker.reply_bytes = max(worker.reply_bytes, most) if worker.busy else most
        self._fleet.send(worker.name, protocol.encode(numbered), worker.reply_bytes)
        return number

    def _load(self, worker: WorkerHandle, target: Target, now: float) -> None:
        # What it draws as proof waits for a slot, at the latest until the units are done.
        busy = max((held.deadline - now for held in worker.held.values()), default=0.0)
        asked = self.ask(worker, Load(target.version.number, target.version.digest))
        fetch_by = now + self._settings.load_s
        worker.loading = PendingLoad(asked, target, fetch_by, fetch_by + busy)

    def _give(self, worker: WorkerHandle, unit: Unit, now: float) -> None:
        work, serves = unit.work, worker.serves
        assert serves is not None
        served, problems = serves.version.number, list(work.problems)
        rules = work.completions, work.sampling, work.seed, work.exact, work.replay
        held = HeldUnit(unit, now + self._settings.unit_s, served)
        worker.held[self.ask(worker, Generate(served, problems, *rules))] = held
        if (loading := worker.loading) and now < loading.fetch_by:  # it may run before the proof
            loading.deadline = max(loading.deadline, held.deadline + self._settings.load_s)
        worker.room -= work.sequences
