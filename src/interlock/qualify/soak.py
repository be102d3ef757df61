"""Whether a device keeps computing the same under load: products, layers and copies, over and over.

    a round: every work ── what differs is counted on the device ──> read once ──> errors

Most products have operands of one bit each, 256 of them in a row at the most, so that every order
of summation gives the same number even where sums are kept in bfloat16: a healthy device has no
excuse for any other bit. Layers of a decoder do round, and may differ from one repeat to the next
(an accelerator may add in any order) by as much as rounding explains. The host waits for the device
only at the end of a round, which leaves it no pause.

A crash or a hang of the device ends this process, and is the runner's to see.

Legend: H hidden size, M rows
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from interlock.chips import device
from interlock.models.attention import causal
from interlock.qualify import tiny_model
from interlock.qualify.check import Evidence, Level, Subject, judged, short
from interlock.records.trust import Measure
from interlock.text import error_headline

DTYPES = (torch.float32, torch.bfloat16)
# Every partial sum of this many ±1 is a whole number that bfloat16 holds.
_SUMMANDS = 256
_PREFILL = 256  # rows
_TALL = 16  # prefills in one product, on a device that is fast enough
_FAST = 2048  # its hidden size
_DECODE = (1, 8)  # rows; such products are short, and come in bursts
_BURST = 128
_DECODE_COLUMNS = 128
_LEAST_ROUNDS = 6  # however slow the device is: some 12,000 products
# Layers may differ from themselves by so many times the rounding error that the CPU has in them.
_BAND = 16
_BITS = {"0101…": 0x55555555, "1010…": -0x55555556, "ones": -1}


@dataclass
class _Repeated:
    """Something to be computed again and again, with the result that it must have.

    What differs is counted where the result is, and known to the host once it is `read`.
    """

    name: str
    run: Callable[[], Tensor]
    expected: Tensor  # of the result's shape, or of its last dimensions
    band: float = 0.0  # differences up to here are counted, not condemned
    runs: int = 0
    wrong: int = 0  # elements with a difference beyond the band
    rounded: int = 0  # elements with another one
    _counts: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._counts = torch.zeros(2, dtype=torch.int64, device=self.expected.device)

    def repeat(self) -> None:
        found = self.run()
        self.runs += 1
        differs = found.ne(self.expected)
        if self.band:
            near = (found - self.expected).abs() <= self.band  # never of NaN
            self._counts[1].add_((differs & near).sum())
            differs &= ~near
        self._counts[0].add_(differs.sum())

    def read(self) -> None:
        """Wait for all repeats so far."""
        self.wrong, self.rounded = self._counts.tolist()

    def measure(self) -> Measure:
        many = f": {self.wrong} elements, of {self.runs} runs" if self.wrong else ""
        return Measure(self.name + many, float(self.wrong), 0.0, 0.0)


def soak(subject: Subject) -> Evidence:
    """Load for 3 s, 10 s or as many minutes as are asked for; every result is compared.

    Raises RuntimeError that names the work in which the device failed.
    """
    seconds = 60 * subject.minutes if subject.level is Level.SOAK else subject.at(3, 10)
    place = subject.device
    began = time.monotonic()
    works: list[_Repeated] = []
    hidden = _affordable(place)
    for make in (_products, _layers, _copies):
        with naming(make.__name__.strip("_")):
            works += make(subject, hidden)
    rounds = 0
    while rounds < _LEAST_ROUNDS or time.monotonic() - began < seconds:
        for work in works:
            with naming(f"{work.name}, {time.monotonic() - began:.1f} s into the soak"):
                work.repeat()
            if rounds >= _LEAST_ROUNDS and time.monotonic() - began >= seconds:
                break
        for work in works:
            with naming(f"{work.name}, {time.monotonic() - began:.1f} s into the soak"):
                work.read()
        rounds += 1
    runs = sum(work.runs for work in works)
    took = time.monotonic() - began
    figures: dict[str, float | int | str] = {
        "seconds": round(took, 1),
        "results compared": runs,
        "wrong elements": sum(work.wrong for work in works),
        "elements that differ by rounding": sum(work.rounded for work in works),
        "hidden size": hidden,
    }
    return judged(
        [work.measure() for work in works],
        f"{runs} results in {took:.0f} s under load, all as they must be",
        f"{{count}} of {{total}} computations gave wrong bits in {took:.0f} s, worst: {{worst}}",
        figures,
    )


@contextmanager
def naming(case: str) -> Iterator[None]:
    """Have what the device raises say where."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(f"{case}: {error_headline(error)}") from error


def _affordable(place: torch.device) -> int:
    """A hidden size whose products take milliseconds: of real models on an accelerator."""
    x, w = torch.ones(256, 512, device=place), torch.ones(512, 2048, device=place)
    (x @ w).sum().item()
    began = time.perf_counter()
    (x @ w).sum().item()
    speed = 2 * 256 * 512 * 2048 / (time.perf_counter() - began)  # FLOP/s
    return _FAST if speed > 2e12 else 1024 if speed > 2e11 else 512


def _products(subject: Subject, hidden: int) -> Iterator[_Repeated]:
    """x [M, H] @ w of ±1 times powers of two, in each pattern of operands: w is [H, 4 H] for
    prefills, in the layout of a weight, and some columns of that for bursts of decoding.
    """
    tall = _TALL if hidden >= _FAST else 1
    noise = torch.Generator().manual_seed(subject.seed)
    for pattern in ("random", "ones", "alternating", "large and small"):
        x, w = _operands(pattern, _PREFILL, hidden, noise)
        exact = x @ w
        for dtype in DTYPES:
            name = f"product {short(dtype)} of {pattern} operands"
            # Kept as models keep weights, [4 H, H]. In the other layout a CPU without bfloat16 has
            # one kernel for it, seventeen times slower: most of what this check took.
            here, kept = (t.to(dtype).to(subject.device) for t in (x, w.T.contiguous()))
            wide = kept.T
            right = exact.to(dtype).to(subject.device)
            run = partial(_prefills, here.repeat(tall, 1), wide, tall)
            yield _Repeated(f"{name}, {tall * _PREFILL} rows", run, right)
            narrow = wide[:, :_DECODE_COLUMNS].contiguous()
            for rows in _DECODE:
                run = partial(_burst, here[:rows], narrow)
                part = right[:rows, :_DECODE_COLUMNS]
                yield _Repeated(f"{name}, {_BURST} of {rows} rows", run, part)


def _prefills(x: Tensor, w: Tensor, count: int) -> Tensor:
    """The same `count` times in one product, [count, M, H]."""
    return (x @ w).view(count, -1, w.shape[1])


def _burst(x: Tensor, w: Tensor) -> Tensor:
    """The same product _BURST times, [_BURST, M, H]."""
    return torch.stack([x @ w for _ in range(_BURST)])


def _operands(
    pattern: str, rows: int, hidden: int, noise: torch.Generator
) -> tuple[Tensor, Tensor]:
    """x [rows, H] with _SUMMANDS entries in a row that are not 0, and w [H, 4 H], fp32, CPU."""
    x, w = torch.ones(rows, hidden), torch.ones(hidden, 4 * hidden)
    if pattern == "alternating":
        x[:, ::2] *= -1
        w[:, ::2] *= -1
    elif pattern != "ones":
        x, w = (torch.randint(0, 2, t.shape, generator=noise) * 2.0 - 1 for t in (x, w))
    if pattern == "large and small":
        x *= 2.0 ** torch.randint(-30, 31, (rows, 1), generator=noise)
        w *= 2.0 ** torch.randint(-30, 31, (1, 4 * hidden), generator=noise)
    kept = torch.rand(rows, hidden, generator=noise).argsort(1) < _SUMMANDS
    return x * kept, w


def _layers(subject: Subject, hidden: int) -> Iterator[_Repeated]:
    """A layer of the decoder with its vocabulary, 256 tokens; what it gives first is expected."""
    arch = tiny_model.architecture(hidden=hidden, layers=1, vocab=1024)
    weights = tiny_model.weights(arch, subject.seed)
    tokens = torch.tensor(tiny_model.prompt(256, arch.vocab, subject.seed))

    def logits(dtype: torch.dtype, place: torch.device) -> Callable[[], Tensor]:
        decoder = tiny_model.decoder(arch, weights, place, dtype)
        stream, attend = tokens.to(place), causal(len(tokens), place)

        @torch.no_grad()
        def run() -> Tensor:
            return decoder.logits(decoder(stream, attend.positions, attend))

        return run

    cpu = torch.device("cpu")
    reference = logits(torch.float64, cpu)()
    for dtype in DTYPES:
        error = (logits(dtype, cpu)().double() - reference).abs().max().item()
        run = logits(dtype, subject.device)
        yield _Repeated(f"layer {short(dtype)} of {hidden}", run, run(), _BAND * error)


def _copies(subject: Subject, hidden: int) -> Iterator[_Repeated]:
    """Blocks of memory that are read and written, and that must keep what was written once."""
    place = subject.device
    size = (4 << 20) if place.type == "cpu" or hidden < _FAST else (256 << 20)
    count = max(1, min(size, device.room(place) // 32) // 4)
    blocks = {f"bits {name}": torch.full((count,), bits) for name, bits in _BITS.items()}
    noise = torch.Generator().manual_seed(subject.seed)
    blocks["random bits"] = torch.randint(-(1 << 31), 1 << 31, (count,), generator=noise)
    for name, drawn in blocks.items():
        block = drawn.to(torch.int32)
        there = block.to(place)
        yield _Repeated(f"copy of {name}", there.clone, block.to(place, copy=True))
    yield _Repeated("copy to the host", lambda: there.to("cpu", copy=True), block)
