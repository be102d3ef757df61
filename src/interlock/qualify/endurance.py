"""Whether the same computation gives the same bits, and a device gives its memory back.

determinism  one learner step, one generation, repeated ── digests ──> errors
memory       allocate, grow, drop, move ── what is in use after each cycle ──> a flat line
"""

import ctypes
import gc
import random
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from interlock.chips import device
from interlock.config.losses import LossSettings
from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.engine.portable.kv_cache import KVCache
from interlock.errors import UserError
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup
from interlock.models.attention import FUSED_ABOVE
from interlock.qualify import tiny_model
from interlock.qualify.check import Evidence, Level, Subject, judged, short
from interlock.qualify.soak import DTYPES, naming
from interlock.records.trust import Measure
from interlock.sync.identity import digest, tensor_digest

# Determinism.


def determinism(subject: Subject) -> Evidence:
    """The same steps of a learner, and the same generation, several times from the same state."""
    repeats = subject.at(3, 4)
    prompts = {64: [33, 100]}  # lengths, by hidden size
    if subject.level is not Level.QUICK:
        prompts = {64: [33, 100, FUSED_ABOVE + 8], 256: [33, 100]}
    cases: dict[str, Callable[[], dict[str, Tensor]]] = {}
    for hidden, lengths in prompts.items():
        arch = tiny_model.architecture(hidden=hidden, layers=2)
        weights = tiny_model.weights(arch, subject.seed)
        for dtype in DTYPES:
            name = f"{short(dtype)}, hidden size {hidden}"
            for what, run in (("learner steps", _learned), ("generation", _generated)):
                cases[f"{what} in {name}"] = partial(run, subject, arch, weights, dtype, lengths)
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
    subject: Subject,
    arch: tiny_model.Architecture,
    weights: dict[str, Tensor],
    dtype: torch.dtype,
    lengths: Sequence[int],
) -> dict[str, Tensor]:
    """What a new learner publishes after two steps, and the log-probabilities it then has."""
    decoder = tiny_model.decoder(arch, weights, subject.device, torch.float32)
    settings = msgspec.convert({"dtype": short(dtype)}, LearnerSettings)
    learner = Learner(decoder, settings, OptimizerSettings(lr=1e-3), total_steps=2)
    groups = _groups(lengths, arch.vocab, subject.seed)
    for _ in range(2):
        learner.step(groups, LossSettings())
    found = {name: tensor.cpu() for name, tensor in learner.publish()[1].items()}
    for number, group in enumerate(learner.logprobs(groups)):
        found[f"log-probabilities {number}"] = torch.cat(group)
    return found


def _groups(prompts: Sequence[int], vocab: int, seed: int) -> list[TrainingGroup]:
    """Four completions for each prompt, whose tokens repeat: their gradients must be added up."""
    noise = random.Random(seed)
    groups = []
    for length in prompts:
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
    subject: Subject,
    arch: tiny_model.Architecture,
    weights: dict[str, Tensor],
    dtype: torch.dtype,
    lengths: Sequence[int],
) -> dict[str, Tensor]:
    engine = tiny_model.engine(arch, weights, subject.device, dtype, slots=8)
    prompts = [tiny_model.prompt(length, arch.vocab, subject.seed) for length in lengths]
    requests = [
        tiny_model.request(prompt, str(number), completions=2, length=6)
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
# Of allocators that raise plain RuntimeErrors: the CPU's, Apple's, plugins of older torch.
_FULL = re.compile("out of memory|can't allocate memory|not enough memory|Invalid buffer size")
# No doubt is left, and no wait for the memory to be full, once so many times what a cycle allocates
# is missing.
_PLAIN = 2


def memory(subject: Subject) -> Evidence:
    """Cycles of use, after each of which as much must be in use as after the first ones.

    Raises UserError on a device that does not tell what is in use.
    """
    place, cycles = subject.device, subject.at(6, 20)
    churn = min(64 << 20, device.room(place) // 16)
    use = _MemoryLoad(subject, churn)
    with naming("the first cycles of use"):
        for _ in range(2):
            use.cycle()
    before = _in_use(place)
    if not any(device.memory(place)):
        raise UserError(f"device {device.name(place)!r} does not tell its memory; upgrade torch")
    large = device.room(place) // 2
    fitted = _fits(large, place)
    used = _watched(use, before, cycles, churn)
    fits = _fits(large, place) if fitted else fitted
    figures: dict[str, float | int | str] = {
        "cycles": len(used) - 1,
        "MB allocated a cycle": round(churn / 2**20),
        "MB of half of the free memory": round(large / 2**20),
        "which fitted at first": "yes" if fitted else "no",
    }
    measures = [
        Measure("a large block that fitted at first and does not fit again", fitted - fits, 0.0)
    ]
    for name, view in _views(used).items():
        figures[f"MB in use at first, {name}"] = round(view[0] / 2**20, 1)
        figures[f"MB in use at the end, {name}"] = round(view[-1] / 2**20, 1)
        rise, limit = _slope(view[-cycles - 1 :]) / 2**20, _LOSS * churn / 2**20
        measures.append(Measure(f"growth of the memory in use {name}, MB a cycle", rise, limit))
    good = f"after {len(used) - 1} cycles of use the memory in use is where it was"
    return judged(measures, good, "memory is not given back: {worst}", figures)


class _MemoryInUse(NamedTuple):
    """Bytes, 0 where nobody tells."""

    own: int  # as torch counts what this process holds
    all: int  # as the driver does: with what torch does not know of, and other processes'


def _views(used: Sequence[_MemoryInUse]) -> dict[str, Sequence[int]]:
    """What was in use after each cycle, by who counted it."""
    torchs, drivers = zip(*used, strict=True)
    return {"by torch": torchs} | ({"by the driver": drivers} if any(drivers) else {})


def _watched(
    use: "_MemoryLoad", before: _MemoryInUse, cycles: int, churn: int
) -> list[_MemoryInUse]:
    """What was in use at first and after each cycle, until a rise has ended, or is believed."""
    used = [before]
    while len(used) <= _WINDOWS * cycles:
        for _ in range(cycles):
            with naming(f"cycle {len(used)} of use"):
                use.cycle()
            used.append(_in_use(use.place))
            if used[-1].own - before.own > _PLAIN * churn:
                return used
        rises = [_slope(view[-cycles - 1 :]) for view in _views(used).values()]
        if max(rises) <= _LOSS * churn:
            break
    return used


class _MemoryLoad:
    """What a long run does to memory, in small: blocks, caches, engines, weights."""

    def __init__(self, subject: Subject, churn: int) -> None:
        self.place, self._churn = subject.device, churn
        self._noise = random.Random(subject.seed)
        self._arch = tiny_model.architecture()
        self._weights = tiny_model.weights(self._arch, subject.seed)

    def cycle(self) -> None:
        self._blocks(self._noise)
        self._cache(self._noise)
        self._engine()

    def _blocks(self, noise: random.Random) -> None:
        """Blocks of random lengths that are dropped in random order."""
        kept, left = [], self._churn
        while left > 0:
            size = min(left, int(2 ** noise.uniform(10, 23)))  # 1 kB to 8 MB
            kept.append(torch.ones(size, dtype=torch.uint8, device=self.place))
            left -= size
            if len(kept) > 16:
                kept.pop(noise.randrange(len(kept)))

    def _cache(self, noise: random.Random) -> None:
        """The keys and values of a batch that grows."""
        like = torch.zeros(2, 1, 4, 1, 32, device=self.place)
        cache = KVCache(like, like)
        length = 1
        for rows in (1, 4, 16):
            length += noise.randrange(1, 200)
            cache.reserve(rows, length)

    def _engine(self) -> None:
        """An engine is made, generates, sends its weights to the host and gets them back."""
        engine = tiny_model.engine(self._arch, self._weights, self.place, torch.float32, slots=2)
        asleep = {name: tensor.cpu() for name, tensor in engine.held()}
        engine.load(asleep, 1)
        prompt = tiny_model.prompt(20, self._arch.vocab)
        engine.generate([tiny_model.request(prompt, completions=2, length=3)])


def _in_use(place: torch.device) -> _MemoryInUse:
    """Once everything that can be given back has been."""
    gc.collect()
    device.synchronize(place)
    device.empty_cache(place)
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # glibc keeps what is freed; musl has no such function
    known = device.memory(place)
    # What all the processes of a machine take from the host's says nothing of this one.
    return _MemoryInUse(known.used, 0 if place.type == "cpu" else known.total - known.free)


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
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not _FULL.search(str(error)):
            raise
        return False
    return block.numel() == size
