"""Is an operator far slower than the device's own copies and products allow?

    copies, products ──> the roofline ─────────┐
                                               ├─> slowdown of each operator ─ above the limit? ─┐
    operators of decode, prefill, training ────┘        again, beside a new roofline <───────────┘

An operator that a backend sends to the host moves its data over a bus and back, and runs there on a
few cores: tens to hundreds of times slower than it should be, often without a word (Ascend/pytorch
issue 40, LlamaFactory#4836). Only that is looked for. Every figure is the best of several runs, so
that a busy machine is told from a slow operator; a device that is slow in everything is a healthy
one; and an operator that is a few times slower than it could be costs money, not trust.

The roofline: Williams, Waterman and Patterson, "Roofline", CACM 52 (2009).

Legend: n elements of a case's tensor, large enough that launching an operator is nothing; W a wide
        row, as logits are; D a narrow one, as hidden states are
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interlock.chips import device as chips
from interlock.chips import vendors
from interlock.qualify.check import Evidence, Level, Subject, judged, short
from interlock.records.trust import Measure

# Times slower than expected. A healthy CPU stays below 5, and one with six times more work than it
# has cores below 11, even before an operator is measured again.
LIMIT = 20.0
_PAUSES_S = (0.0, 0.1, 0.3)  # before each time that it is
_DTYPES = (torch.float32, torch.bfloat16)
_WIDE, _NARROW = 32768, 1024
_LARGEST = 1 << 27  # elements
# On accelerators no operator needs more than so many copies, but those that put numbers in order. A
# CPU's cost would excuse there what a fallback to the host takes.
_MOST_COST = 4.0
_ORDERING = ("sort", "topk")
_SHORTEST_S = 1e-4  # of a copy of n elements
_LAUNCHES = 10  # that it must take, too
_ROWS = (1, 8, 64, 512)  # of products: decoding, and prefill or training


@dataclass(frozen=True)
class Inputs:
    """Tensors of n elements in one dtype, and what operators read beside them."""

    wide: Tensor  # [n/W, W]
    narrow: Tensor  # [n/D, D]
    other: Tensor  # [n/D, D]
    mask: Tensor  # [n/D, D] bool
    places: Tensor  # [n/D] int64, a permutation of the narrow rows
    targets: Tensor  # [n/W, W/4] int64, places in a wide row


@dataclass(frozen=True)
class SpeedCase:
    """One operator. `cost`: its time on a healthy CPU, in copies of n float32 elements; the larger
    of float32 and bfloat16, one thread, AVX-512. On accelerators most cost less: see _cost.
    """

    name: str
    run: Callable[[Inputs], Any]
    cost: float


_FORWARD = (
    SpeedCase("softmax", lambda i: i.wide.softmax(-1), 3),
    SpeedCase("log_softmax", lambda i: i.wide.log_softmax(-1), 3),
    SpeedCase("exp", lambda i: i.wide.exp(), 2),
    SpeedCase("amax", lambda i: i.wide.amax(-1), 1),
    SpeedCase("sum", lambda i: i.wide.sum(-1), 1),
    SpeedCase("argmax", lambda i: i.wide.argmax(-1), 13),
    SpeedCase("cumsum", lambda i: i.wide.cumsum(-1), 5),
    SpeedCase("gather", lambda i: i.wide.gather(1, i.targets), 2),
    SpeedCase("topk", lambda i: i.wide[: len(i.wide) // 4].topk(256), 6),
    SpeedCase("sort", lambda i: i.wide[: len(i.wide) // 8].sort(descending=True), 40),
    SpeedCase("pow", lambda i: i.narrow.pow(2), 1),
    SpeedCase("mean", lambda i: i.narrow.mean(-1, keepdim=True), 1.5),
    SpeedCase("rsqrt", lambda i: i.narrow.rsqrt(), 1.5),
    SpeedCase("mul", lambda i: i.narrow * i.other, 1.5),
    SpeedCase("add", lambda i: i.narrow + i.other, 1.5),
    SpeedCase("div", lambda i: i.narrow / i.other, 1.5),
    SpeedCase("silu", lambda i: F.silu(i.narrow), 3),
    SpeedCase("sigmoid", lambda i: i.narrow.sigmoid(), 2),
    SpeedCase("cos", lambda i: i.narrow.cos(), 3),
    SpeedCase("lerp", lambda i: i.narrow.lerp(i.other, 0.5), 1.5),
    SpeedCase("masked_fill", lambda i: i.narrow.masked_fill(i.mask, 0.0), 20),
    SpeedCase("where", lambda i: torch.where(i.mask, i.narrow, i.other), 18),
    SpeedCase("compare", lambda i: i.narrow > i.other, 5),
    SpeedCase("isfinite", lambda i: i.narrow.isfinite(), 9),
    SpeedCase("cat", lambda i: torch.cat([i.narrow, i.other], -1), 2),
    SpeedCase("copy", lambda i: i.narrow.clone(), 1),
    SpeedCase("copy transposed", lambda i: i.narrow.T.contiguous(), 5),
    SpeedCase("cast", lambda i: i.narrow.to(_another(i.narrow.dtype)), 1),
    SpeedCase("index", lambda i: i.narrow[i.places], 4),
    SpeedCase("index_select", lambda i: i.narrow.index_select(0, i.places), 1),
    SpeedCase("index_copy", lambda i: i.narrow.index_copy(0, i.places, i.other), 4),
    SpeedCase("embedding", lambda i: F.embedding(i.places, i.narrow), 1),
)
_BACKWARD = (
    SpeedCase("softmax backward", lambda i: _backward(i.wide, lambda x: x.softmax(-1)), 5),
    SpeedCase("log_softmax backward", lambda i: _backward(i.wide, lambda x: x.log_softmax(-1)), 6),
    SpeedCase("silu backward", lambda i: _backward(i.narrow, F.silu), 6),
    SpeedCase("mul backward", lambda i: _backward(i.narrow, lambda x: x * i.other), 3),
    SpeedCase(
        "index_select backward",
        lambda i: _backward(i.narrow, lambda x: x.index_select(0, i.places)),
        4,
    ),
    SpeedCase(
        "embedding backward", lambda i: _backward(i.narrow, lambda x: F.embedding(i.places, x)), 3
    ),
    SpeedCase("norm", lambda i: torch.linalg.vector_norm(i.narrow), 0.5),
    SpeedCase("addcdiv", lambda i: torch.addcdiv(i.narrow, i.other, i.other), 2),
)


def roofline(subject: Subject) -> Evidence:
    """Every operator of the three programs against the device's own copies and products."""
    meter = Meter(subject.device, subject.at(3, 5))
    size = meter.size()
    figures: dict[str, float | int | str] = {
        "seconds of a launch": meter.launch,
        "elements of a case": size,
        "GB/s of copy": 8e-9 * size / meter.copy_seconds(size),
    }
    measures = []
    for dtype in _DTYPES:
        inputs = _inputs(subject, size, dtype)
        name = short(dtype)
        for case in _FORWARD + _BACKWARD:
            value = meter.confirmed(partial(_slowdown, meter, case, inputs))
            measures.append(Measure(f"{case.name} {name} [{size}]", value, LIMIT))
        products = _Products(meter, inputs)
        figures[f"GFLOP/s of matmul {name}"] = products.rate() * 1e-9
        for product, run in products.cases(subject.level).items():
            measures.append(Measure(f"{product} {name}", meter.confirmed(run), LIMIT))
    slowest = max(measures, key=lambda measure: measure.value)
    figures["slowest operator, against the expected time"] = slowest.value
    return judged(
        measures,
        "no operator is far slower than the device's own copies and products allow; the slowest "
        f"is {slowest.name}, {slowest.value:.1f} times what a healthy CPU would make of it",
        "{count} of {total} operators are more than "
        f"{LIMIT:.0f} times slower than the device's own copies and products allow, as when they "
        "run on the host; worst: {worst}, "
        f"{slowest.value:.0f} times",
        figures,
    )


class Meter:
    """Takes times on one device, each the best of `repeats`, after a first run that warms up."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        one = torch.ones(1, device=device)
        self.launch = self.seconds(lambda: one + one)
        self._copies: dict[int, float] = {}

    def seconds(self, run: Callable[[], Any]) -> float:
        """The best time of one call."""
        run()
        best = math.inf
        for _ in range(self.repeats):
            chips.synchronize(self.device)
            start = time.perf_counter()
            run()
            chips.synchronize(self.device)
            best = min(best, time.perf_counter() - start)
        return best

    def size(self) -> int:
        """n: a power of two, so many elements that a copy takes far longer than a launch."""
        free = chips.room(self.device)
        size = _WIDE * 32
        while (
            self.copy_seconds(size) < max(_SHORTEST_S, _LAUNCHES * self.launch)
            and size < _LARGEST
            and size * 128 < free
        ):
            size *= 2
        return size

    def copy_seconds(self, size: int) -> float:
        """Of `size` float32 elements; by the best of what moves two of them per element, or three,
        lest a slow copy make everything else look fast."""
        if size not in self._copies:
            x = torch.ones(size, device=self.device)
            y = torch.ones(size, device=self.device)
            moves = [self.seconds(lambda: y.copy_(x)), self.seconds(lambda: x * 2)]
            self._copies[size] = min(*moves, self.seconds(lambda: torch.add(x, y)) * 2 / 3)
        return self._copies[size]

    def confirmed(self, slowdown: Callable[[], float]) -> float:
        """A slowdown; one beyond the limit is measured again, and the best counts: other work on
        the machine does not come back at the same operator every time."""
        found = slowdown()
        for pause in _PAUSES_S:
            if found <= LIMIT:
                break
            time.sleep(pause)
            self._copies.clear()
            found = min(found, slowdown())
        return found


class _Products:
    """Matrix products of `inputs`' dtype, against the best rate that any of them reaches."""

    def __init__(self, meter: Meter, inputs: Inputs) -> None:
        size = inputs.narrow.numel()
        side = 1 << (size.bit_length() - 1) // 2  # the weight has n elements, or half
        flat = inputs.narrow.flatten()
        self._meter = meter
        self._copy = meter.copy_seconds(size) / (8 * size)  # seconds per byte
        self._weight = flat[: side * side].view(side, side)
        self._bytes = flat.element_size()
        self._queries = flat[: size // 2].view(-1, 8, 256, 64)
        self._rate = 0.0

    def rate(self) -> float:
        """FLOP/s, the best of the two operators that make products; of rows by rows, as layers
        multiply: the other layout of bfloat16 takes minutes on CPUs without its instructions."""
        if not self._rate:
            x, w = self._weight[:1024], self._weight.mT
            square = self._meter.seconds(lambda: x @ w)
            batched = self._meter.seconds(lambda: torch.bmm(x[None], w[None]))
            self._rate = 2 * len(x) * w.numel() / min(square, batched)
        return self._rate

    def cases(self, level: Level) -> dict[str, Callable[[], float]]:
        rows = _ROWS[1:] if level is Level.QUICK else _ROWS
        side = len(self._weight)
        found: dict[str, Callable[[], float]] = {
            f"linear [{row}, {side}] @ [{side}, {side}]": partial(self._linear, row) for row in rows
        }
        shape = list(self._queries.shape)
        found[f"q @ k {shape}"] = lambda: self._attention(2, lambda q: q @ q.mT)
        found[f"attention {shape}"] = lambda: self._attention(
            4, lambda q: F.scaled_dot_product_attention(q, q, q)
        )
        return found

    def _linear(self, rows: int) -> float:
        w = self._weight
        x = w[:rows] if rows <= len(w) else w
        flops = 2 * len(x) * w.numel()
        moved = self._bytes * (w.numel() + 2 * x.numel())
        return self._against(lambda: F.linear(x, w), flops, moved)

    def _attention(self, products: int, run: Callable[[Tensor], Tensor]) -> float:
        q = self._queries
        scores = q.numel() // q.shape[-1] * q.shape[-2]
        # Where it is not fused, the scores are written, and read and written by the softmax.
        moved = self._bytes * 4 * q.numel() + (products - 1) * 8 * scores
        return self._against(lambda: run(q), products * scores * q.shape[-1], moved)

    def _against(self, run: Callable[[], Any], flops: int, moved: int) -> float:
        # Few rows reach neither the rate of many nor that of a copy.
        expected = flops / self.rate() + moved * self._copy + self._meter.launch
        return self._meter.seconds(run) / expected


def _slowdown(meter: Meter, case: SpeedCase, inputs: Inputs) -> float:
    expected = _cost(case, meter.device) * meter.copy_seconds(inputs.narrow.numel()) + meter.launch
    return meter.seconds(lambda: case.run(inputs)) / expected


def _cost(case: SpeedCase, place: torch.device) -> float:
    """In copies."""
    if vendors.of(chips.kind(place)).host or case.name in _ORDERING:
        return case.cost
    return min(case.cost, _MOST_COST)


def _inputs(subject: Subject, size: int, dtype: torch.dtype) -> Inputs:
    """Numbers between 1/2 and 3/2, of which nothing is ever rare or slow."""
    noise = torch.Generator().manual_seed(subject.seed)
    drawn = torch.rand(_WIDE * 32, generator=noise) + 0.5
    rows, device = size // _NARROW, subject.device
    # Drawn once and repeated: the host would take minutes for what an accelerator's sizes ask.
    flat = drawn.to(device=device, dtype=dtype).repeat(size // len(drawn))
    places = torch.randperm(rows, generator=noise)
    targets = torch.randint(0, _WIDE, (1, _WIDE // 4), generator=noise)
    return Inputs(
        wide=flat.view(-1, _WIDE),
        narrow=flat.view(-1, _NARROW),
        other=flat.flip(0).view(-1, _NARROW),
        mask=(flat > 1).view(-1, _NARROW),
        places=places.to(device),
        targets=targets.to(device).expand(size // _WIDE, -1).contiguous(),
    )


def _backward(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Forward and backward of one function; the gradient is that of its output, as it stands."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        out = function(leaf)
    return torch.autograd.grad(out, leaf, out.detach())[0]


def _another(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.bfloat16 else torch.bfloat16
