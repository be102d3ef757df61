"""Cases that compute along rows, of one number at a time, and at the ends of what floats hold."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from interlock.qualify.cases.case import (
    BOUNDARIES,
    FP32,
    QUICK_SIZES,
    VOCABULARIES,
    Case,
    between,
    given,
    index,
    normal,
    wide,
)


def _rows() -> Iterator[Case]:
    """What works along a row: reductions, scans, sorts."""
    differentiable = {"softmax", "log_softmax", "logsumexp", "sum", "mean", "cumsum"}
    for size in (*BOUNDARIES, *VOCABULARIES, 1):
        rows = 17 if size < 10_000 else 2
        quick = size in (*QUICK_SIZES, VOCABULARIES[0])
        for label, run in _ALONG_ROWS.items():
            grad = label in differentiable
            x = normal(rows, size, scale=4.0)
            yield Case(label, run, (x,), size, quick and size != 512, grad=grad)
    x = normal(65, 320)
    yield Case("softmax of columns", lambda x: x.softmax(0), (x,), 65, grad=True)
    yield Case("softmax of a transposed view", lambda x: x.T.softmax(-1), (x,), 65, grad=True)
    yield Case("softmax of every other column", lambda x: x[:, 1::2].softmax(-1), (x,), 160)
    yield Case("sum of all", lambda x: x.sum(), (between(0, 1, 1025, 513),), 1025 * 513)
    yield Case(
        "norm of all", lambda x: torch.linalg.vector_norm(x), (normal(1025, 513),), 1025 * 513
    )
    yield Case("draw of the only likely token", _draw_sure, (index(4096, 33),), 0, dtypes=(FP32,))
    yield Case("inverse CDF", _inverse_cdf, (index(256, 33),), 0, dtypes=(FP32,))


# Indices may differ among equals, so what is judged is what they point at.
_ALONG_ROWS: dict[str, Callable[[Tensor], Tensor | Sequence[Tensor]]] = {
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "sum": lambda x: x.sum(-1),
    "mean": lambda x: x.mean(-1),
    "cumsum": lambda x: wide(x).cumsum(-1),
    "amax": lambda x: x.amax(-1),
    "argmax": lambda x: x.gather(-1, x.argmax(-1, keepdim=True)),
    "topk": lambda x: _values_and_picked(x, *x.topk(min(8, x.shape[-1]), dim=-1)),
    "sort": lambda x: _values_and_picked(x, *x.sort(-1, descending=True)),
    "stable argsort": lambda x: x.round().argsort(dim=-1, stable=True),
    "any and all": lambda x: ((x > 12).any(-1), (x < 12).all(-1)),
}


def _values_and_picked(x: Tensor, values: Tensor, places: Tensor) -> Sequence[Tensor]:
    return values, x.gather(-1, places)


def _draw_sure(token: Tensor) -> Tensor:
    sure = torch.zeros(len(token), 4096, device=token.device).scatter_(1, token[:, None], 1.0)
    return torch.multinomial(sure, 1)[:, 0]


def _inverse_cdf(token: Tensor) -> Tensor:
    """The middle of a token's share of a flat distribution must give that token."""
    flat = torch.full((len(token), 256), 2.0**-8, device=token.device)
    middle = (token + 0.5) * 2.0**-8
    return (flat.cumsum(-1) > middle[:, None]).int().argmax(-1)


def _functions() -> Iterator[Case]:
    x = between(-8.0, 8.0, 33, 1025)
    positive = between(1e-3, 30.0, 33, 1025)
    for label, run in _POINTWISE.items():
        yield Case(label, run, (x,), 1 + (label in _CANCELLING), grad=label != "round")
    for label, run in _OF_POSITIVE.items():
        yield Case(label, run, (positive,), grad=True)
    a, b = normal(33, 1, 257), normal(4, 257)
    for label, of_two in _OF_TWO.items():
        yield Case(label, of_two, (a, b), 1 + (label in _CANCELLING), grad=label != "compare")
    x = normal(1025, 257)
    yield Case("silu of a transposed view", lambda x: F.silu(x.T), (x,), grad=True)
    yield Case("exp of columns at an offset", lambda x: x[:, 3:].exp(), (x,), grad=True)
    yield Case("cast to bf16 and back", lambda x: x.bfloat16().float(), (x,), 1, dtypes=(FP32,))


# Sums of two numbers that may cancel, on a chip that takes the plain way at least.
_CANCELLING = {"tanh", "gelu", "gelu by tanh", "softplus", "add", "lerp", "addcmul"}
_POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "expm1": torch.expm1,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softplus": F.softplus,
    "sin and cos": lambda x: torch.cat([x.sin(), x.cos()]),
    "square": torch.square,
    "relu": torch.relu,
    "clamp": lambda x: x.clamp(-1.0, 2.0),
    "round": torch.round,
}
_OF_POSITIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "log": torch.log,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "power": lambda x: x**1.5,
}
_OF_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: torch.add(a, b, alpha=0.5),
    "multiply": torch.mul,
    "divide": lambda a, b: a / (b.abs() + 0.1),
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "where": lambda a, b: torch.where(a > b, a, b * 2),
    "lerp": lambda a, b: torch.lerp(a, b, torch.sigmoid(a)),
    "compare": lambda a, b: (a < b) | (a >= 1.0),
    "addcmul": lambda a, b: torch.addcmul(a, a, b, value=0.5),
}


def _extremes() -> Iterator[Case]:
    for low, high in ((-104.0, -80.0), (60.0, 80.0), (80.0, 88.0), (95.0, 200.0)):
        yield Case(f"exp from {low:g} to {high:g}", torch.exp, (between(low, high, 1025),))
    for scale in (1e4, 1e30):
        x = normal(17, 513, scale=scale)
        for label in ("softmax", "log_softmax", "logsumexp"):
            yield Case(f"{label} at {scale:g}", _ALONG_ROWS[label], (x,), 513, grad=scale < 1e5)
    ends = given(3.38e38, -3.38e38, 1e30, -1e30, 2e-38, 0.0, -0.0, math.inf, -math.inf, math.nan)
    for label, run in _OF_EXTREMES.items():
        yield Case(f"{label} of extremes", run, (ends,))
    yield Case(
        "mm of 1e17", torch.mm, (normal(65, 512, scale=1e17), normal(512, 65, scale=1e17)), 512
    )
    # Held against the whole: where e^-x is infinite, silu may be 0.
    yield Case("silu at 80", F.silu, (between(-100.0, 100.0, 1025),), 2, grad=True)
    hidden = (lambda x: x.masked_fill(x > -1e9, -torch.inf).softmax(-1),)
    yield Case("softmax of a row that sees nothing", hidden[0], (normal(5, 257),), 257)


_OF_EXTREMES: dict[str, Callable[[Tensor], Tensor]] = {
    "negation": torch.neg,
    "absolute value": torch.abs,
    "product": lambda x: x * 2,
    "sum": lambda x: x + 1,
    "maximum": lambda x: x.amax(-1),
    "isfinite": torch.isfinite,
    "isnan": torch.isnan,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softmax": lambda x: x[:6].softmax(-1),
    "clamp": lambda x: x.clamp(-1e30, 1e30),
    "nan_to_num": lambda x: x.nan_to_num(0.0, 1.0, -1.0),
}


TABLES = (_rows, _functions, _extremes)
