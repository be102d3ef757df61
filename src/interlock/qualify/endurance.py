"""Whether a device keeps computing the same, for long, and gives its memory back.

    soak         products, layers and copies, over and over ── any other bits? ──> errors
    determinism  one learner step, one generation, repeated ── digests ──> errors
    memory       allocate, grow, drop, move ── what is in use after each cycle ──> a flat line

Most products of the soak have operands of one bit each, 256 of them in a row at the most, so that
every order of summation gives the same number even where sums are kept in bfloat16: a healthy
device has no excuse for any other bit. Layers of a decoder do round, and may differ from one repeat
to the next (an accelerator may add in any order) by as much as rounding explains.

A crash or a hang of the device ends this process, and is the runner's to see.

Legend: H hidden size, M rows
"""

import ctypes
import gc
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import msgspec
import torch
from torch import Tensor

from interlock import config
from interlock.chips import device
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup
from interlock.models.attention import causal
from interlock.qualify import specimen
from interlock.qualify.check import Evidence, Level, Subject, judged
from interlock.records import Measure
from interlock.rollout.cache import Arena
from interlock.sync.codec import digest, tensor_digest

_DTYPES = (torch.float32, torch.bfloat16)

# The soak.

# Every partial sum of this many ±1 is a whole number that bfloat16 holds.
_SUMMANDS = 256
_PREFILL = 256  # rows
_DECODE = (1, 8)  # rows; such products are short, and come in bursts
_BURST = 128
_DECODE_COLUMNS = 128
_LEAST_ROUNDS = 6  # however slow the device is: some 12,000 products
# Layers may differ from themselves by so many times the rounding error that the CPU has in them.
_BAND = 16
_BITS = {"0101…": 0x55555555, "1010…": -0x55555556, "ones": -1}


@dataclass
class _Work:
    """Something to be computed again and again, with the result that it must have."""

    name: str
    run: Callable[[], Tensor]
    expected: Tensor
    band: float = 0.0  # differences up to here are counted, not condemned
    runs: int = 0
    wrong: int = 0  # runs with a difference beyond the band
    rounded: int = 0  # runs with another one
    worst: float = 0.0

    def repeat(self) -> None:
        self.runs += 1
        found = self.run()
        if int(found.ne(self.expected).sum()) == 0:
            return
        off = (found.cpu().double() - self.expected.cpu().double()).abs().max().item()
        self.worst = max(self.worst, off if off == off else torch.inf)
        # Equal on the host: then the comparison on the device went wrong.
        if 0 < off <= self.band:
            self.rounded += 1
        else:
            self.wrong += 1

    def measure(self) -> Measure:
        off = f": off by up to {self.worst:.3g}" if self.wrong else ""
        return Measure(self.name + off, float(self.wrong), 0.0, 0.0)


def soak(subject: Subject) -> Evidence:
    """Load for 3 s, 10 s or as many minutes as are asked for; every result is compared.

    Raises RuntimeError that names the work in which the device failed.
    """
    seconds = 60 * subject.minutes if subject.level is Level.SOAK else subject.at(3, 10)
    place = subject.device
    began = time.monotonic()
    works: list[_Work] = []
    hidden = _affordable(place)
    for make in (_products, _layers, _copies):
        with _naming(make.__name__.strip("_")):
            works += make(subject, hidden)
    rounds = 0
    while rounds < _LEAST_ROUNDS or time.monotonic() - began < seconds:
        for work in works:
            with _naming(f"{work.name}, {time.monotonic() - began:.1f} s into the soak"):
                work.repeat()
            if rounds >= _LEAST_ROUNDS and time.monotonic() - began >= seconds:
                break
        rounds += 1
    runs, rounded = sum(work.runs for work in works), sum(work.rounded for work in works)
    took = time.monotonic() - began
    figures: dict[str, float | int | str] = {
        "seconds": round(took, 1),
        "results compared": runs,
        "wrong results": sum(work.wrong for work in works),
        "results that differ by rounding": rounded,
        "hidden size": hidden,
    }
    return judged(
        [work.measure() for work in works],
        f"{runs} results in {took:.0f} s under load, all as they must be",
        f"{{count}} of {{total}} computations gave wrong bits in {took:.0f} s, worst: {{worst}}",
        figures,
    )


@contextmanager
def _naming(case: str) -> Iterator[None]:
    """Have what the device raises say where."""
    try:
        yield
    except RuntimeError as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RuntimeError(f"{case}: {first}") from error


def _affordable(place: torch.device) -> int:
    """A hidden size whose products take milliseconds: of real models on an accelerator."""
    x, w = torch.ones(256, 512, device=place), torch.ones(512, 2048, device=place)
    (x @ w).sum().item()
    began = time.perf_counter()
    (x @ w).sum().item()
    speed = 2 * 256 * 512 * 2048 / (time.perf_counter() - began)  # FLOP/s
    return 2048 if speed > 2e12 else 1024 if speed > 2e11 else 512


def _products(subject: Subject, hidden: int) -> Iterator[_Work]:
    """x [M, H] @ w of ±1 times powers of two, in each pattern of operands: w is [H, 4 H] for a
    prefill, and some columns of that for bursts of decoding.
    """
    noise = torch.Generator().manual_seed(subject.seed)
    for pattern in ("random", "ones", "alternating", "large and small"):
        x, w = _operands(pattern, _PREFILL, hidden, noise)
        exact = x @ w
        for dtype in _DTYPES:
            name = f"product {_short(dtype)} of {pattern} operands"
            here, wide = (each.to(dtype).to(subject.device) for each in (x, w))
            right = exact.to(dtype).to(subject.device)
            yield _Work(f"{name}, {_PREFILL} rows", partial(torch.matmul, here, wide), right)
            narrow = wide[:, :_DECODE_COLUMNS].contiguous()
            for rows in _DECODE:
                run = partial(_burst, here[:rows], narrow)
                yield _Work(f"{name}, {_BURST} of {rows} rows", run, right[:rows, :_DECODE_COLUMNS])


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


def _layers(subject: Subject, hidden: int) -> Iterator[_Work]:
    """A layer of the decoder with its vocabulary, 256 tokens; what it gives first is expected."""
    arch = specimen.architecture(hidden=hidden, layers=1, vocab=1024)
    weights = specimen.weights(arch, subject.seed)
    tokens = torch.tensor(specimen.prompt(256, arch.vocab, subject.seed))

    def logits(dtype: torch.dtype, place: torch.device) -> Callable[[], Tensor]:
        decoder = specimen.decoder(arch, weights, place, dtype)
        stream, attend = tokens.to(place), causal(len(tokens), place)

        @torch.no_grad()
        def run() -> Tensor:
            return decoder.logits(decoder(stream, attend.positions, attend))

        return run

    cpu = torch.device("cpu")
    reference = logits(torch.float64, cpu)()
    for dtype in _DTYPES:
        error = (logits(dtype, cpu)().double() - reference).abs().max().item()
        run = logits(dtype, subject.device)
        yield _Work(f"layer {_short(dtype)} of {hidden}", run, run(), _BAND * error)


def _copies(subject: Subject, hidden: int) -> Iterator[_Work]:
    """Blocks of memory that are read and written, and that must keep what was written once."""
    place = subject.device
    size = (4 << 20) if place.type == "cpu" or hidden < 2048 else (256 << 20)
    count = max(1, min(size, device.memory(place).free // 32) // 4)
    blocks = {f"bits {name}": torch.full((count,), bits) for name, bits in _BITS.items()}
    noise = torch.Generator().manual_seed(subject.seed)
    blocks["random bits"] = torch.randint(-(1 << 31), 1 << 31, (count,), generator=noise)
    for name, drawn in blocks.items():
        block = drawn.to(torch.int32)
        there = block.to(place)
        yield _Work(f"copy of {name}", there.clone, block.to(place, copy=True))
    yield _Work("copy to the host", lambda: there.to("cpu", copy=True), block)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Determinism.


def determinism(subject: Subject) -> Evidence:
    """The same steps of a learner, and the same generation, several times from the same state."""
    repeats = subject.at(3, 4)
    cases: dict[str, Callable[[], dict[str, Tensor]]] = {}
    for hidden in (64,) if subject.level is Level.QUICK else (64, 256):
        arch = specimen.architecture(hidden=hidden, layers=2)
        weights = specimen.weights(arch, subject.seed)
        for dtype in _DTYPES:
            name = f"{_short(dtype)}, hidden size {hidden}"
            for what, run in (("learner steps", _learned), ("generation", _generated)):
                cases[f"{what} in {name}"] = partial(run, subject, arch, weights, dtype)
    measures = []
    for name, case in cases.items():
        first = case()
        differing, worst = 0, 0.0
        for _ in range(repeats - 1):
            again = case()
            if _digest(again) != _digest(first):
                differing += 1
                worst = max(worst, _distance(first, again))
        off = f": up to {worst:.3g} apart" if differing else ""
        measures.append(Measure(name + off, float(differing), 0.0, 0.0))
    return judged(
        measures,
        f"{len(cases)} computations gave the same bits {repeats} times",
        "{count} of {total} computations give other bits when they are repeated, worst: {worst}",
        {"repeats": repeats},
    )


def _learned(
    subject: Subject, arch: specimen.Architecture, weights: dict[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """What a new learner publishes after two steps, and the log-probabilities it then has."""
    decoder = specimen.decoder(arch, weights, subject.device, torch.float32)
    settings = msgspec.convert({"dtype": _short(dtype)}, config.Learner)
    learner = Learner(decoder, settings, config.Optimizer(lr=1e-3), total_steps=2)
    groups = _groups(arch.vocab, subject.seed)
    for _ in range(2):
        learner.step(groups, config.Loss())
    found = {name: tensor.cpu() for name, tensor in learner.publish()[1].items()}
    for number, group in enumerate(learner.logprobs(groups)):
        found[f"log-probabilities {number}"] = torch.cat(group)
    return found


def _groups(vocab: int, seed: int) -> list[TrainingGroup]:
    """Two groups of four completions, whose tokens repeat: their gradients must be added up."""
    noise = random.Random(seed)
    groups = []
    for length in (33, 100):
        lengths = [noise.randrange(8, 48) for _ in range(4)]
        groups.append(
            TrainingGroup(
                prompt=[noise.randrange(vocab // 8) for _ in range(length)],
                completions=[[noise.randrange(vocab // 8) for _ in range(n)] for n in lengths],
                weights=[[noise.choice((-0.01, 0.01))] * n for n in lengths],
                sampler_logprobs=[[-noise.uniform(2, 8) for _ in range(n)] for n in lengths],
            )
        )
    return groups


def _generated(
    subject: Subject, arch: specimen.Architecture, weights: dict[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    engine = specimen.engine(arch, weights, subject.device, dtype, slots=8)
    prompts = [specimen.prompt(length, arch.vocab, subject.seed) for length in (5, 130)]
    requests = [
        specimen.request(prompt, str(number), completions=2, length=6)
        for number, prompt in enumerate(prompts)
    ]
    found = {}
    for number, completions in enumerate(engine.generate(requests)):
        found[f"tokens {number}"] = torch.tensor([each.tokens for each in completions])
        found[f"log-probabilities {number}"] = torch.tensor([c.logprobs for c in completions])
    return found


def _digest(tensors: dict[str, Tensor]) -> str:
    return digest({name: tensor_digest(tensor) for name, tensor in tensors.items()})


def _distance(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    return max((some[name].double() - others[name].double()).abs().max().item() for name in some)


# Memory.

# What may be lost in a cycle, as a share of all that it allocates. A leak loses whole blocks.
_LOSS = 0.01
# A rise is believed when it goes on for so many windows of cycles: what a library or an allocator
# keeps for itself comes to its end.
_WINDOWS = 3
# No doubt is left, and no wait for the memory to be full, once so many times what a cycle allocates
# is missing.
_PLAIN = 2


def memory(subject: Subject) -> Evidence:
    """Cycles of use, after each of which as much must be in use as after the first ones."""
    place = subject.device
    cycles = subject.at(6, 20)
    noise = random.Random(subject.seed)
    churn = min(64 << 20, device.memory(place).free // 16)
    use = _Use(subject, churn)
    with _naming("the first cycles of use"):
        for _ in range(2):
            use.cycle(noise)
    before = _in_use(place)
    large = device.memory(place).free // 2
    fitted = _fits(large, place)
    used = [before]
    rise = torch.inf
    while rise > _LOSS * churn and len(used) <= _WINDOWS * cycles:
        for _ in range(cycles):
            with _naming(f"cycle {len(used)} of use"):
                use.cycle(noise)
            used.append(_in_use(place))
            if used[-1] - before > _PLAIN * churn:
                break
        rise = _slope(used[-cycles - 1 :])
        if used[-1] - before > _PLAIN * churn:
            break
    fits = _fits(large, place) if fitted else fitted
    measures = [
        Measure("growth of the memory in use, MB a cycle", rise / 2**20, _LOSS * churn / 2**20),
        Measure("a large block that fitted at first and does not fit again", fitted - fits, 0.0),
    ]
    figures: dict[str, float | int | str] = {
        "cycles": len(used) - 1,
        "MB allocated a cycle": round(churn / 2**20),
        "MB in use at first": round(before / 2**20, 1),
        "MB in use at the end": round(used[-1] / 2**20, 1),
        "MB of the large block": round(large / 2**20) if fitted else 0,
    }
    good = f"after {len(used) - 1} cycles of use the memory in use is where it was"
    return judged(measures, good, "memory is not given back: {worst}", figures)


class _Use:
    """What a long run does to memory, in small: blocks, caches, engines, weights."""

    def __init__(self, subject: Subject, churn: int) -> None:
        self._place, self._churn = subject.device, churn
        self._arch = specimen.architecture()
        self._weights = specimen.weights(self._arch, subject.seed)

    def cycle(self, noise: random.Random) -> None:
        self._blocks(noise)
        self._cache(noise)
        self._engine()

    def _blocks(self, noise: random.Random) -> None:
        """Blocks of random lengths that are dropped in random order."""
        kept, left = [], self._churn
        while left > 0:
            size = min(left, int(2 ** noise.uniform(10, 23)))  # 1 kB to 8 MB
            kept.append(torch.ones(size, dtype=torch.uint8, device=self._place))
            left -= size
            if len(kept) > 16:
                kept.pop(noise.randrange(len(kept)))

    def _cache(self, noise: random.Random) -> None:
        """The keys and values of a batch that grows."""
        like = torch.zeros(2, 1, 4, 1, 32, device=self._place)
        arena = Arena(like, like)
        length = 1
        for rows in (1, 4, 16):
            length += noise.randrange(1, 200)
            arena.reserve(rows, length)

    def _engine(self) -> None:
        """An engine is made, generates, sends its weights to the host and gets them back."""
        engine = specimen.engine(self._arch, self._weights, self._place, torch.float32, slots=2)
        asleep = {name: tensor.cpu() for name, tensor in engine.held()}
        engine.load(asleep, 1)
        prompt = specimen.prompt(20, self._arch.vocab)
        engine.generate([specimen.request(prompt, completions=2, length=3)])


def _in_use(place: torch.device) -> int:
    """Bytes, once everything that can be given back has been."""
    gc.collect()
    device.synchronize(place)
    device.empty_cache(place)
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # glibc keeps what is freed; musl has no such function
    return device.memory(place).used


def _slope(used: Sequence[int]) -> float:
    """Bytes a cycle: the median of all pairs (Theil-Sen), which no single outlier moves."""
    pairs = combinations(enumerate(used), 2)
    return statistics.median((b - a) / (j - i) for (i, a), (j, b) in pairs)


def _fits(size: int, place: torch.device) -> bool:
    """Whether a block of so many bytes can be had. It is not written to."""
    gc.collect()
    device.empty_cache(place)
    try:
        block = torch.empty(size, dtype=torch.uint8, device=place)
    except RuntimeError:  # the allocators' errors, out-of-memory among them, have it as their base
        return False
    return block.numel() == size
