"""Are the device's own random numbers spread as they should be, and do they ever repeat?

    torch's generator on the device ── a million numbers of each distribution ──> sorted, on the CPU
       ├─ uniform by its own distribution function: Kolmogorov-Smirnov, and the two ends
       ├─ blocks that have been before: none; the next number: not told by the one before
       └─ the same seed: the same numbers; another seed: others

Interlock's engine draws its noise on the host and needs none of this; vLLM, dropout and
initialisation draw on the device. Seeded, so that a device that passes passes always.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from interlock.qualify.check import Evidence, Subject, is_missing, judged
from interlock.records.trust import Measure
from interlock.text import described

_COUNT = 1_000_003  # no block of a kernel divides it
_BLOCK = 16  # numbers in a row that nothing but a fault repeats
# Of the Kolmogorov-Smirnov statistic times the root of the count: exceeded once in 1e9.
_KS = 3.3
# -log10 of a probability that no seed should meet.
_IMPROBABLE = 9.0
_Distribution = Callable[[Tensor], Tensor]


def drawn(subject: Subject) -> Evidence:
    """Uniform, normal and exponential numbers."""
    measures: list[Measure] = []
    missing = []
    for label, (draw, cdf) in _DISTRIBUTIONS.items():
        try:
            first, again, other = (
                _drawn(draw, subject.device, seed)
                for seed in (subject.seed, subject.seed, subject.seed + 1)
            )
        except Exception as error:
            if is_missing(error):
                missing.append(label)
                continue
            measures.append(Measure(f"{label}: {described(error, 200)}", math.inf, 0.0))
            continue
        measures += _judged(label, cdf(first.double()), first)
        changed = (first != again).sum().item()
        measures.append(Measure(f"{label}: numbers unlike those of the same seed", changed, 0.0))
        same = (first == other).double().mean().item()
        measures.append(Measure(f"{label}: share equal to those of another seed", same, 1e-3))
    return judged(
        measures,
        "random numbers of the device are spread as they should be, and do not repeat",
        "random numbers of the device are off: {count} of {total} figures, worst: {worst}",
        {"numbers of each": _COUNT} | ({"missing": ", ".join(missing)} if missing else {}),
    )


def _drawn(draw: _Distribution, place: torch.device, seed: int) -> Tensor:
    """[_COUNT] fp32 on the CPU."""
    torch.manual_seed(seed)  # of every device; this process draws nothing else
    return draw(torch.empty(_COUNT, device=place)).cpu()


# What draws, and the distribution function by which it is uniform.
_DISTRIBUTIONS: dict[str, tuple[_Distribution, Callable[[Tensor], Tensor]]] = {
    "uniform": (lambda x: x.uniform_(), lambda x: x),
    "normal": (lambda x: x.normal_(), torch.special.ndtr),
    "exponential": (lambda x: x.exponential_(), lambda x: -torch.expm1(-x)),
}


def _judged(label: str, uniform: Tensor, x: Tensor) -> Iterator[Measure]:
    """uniform [n] fp64: what must be uniform in [0, 1]; x [n]: as it was drawn."""
    outside = (~((uniform >= 0) & (uniform <= 1))).sum().item()
    yield Measure(f"{label}: numbers that cannot be", outside, 0.0)
    ranked, count = uniform.nan_to_num(2.0).sort().values, len(uniform)
    steps = torch.arange(count + 1, dtype=torch.float64) / count
    apart = torch.maximum((ranked - steps[:-1]).abs(), (ranked - steps[1:]).abs()).max().item()
    yield Measure(f"{label}: Kolmogorov-Smirnov", apart * math.sqrt(count), _KS)
    # With a share p missing at an end, the first number is beyond it with probability 1 - e^-np.
    for end, gap in (("lower", ranked[0].item()), ("upper", 1 - ranked[-1].item())):
        yield Measure(
            f"{label}: -log10 p of the {end} end", count * gap / math.log(10), _IMPROBABLE
        )
    yield Measure(f"{label}: blocks that were before", _repeated(x), 0.0)
    centred = uniform - 0.5
    for lag in (1, 2, 64, 128, 256, 1024):
        told = (centred[lag:] * centred[:-lag]).mean().item() * 12 * math.sqrt(count - lag)
        yield Measure(f"{label}: told by number {lag} before, sigmas", abs(told), 6.2)


def _repeated(x: Tensor) -> float:
    """How many blocks of _BLOCK numbers have been before, wherever they begin."""
    bits = x.view(torch.int32).long()
    digest = torch.zeros(len(bits) - _BLOCK + 1, dtype=torch.int64)
    for place in range(_BLOCK):  # a polynomial modulo 2^64
        digest = digest * 6364136223846793005 + bits[place : place + len(digest)]
    return float(len(digest) - len(digest.unique()))
