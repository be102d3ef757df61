"""Cases at the sizes of today's models: what is right at ordinary ones may be wrong at these.

    vocabularies   softmax and its kin over rows of up to 262,144
    positions      sin and cos up to 131,072
    few rows       products of 1 to 3, whose terms no tile divides: decoding
    caches         a row written at every place of a dimension
    casts          every bf16, and a million fp32
    limits         one element beyond powers of two

Rows are contiguous, and slices of padded tensors, as kernels are given both. All of it is checked
at every level: a chip that fails here serves no model of today.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from interlock.qualify.cases.case import BF16, FP32, Case, Draw, Input, given, index, normal, wide

# One that fills 16 bits; of Llama 3, Qwen 2.5 and 3, Gemma 3.
_VOCABULARIES = (65_536, 128_256, 151_936, 262_144)
_POSITIONS = 131_072  # of Llama 3.1 and Qwen 2.5
_TERMS = (65, 127, 607, 1567, 4095)
_PADDING = 64


def _vocabularies() -> Iterator[Case]:
    for size in _VOCABULARIES:
        for label, run in _OVER_ROWS.items():
            yield Case(f"{label} of a vocabulary", run, (normal(2, size, scale=4.0),), size)
            padded = (normal(2, size + _PADDING, scale=4.0),)
            yield Case(f"{label} of a padded vocabulary", _unpadded(run), padded, size)
        inputs = normal(2, size, scale=4.0), index(size, 2)
        yield Case("logprob of targets of a vocabulary", _logprob, inputs, size)


_OVER_ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "amax": lambda x: x.amax(-1),
    "argmax": lambda x: x.gather(-1, x.argmax(-1, keepdim=True)),
}


def _unpadded(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: run(x[:, :-_PADDING])


def _logprob(logits: Tensor, targets: Tensor) -> Tensor:
    return wide(logits).log_softmax(-1).gather(1, targets[:, None])[:, 0]


def _positions() -> Iterator[Case]:
    """Whole numbers, which fp32 holds exactly: no rounding of the angle excuses an answer."""
    inputs = index(_POSITIONS, 4097), given(0.0)
    yield Case("sin and cos of positions", _turned, inputs, 2, dtypes=(FP32,))


def _turned(at: Tensor, like: Tensor) -> Tensor:
    angle = at.to(like.dtype)
    return torch.cat([angle.sin(), angle.cos()])


def _few_rows() -> Iterator[Case]:
    for rows in (1, 2, 3):
        for terms in _TERMS:
            weight = normal(129, terms)
            yield Case("linear of few rows", F.linear, (normal(rows, terms), weight), terms)
            padded = normal(rows, terms + _PADDING), normal(129, terms + _PADDING)
            yield Case("linear of few padded rows", _padded_linear, padded, terms)
            yield Case("mm of few rows", torch.mm, (normal(rows, terms), normal(terms, 129)), terms)


def _padded_linear(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x[:, :-_PADDING], weight[:, :-_PADDING])


def _caches() -> Iterator[Case]:
    """A cache's row at every place, as the engine writes it, and by the other ways there are."""
    for size in (127, 128, 129, 1024):
        cache, rows = normal(2, 3, size, 16), normal(2, 3, size, 16)
        for label, write in _WRITES.items():
            yield Case(f"cache by {label}", write, (cache, rows), 0)


def _everywhere(cache: Tensor) -> Tensor:
    return torch.arange(cache.shape[2] - 1, -1, -1, device=cache.device)


def _written_in_turn(cache: Tensor, rows: Tensor) -> Tensor:
    owners = torch.arange(len(cache), device=cache.device)
    for place in (0, cache.shape[2] // 2, cache.shape[2] - 1):
        cache[owners, :, owners * 0 + place] = rows[:, :, place]
    return cache


_WRITES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index_copy_": lambda cache, rows: cache.index_copy_(2, _everywhere(cache), rows),
    "assignment": _written_in_turn,
    "index_put_": lambda cache, rows: (
        cache[0].transpose(0, 1).index_put_((_everywhere(cache),), rows[0].transpose(0, 1))
    ),
}


def _casts() -> Iterator[Case]:
    every = Input((65_536,), _every_bf16)
    yield Case("cast of every bf16 to fp32", lambda x: x.float(), (every,), 0, dtypes=(BF16,))
    yield Case("copy_ of every bf16 into fp32", _copied, (every,), 0, dtypes=(BF16,))
    some = Input((1_000_003,), _fp32_patterns)
    yield Case("cast of fp32 to bf16", lambda x: x.bfloat16(), (some,), 0, dtypes=(FP32,))


def _copied(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=torch.float32, device=x.device).copy_(x)


def _every_bf16(draw: Draw, shape: tuple[int, ...]) -> Tensor:
    return torch.arange(shape[0]).to(torch.int16).view(torch.bfloat16).float()


def _fp32_patterns(draw: Draw, shape: tuple[int, ...]) -> Tensor:
    high, low = ((draw.uniform(shape) * 65_536).long() for _ in range(2))
    return (high << 16 | low).to(torch.int32).view(torch.float32)


def _limits() -> Iterator[Case]:
    for power in (16, 20, 22, 24):
        x = normal((1 << power) + 1)
        for label, run in _ALL_OVER.items():
            quick = power < 24
            yield Case(f"{label} beyond 2^{power}", run, (x,), label != "copy", quick=quick)


_ALL_OVER: dict[str, Callable[[Tensor], Tensor]] = {
    "copy": lambda x: x.clone(),
    "exp": torch.exp,
    "product": lambda x: x * 2.5,
}


def _busy_tokens() -> Iterator[Case]:
    """Tokens are as unevenly common as words: the commonest is 700 of 4,096 here."""
    tokens = Input((4096,), lambda draw, shape: (1000 * draw.uniform(shape) ** 4).long())
    run: Callable[[Tensor, Tensor], Tensor] = lambda x, at: F.embedding(at, x)  # noqa: E731
    yield Case("embedding of busy tokens", run, (normal(1000, 65), tokens), 0, grad=True)


TABLES = (_vocabularies, _positions, _few_rows, _caches, _casts, _limits, _busy_tokens)
