"""Whether collectives end, and give exactly what they must: in processes of their own.

    exact ──RankPlan──> rank 0 … rank n-1 (ranks.py, as workers of a fleet), meeting at a store
      ^                       │        of the check's own on the loopback
      └─ CaseBegun, CaseEnded ┘  nothing for a while: a hang, and in which case is known

A rank dies with the check, whatever ends that. Two processes share a device only where gloo carries
the bytes; NCCL and HCCL refuse it, and a lone rank proves nothing of links.

Public failures: vllm-ascend#3413, #486, #382; Ascend/pytorch#48; trl#6786.
"""

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta

import msgspec
import torch
import torch.distributed as dist

from interlock.chips import device, vendors
from interlock.chips.admission import MOST_RANKS
from interlock.errors import UserError
from interlock.fleet.base import Lost, Spec
from interlock.fleet.local import LocalFleet
from interlock.processes.deadline import ProcessDeadline
from interlock.processes.scratch import Scratch
from interlock.qualify import faults, ranks
from interlock.qualify.check import Evidence, Level, Subject, beyond, judged
from interlock.qualify.ranks import (
    CaseBegun,
    CaseEnded,
    CaseFailed,
    DeviceRefused,
    RankMessage,
    RankPlan,
)
from interlock.records.coding import from_bytes
from interlock.records.trust import Measure
from interlock.text import first_line

_START_S = 120.0  # for the ranks to import torch and meet
# For one case, through the host alone: the largest takes less than one second on two CPU cores.
_CASE_S = 20.0
# And through a vendor's library, which may take a minute to set links up for a new group.
_VENDOR_CASE_S = 120.0


def exact(subject: Subject) -> Evidence:
    """Every collective on all ranks; evidence as the table in checks.py wants it.

    Raises UserError where torch has no collectives for the device, a rank cannot have its own, or
    the machine is too busy to tell a hang.
    """
    if not dist.is_available():
        raise UserError("this torch is built without distributed; install one that has it")
    backend = device.backend(subject.device)
    world_size = _world_size(subject.device, backend)
    store = dist.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=_START_S)
    )
    sizes = [1, 3, 1023, 1025, 65537]
    if subject.level is not Level.QUICK:
        sizes += [2, 5, 255, 256, 257, 1024, 4095, 4096, 4097, 1 << 20, (1 << 20) + 1]
    plans = [
        RankPlan(
            device=_name(subject.device, rank),
            backend=backend,
            rank=rank,
            world_size=world_size,
            port=store.port,
            seed=subject.seed,
            sizes=sorted(sizes),
            largest=_largest(subject, world_size),
            groups=subject.at(10, 100),
            repeats=subject.at(5, 20),
            burst=subject.at(600, 6000),
        )
        for rank in range(world_size)
    ]
    with Scratch("interlock-ranks-") as logs, closing(LocalFleet()) as fleet:
        for plan in plans:
            log = logs / f"rank-{plan.rank}"
            environment = {"OMP_NUM_THREADS": "1"} | _loopback()
            fleet.start(Spec(str(plan.rank), ranks.__name__, log, env=environment))
            fleet.send(str(plan.rank), msgspec.msgpack.encode(plan))
        watch = _RankWatch(fleet, world_size, _patience(backend))
        watch.run()
    return watch.evidence(plans[0])


def _world_size(place: torch.device, backend: str) -> int:
    """How many processes can take part on this machine."""
    count = device.count(place)
    if count > 1:
        return min(count, MOST_RANKS)
    return 2 if _carriers(backend).get(place.type) == "gloo" else 1


def _carriers(backend: str) -> dict[str, str]:
    """Whose links carry a device's bytes, by the device's type: of "cpu:gloo,npu:hccl", "gloo"."""
    parts = [part.rpartition(":") for part in backend.split(",")]
    return {kind or "cpu": carrier for kind, _, carrier in parts}


def _patience(backend: str) -> float:
    """Seconds for one case."""
    return _CASE_S if set(_carriers(backend).values()) == {"gloo"} else _VENDOR_CASE_S


def _name(place: torch.device, rank: int) -> str:
    """The device of a rank, as `device.claim` takes it: the one under test first."""
    count = device.count(place)
    if count > 1:
        place = torch.device(place.type, ((place.index or 0) + rank) % count)
    return device.name(place)


def _largest(subject: Subject, world_size: int) -> int:
    """Elements of the largest case: one more than 64 MB, where libraries are known to take another
    way, at the quick level; else than 1 GB, or 128 MB through the host. If that fits: a rank has it
    up to three times, and libraries have buffers beside."""
    if device.count(subject.device) > 1:
        size, room = subject.at(64 << 20, 1 << 30), device.room(subject.device) // 8
    else:
        size = subject.at(64 << 20, 128 << 20)
        room = min(map(device.room, (subject.device, torch.device("cpu")))) // (16 * world_size)
    return max(1, min(size // 4 + 1, room // 4))


def _loopback() -> dict[str, str]:
    name = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
    return {"GLOO_SOCKET_IFNAME": name} if name else {}


@dataclass
class _Stopped:
    """Why the ranks did not come to their end."""

    case: str
    what: str  # "hangs", "breaks", …
    fault: faults.Fault | None = None


class _RankWatch:
    """The ranks seen from outside: what they said, and which case each is in."""

    def __init__(self, fleet: LocalFleet, world_size: int, case_s: float) -> None:
        self._fleet, self._world_size, self._case_s = fleet, world_size, case_s
        self._inside: dict[int, str] = {}  # the case that a rank has begun and not ended
        self._order: dict[str, None] = {}  # cases, as they were begun
        self._ended: dict[str, dict[int, CaseEnded]] = {}
        self._done: set[int] = set()
        self._failed: dict[int, CaseFailed | Lost] = {}
        self._stopped: _Stopped | None = None

    def run(self) -> None:
        """Until all ranks are done, one fails, or nothing is heard of any for too long.

        Raises UserError when a rank cannot have its device, or the machine is too busy.
        """
        while len(self._done) < self._world_size and not self._failed:
            limit = self._case_s if self._order else _START_S
            deadline = ProcessDeadline(limit, self._pids())
            while not (events := self._fleet.poll(deadline.left)):
                if deadline.over:
                    self._stopped = self._hang(deadline)
                    return
            for name, event in events:
                self._take(int(name), event)
        if self._failed:
            # What one rank dies of, the others only see as a closed connection: hear them all.
            for name, event in self._fleet.poll(1.0):
                self._take(int(name), event)
            self._stopped = self._failure()

    def evidence(self, plan: RankPlan) -> Evidence:
        measures = [self._measure(case) for case in self._order if case in self._ended]
        ranks = f"{self._world_size} ranks" if self._world_size > 1 else "one rank, so no link"
        figures: dict[str, float | int | str] = {
            "ranks": self._world_size,
            "backend": plan.backend,
            "largest MB": round(plan.largest * 4 / 2**20, 3),
        }
        good = f"{len(measures)} collectives of {ranks} end and give exactly what they must"
        bad = "{count} of {total} collectives are wrong, worst: {worst}"
        found = judged(measures, good, bad, figures, keep=300)
        if self._stopped is None:
            summary = found.summary + _advice(measures, plan.backend)
            return msgspec.structs.replace(found, summary=summary, world_size=self._world_size)
        stopped = self._stopped
        inf = Measure(stopped.case, torch.inf, 0.0, 0.0)
        figures = found.figures | {"stopped in": stopped.case, "because": stopped.what}
        if stopped.fault is not None:
            fault = stopped.fault
            figures |= {"fault": fault.code, "kind of fault": fault.kind, "advice": fault.advice}
        summary = f"{stopped.case}: {stopped.what}"
        wrong = sum(map(beyond, measures))
        summary += f"; of {len(measures)} collectives before, {wrong} were wrong"
        return Evidence(False, summary, figures, [inf, *found.measures], self._world_size)

    def _take(self, rank: int, event: bytes | Lost) -> None:
        if isinstance(event, Lost):
            if rank not in self._failed and rank not in self._done:
                self._failed[rank] = event
            return
        match from_bytes(event, RankMessage):
            case CaseBegun(case):
                if not case:
                    self._done.add(rank)
                    return
                self._inside[rank] = case
                self._order.setdefault(case)
            case CaseEnded(case) as ended:
                self._inside.pop(rank, None)
                self._ended.setdefault(case, {})[rank] = ended
            case CaseFailed() as failed:
                self._failed[rank] = failed
            case DeviceRefused(reason):
                raise UserError(f"rank {rank} of {self._world_size}: {reason}")

    def _measure(self, case: str) -> Measure:
        said = self._ended[case]
        rank, worst = max(said.items(), key=lambda item: item[1].off)
        if worst.off > 0:
            return Measure(f"{case}: rank {rank} is off by {worst.off:g}", worst.off, 0.0, 0.0)
        differing = len({ended.bits for ended in said.values()}) - 1
        name = f"{case}: the ranks hold different bits" if differing else case
        return Measure(name, float(differing), 0.0, 0.0)

    def _pids(self) -> list[int]:
        found = [self._fleet.pid(str(rank)) for rank in range(self._world_size)]
        return [pid for pid in found if pid is not None]

    def _hang(self, deadline: ProcessDeadline) -> _Stopped:
        if deadline.busy:
            raise UserError(f"the ranks said nothing within {deadline}")
        if not self._order:
            return _Stopped("joining", f"the ranks did not meet within {deadline}")
        # The first that somebody is in: those who are further wait for them.
        begun = set(self._inside.values())
        case = next((case for case in self._order if case in begun), next(reversed(self._order)))
        inside = [rank for rank in range(self._world_size) if self._inside.get(rank) == case]
        absent = [rank for rank in range(self._world_size) if rank not in self._ended.get(case, {})]
        absent = [rank for rank in absent if rank not in inside]
        what = f"hangs: {_ranks(inside)} had not returned after {deadline}"
        return _Stopped(case, what + (f", {_ranks(absent)} never came" if absent else ""))

    def _failure(self) -> _Stopped:
        """What the ranks died of, the one with the gravest words first."""
        told = [
            (rank, case, reason, faults.classify(reason))
            for rank, event in self._failed.items()
            for case, reason in [_told(event, self._inside.get(rank, "joining"))]
        ]
        peers = ("Connection closed", "Connection reset")
        told.sort(key=lambda each: any(word in each[2] for word in peers))
        rank, case, reason, fault = told[0]
        line = first_line(reason, 300) or "no reason given"
        meaning = f" ({fault.kind}: {fault.meaning})" if fault else ""
        return _Stopped(case, f"rank {rank} fails: {line}{meaning}", fault)


def _advice(measures: Sequence[Measure], backend: str) -> str:
    """What to set where nothing but the order of summation is wrong; "": no such case."""
    wrong = [*filter(beyond, measures)]
    kinds = [kind for kind, carrier in _carriers(backend).items() if carrier != "gloo"]
    settings = [setting for kind in kinds if (setting := vendors.of(kind).ordered_sums)]
    if not wrong or not settings or not all(each.name.startswith(ranks.ROUNDED) for each in wrong):
        return ""
    return f"; only the order of summation changes: set {settings[0]}, and qualify again"


def _told(event: CaseFailed | Lost, inside: str) -> tuple[str, str]:
    if isinstance(event, CaseFailed):
        return event.case, event.reason
    return inside, f"its process died: {event.reason}"


def _ranks(ranks: Sequence[int]) -> str:
    numbers = ", ".join(map(str, ranks))
    return f"rank {numbers}" if len(ranks) == 1 else f"ranks {numbers or 'none'}"
