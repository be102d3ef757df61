"""What a case is, and where its inputs come from: one pool of seeded numbers, drawn on the CPU."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
BOUNDARIES = (255, 256, 257, 511, 512, 513, 1023, 1024, 1025)
QUICK_SIZES = (257, 512, 513, 1025)
VOCABULARIES = (49_153, 151_936)  # of SmolLM2 and one, an odd number; of Qwen2.5
_POOL = 4_194_301  # prime: a matrix larger than the pool repeats it, but no row is another's
_SHORT = {FP32: "fp32", BF16: "bf16", FP16: "fp16"}


class Draw:
    """Standard normal numbers from a pool: the next ones on each call, on the CPU in fp32."""

    def __init__(self, seed: int) -> None:
        self._pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(seed))
        self.at = 0

    def rewound(self, at: int) -> "Draw":
        """The same numbers from place `at` on."""
        other = object.__new__(Draw)
        other._pool, other.at = self._pool, at
        return other

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Mean 0, variance 1."""
        count = math.prod(shape)
        pool = self._pool.repeat(2 + count // _POOL) if self.at + count > _POOL else self._pool
        drawn = pool[self.at : self.at + count].view(shape)
        self.at = (self.at + count) % _POOL
        return drawn

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """In [0, 1)."""
        return torch.special.ndtr(self.normal(shape)).clamp_(max=1 - 2**-24)


@dataclass(frozen=True)
class Input:
    """One argument of a case: its shape, and how it is drawn in fp32 (or as integers)."""

    shape: tuple[int, ...]
    make: Callable[[Draw, tuple[int, ...]], Tensor]


def normal(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Input:
    """Normal numbers of standard deviation `scale` around `shift`."""
    return Input(shape, lambda draw, shape: draw.normal(shape) * scale + shift)


def between(low: float, high: float, *shape: int) -> Input:
    """Uniform in [low, high)."""
    return Input(shape, lambda draw, shape: low + (high - low) * draw.uniform(shape))


def index(below: int, *shape: int) -> Input:
    """Whole numbers from 0 to below - 1."""
    return Input(shape, lambda draw, shape: (draw.uniform(shape) * below).long())


def shuffled(count: int) -> Input:
    """0 … count - 1, each once."""
    return Input((count,), lambda draw, shape: draw.normal(shape).argsort())


def flags(*shape: int, share: float = 0.5) -> Input:
    """Booleans, of which `share` are true."""
    return Input(shape, lambda draw, shape: draw.uniform(shape) < share)


def given(*values: float) -> Input:
    """These numbers, in this order."""
    return Input((len(values),), lambda draw, shape: torch.tensor(values))


def wide(x: Tensor) -> Tensor:
    """In fp32, unless it is wider already."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True)
class Case:
    """`run` of the drawn inputs gives what is judged: one tensor or several.

    `terms`: how many numbers are summed into one result; 0: none is computed, all bits must
    arrive. `roundings`: ulp for values that a healthy chip rounds to the dtype where the CPU may
    not: the result and one more; all steps of what is fused here and in parts elsewhere. `grad`: a
    case of backward as well. `raises`: the call must be refused; `lenient`: where it is not, that
    is counted and fails nothing. `ours`: the decoder, the engine or the learner cannot do without.
    """

    label: str
    run: Callable[..., Any]
    inputs: tuple[Input, ...]
    terms: int = 1
    quick: bool = True  # at every level; else not at the quick one
    grad: bool = False
    raises: bool = False
    lenient: bool = False
    ours: bool = False
    roundings: float = 2.0
    dtypes: tuple[torch.dtype, ...] = (FP32, BF16)
    dtype: torch.dtype = FP32

    @property
    def name(self) -> str:
        joint = " @ " if self.label.startswith(("mm", "bmm", "linear")) else ", "
        shapes = joint.join(str(list(each.shape)) for each in self.inputs)
        return f"{self.label} {_SHORT[self.dtype]} {shapes}"

    def draw(self, draw: Draw) -> list[Tensor]:
        made = (each.make(draw, each.shape) for each in self.inputs)
        return [x.to(self.dtype) if x.is_floating_point() else x.clone() for x in made]
