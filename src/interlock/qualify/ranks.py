"""One of the processes that prove the collectives: what each must have afterwards, case by case.

    RankPlan ──> join the others at the store ──> cases, the same in the same order on every rank
              └─ DeviceRefused                     └─ CaseBegun, CaseEnded | CaseFailed ──┐
                                                                   collectives.py <───────┘

Operands are small whole numbers, so that every order of summation gives the same in every dtype:
any difference is an error. They repeat themselves after a period, and so do results: the host never
holds more of either than a piece, however large a case is.

Legend: n elements of what one rank sends
"""

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from interlock.chips import device
from interlock.errors import ConfigError
from interlock.processes.channel import Channel
from interlock.sync.identity import tensor_digest

# Longer than the check waits, also on a busy machine: a hang shall be told from an error.
_TIMEOUT = timedelta(minutes=15)
_DTYPES = (torch.float32, torch.bfloat16, torch.int64)
_PERIOD = 8191  # of the operands: a prime, so that a part in the wrong place shows
_SHIFT = 37  # how far the operands of one rank are from those of the next
_LARGE = (1 << 54) + 1  # int64 operands are multiples of it: no float holds their sums
_LATE_S = 0.15
_PIECE = 512  # periods of a result on the host at a time: 16 MB of float32
FIRST = "first collective"  # which many libraries set their links up in
ROUNDED = "all_reduce of random numbers"


class RankPlan(msgspec.Struct, frozen=True):
    """What a rank is to do."""

    device: str
    backend: str
    rank: int
    world_size: int
    port: int  # of the store
    seed: int
    sizes: list[int]  # elements
    largest: int  # elements of float32
    groups: int  # to be created and destroyed
    repeats: int
    burst: int  # small sums in a row


class CaseBegun(msgspec.Struct, frozen=True, tag=True):
    """The rank has begun a case; "": it has ended them all."""

    case: str


class CaseEnded(msgspec.Struct, frozen=True, tag=True):
    """`off`: how far from the right result; `bits`: what must be the same on all ranks, or ""."""

    case: str
    off: float
    bits: str


class CaseFailed(msgspec.Struct, frozen=True, tag=True):
    """The case raised, and the rank gives up."""

    case: str
    reason: str


class DeviceRefused(msgspec.Struct, frozen=True, tag=True):
    """The rank cannot have its device."""

    reason: str


RankMessage = CaseBegun | CaseEnded | CaseFailed | DeviceRefused


def serve(channel: Channel) -> None:
    """The process of one rank: all cases in the order that all ranks have."""
    data = channel.receive()
    if data is None:
        return
    plan = msgspec.msgpack.decode(data, type=RankPlan)
    case = "joining"
    try:
        torch.set_num_threads(1)
        try:
            place = device.claim(plan.device)
        except ConfigError as error:
            channel.send(msgspec.msgpack.encode(DeviceRefused(str(error))))
            return
        rank = _join(plan, place)
        for case, run in _cases(rank):
            channel.send(msgspec.msgpack.encode(CaseBegun(case)))
            off, bits = run()
            channel.send(msgspec.msgpack.encode(CaseEnded(case, off, bits)))
        case = "leaving"
        dist.destroy_process_group()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        channel.send(msgspec.msgpack.encode(CaseFailed(case, reason[:4000])))
        return
    channel.send(msgspec.msgpack.encode(CaseBegun("")))


class _Rank:
    """One of the processes, and the operands that each of them knows of all."""

    def __init__(self, plan: RankPlan, place: torch.device, store: dist.Store) -> None:
        self.plan, self.place, self.store = plan, place, store
        self.rank, self.world_size = plan.rank, plan.world_size
        noise = torch.Generator().manual_seed(plan.seed)
        self._numbers = torch.randint(-8, 9, (_PERIOD,), generator=noise, dtype=torch.int8)

    def period(self, rank: int, dtype: torch.dtype, at: int = 0) -> Tensor:
        """[_PERIOD] on the CPU: what `rank` has from place `at` on, over and over. Sums of 16 fit
        into bfloat16."""
        numbers = self._numbers.roll(-(rank * _SHIFT + at)).to(dtype)
        return numbers * _LARGE if dtype == torch.int64 else numbers

    def own(self, n: int, dtype: torch.dtype) -> Tensor:
        """[n] on the device."""
        return _tiled(self.period(self.rank, dtype).to(self.place), n)

    def all(self, dtype: torch.dtype, at: int = 0) -> list[Tensor]:
        """The period of each rank."""
        return [self.period(rank, dtype, at) for rank in range(self.world_size)]

    def total(self, dtype: torch.dtype, at: int = 0) -> Tensor:
        """The period of the sum over all ranks."""
        return torch.stack(self.all(dtype, at)).sum(0, dtype=dtype)

    def empty(self, n: int, dtype: torch.dtype) -> Tensor:
        """Full of what no collective gives."""
        return torch.full((n,), -99, dtype=dtype, device=self.place)


def _tiled(period: Tensor, n: int) -> Tensor:
    return period.repeat(-(-n // len(period)))[:n]


def _join(plan: RankPlan, place: torch.device) -> _Rank:
    store = dist.TCPStore("127.0.0.1", plan.port, is_master=False, timeout=_TIMEOUT)
    dist.init_process_group(
        plan.backend, store=store, rank=plan.rank, world_size=plan.world_size, timeout=_TIMEOUT
    )
    return _Rank(plan, place, dist.PrefixStore("arrived", store))


# What this rank has after a collective, and the periods of what it must have: as many equal parts.
CollectiveResult = tuple[Tensor, list[Tensor]]
Collective = Callable[[_Rank, int, torch.dtype], CollectiveResult]
# The names of torch 2.13, or those that it replaces.
_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_scatter_from = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def _sum(r: _Rank, n: int, dtype: torch.dtype) -> CollectiveResult:
    x = r.own(n, dtype)
    dist.all_reduce(x)
    return x, [r.total(dtype)]


def _max(r: _Rank, n: int, dtype: torch.dtype) -> CollectiveResult:
    x = r.own(n, dtype)
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x, [torch.stack(r.all(dtype)).amax(0)]


def _broadcast(r: _Rank, n: int, dtype: torch.dtype) -> CollectiveResult:
    root = r.world_size - 1
    x = r.own(n, dtype)
    dist.broadcast(x, root)
    return x, [r.period(root, dtype)]


def _all_gather(r: _Rank, n: int, dtype: torch.dtype) -> CollectiveResult:
    x = r.empty(n * r.world_size, dtype)
    _gather_into(x, r.own(n, dtype))
    return x, r.all(dtype)


def _reduce_scatter(r: _Rank, n: int, dtype: torch.dtype) -> CollectiveResult:
    x = r.empty(n, dtype)
    _scatter_from(x, r.own(n * r.world_size, dtype))
    return x, [r.total(dtype, at=n * r.rank)]


def _all_to_all(r: _Rank, n: int, dtype: torch.dtype) -> CollectiveResult:
    x = r.empty(n * r.world_size, dtype)
    dist.all_to_all_single(x, r.own(n * r.world_size, dtype))
    return x, r.all(dtype, at=n * r.rank)


def _ring(r: _Rank, n: int, dtype: torch.dtype) -> CollectiveResult:
    """Everyone sends to the next; the even ones first, so that somebody always listens."""
    x, after, before = r.empty(n, dtype), (r.rank + 1) % r.world_size, (r.rank - 1) % r.world_size
    own = r.own(n, dtype)
    if r.rank % 2 == 0:
        dist.send(own, after)
    dist.recv(x, before)
    if r.rank % 2 == 1:
        dist.send(own, after)
    return x, [r.period(before, dtype)]


_COLLECTIVES: dict[str, Collective] = {
    "all_reduce sum": _sum,
    "all_reduce max": _max,
    "broadcast": _broadcast,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "all_to_all": _all_to_all,
    "send and recv": _ring,
}
# How many times what a rank sends it needs in all: the largest case is the same in memory.
_SPREAD = ("all_gather", "reduce_scatter", "all_to_all")

# How far off, and what must be the same on all ranks; as in CaseEnded.
CaseOutcome = tuple[float, str]


def _cases(r: _Rank) -> Iterator[tuple[str, Callable[[], CaseOutcome]]]:
    """The name of each case and what runs it; the same ones in the same order on every rank."""
    offered = {
        name: run for name, run in _COLLECTIVES.items() if r.world_size > 1 or run is not _ring
    }
    yield FIRST, partial(_once, r, _sum, 1, torch.float32)
    for name, run in offered.items():
        for dtype in _DTYPES:
            for n in r.plan.sizes:
                yield _titled(name, dtype, n), partial(_once, r, run, n, dtype)
    for name, run in offered.items():
        for dtype in (torch.float32, torch.bfloat16):
            n = r.plan.largest * 4 // dtype.itemsize
            n = max(1, n // r.world_size) if name in _SPREAD else n
            yield _titled(name, dtype, n), partial(_once, r, run, n, dtype)
    for number, (name, run) in enumerate(offered.items()):
        late = number % r.world_size
        title = f"{_titled(name, torch.float32, 1000)}, rank {late} late"
        yield title, partial(_once, r, run, 1000, torch.float32, late)
    for late in range(r.world_size):
        yield f"barrier, rank {late} late", partial(_barrier, r, late)
    for number in range(r.plan.groups):
        yield f"group {number + 1} made, used and destroyed", partial(_group, r)
    yield f"{r.plan.burst} small sums in a row", partial(_burst, r)
    yield f"{ROUNDED}, {r.plan.repeats} times", partial(_repeats, r)


def _titled(name: str, dtype: torch.dtype, n: int) -> str:
    return f"{name} {str(dtype).removeprefix('torch.')} [{n}]"


def _once(
    r: _Rank, run: Collective, n: int, dtype: torch.dtype, late: int | None = None
) -> CaseOutcome:
    if r.rank == late:
        time.sleep(_LATE_S)
    return _off(*run(r, n, dtype)), ""


def _barrier(r: _Rank, late: int) -> CaseOutcome:
    """Off by the ranks that had not come when this one was let through: nobody has a sum before
    everyone has given its part. (torch's own barrier may go over the host's links instead.)"""
    if r.rank == late:
        time.sleep(_LATE_S)
    r.store.set(f"{late}/{r.rank}", "here")
    one = torch.ones(1, device=r.place)
    dist.all_reduce(one)
    one.item()  # waits for the device
    return float(sum(not r.store.check([f"{late}/{each}"]) for each in range(r.world_size))), ""


def _group(r: _Rank) -> CaseOutcome:
    group = dist.new_group(list(range(r.world_size)))
    x = r.own(16, torch.float32)
    dist.all_reduce(x, group=group)
    off = _off(x, [r.total(torch.float32)])
    dist.destroy_process_group(group)
    return off, ""


def _burst(r: _Rank) -> CaseOutcome:
    """Small sums, none of which waits for the one before."""
    sums = [r.own(17, torch.float32) for _ in range(r.plan.burst)]
    for under_way in [dist.all_reduce(each, async_op=True) for each in sums]:
        under_way.wait()
    return _off(torch.cat(sums), [r.total(torch.float32)[:17]]), ""


def _repeats(r: _Rank) -> CaseOutcome:
    """Numbers whose sum depends on the order: it must be one order, on all ranks and every time.

    Off by the repeats that gave other bits than the first. HCCL does so unless HCCL_DETERMINISTIC
    is set; NCCL may where switches add up (NVLS).
    """
    noise = torch.Generator().manual_seed(r.plan.seed + 1 + r.rank)
    drawn = torch.randn(min(1 << 18, r.plan.largest), generator=noise)
    found = []
    for _ in range(r.plan.repeats):
        x = drawn.to(r.place, copy=True)
        dist.all_reduce(x)
        found.append(tensor_digest(x.cpu()))
    return float(sum(each != found[0] for each in found)), found[0]


def _off(found: Tensor, periods: list[Tensor]) -> float:
    """The largest difference from equal parts that repeat each its period; inf where it is not a
    number."""
    worst = 0.0
    for part, period in zip(found.view(len(periods), -1), periods, strict=True):
        for piece in part.split(_PIECE * len(period)):
            worst = max(worst, _apart(piece.cpu(), _tiled(period, len(piece))))
    return worst


def _apart(found: Tensor, expected: Tensor) -> float:
    if torch.equal(found, expected):
        return 0.0
    # Of int64 the difference first: as floats both may look the same.
    difference = (found - expected).double().abs()
    return difference.nan_to_num(nan=torch.inf, posinf=torch.inf).max().item()
