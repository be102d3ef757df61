"""Cases at the sizes of today's models: what is right at ordinary ones may be wrong at these.

    vocabularies   whatever works along rows, or picks rows, of up to the largest vocabulary
    contexts       angles of every position, attention over so many keys, a cache so long
    layers         products, norms, heads and experts as wide as those of models
    few rows       products of 1 to 3 rows, whose terms no tile divides: decoding
    many rows      more than 65,535 of them, where grids of blocks end
    caches         a row written at every place of a dimension
    casts          every bf16 and fp16, and a million fp32
    limits         one element beyond powers of two

The sizes are the largest of models/catalogue.toml, and those of a model that was named. Rows are
contiguous, and slices of padded tensors, as kernels are given both. Nearly all of it is tried at
every level: a chip that fails here serves no model of today. Each size is tried on its own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from interlock.models.attention import attention
from interlock.qualify.cases.case import (
    BF16,
    FP16,
    FP32,
    Case,
    Draw,
    Input,
    given,
    index,
    normal,
    wide,
)
from interlock.records.trust import Sizes

_TERMS = (65, 127, 607, 1567, 4095)
_PADDING = 64
_ALL_DTYPES = (FP32, BF16, FP16)
_MANY = 65_537  # rows; a grid of CUDA has 65,535 blocks at most along its y and z


def _vocabularies(tried: Sequence[Sizes]) -> Iterator[Case]:
    for size in (65_537, *_each(tried, "vocab")):  # one beyond what fills 16 bits
        for label, run in _OVER_ROWS.items():
            dtypes = _ALL_DTYPES if label in ("softmax", "argmax") else (FP32, BF16)
            whole = Case(f"{label} of a vocabulary", run, (normal(2, size, scale=4.0),), size)
            padded = (normal(2, size + _PADDING, scale=4.0),)
            part = Case(f"{label} of a padded vocabulary", _unpadded(run), padded, size)
            yield from (replace(case, dtypes=dtypes) for case in (whole, part))
        logits, targets = normal(2, size, scale=4.0), index(size, 2)
        yield Case("logprob of targets of a vocabulary", _logprob, (logits, targets), size)
        columns = (normal(size, 2, scale=4.0),)
        yield Case("softmax of columns of a vocabulary", lambda x: x.softmax(0), columns, size)
        table, places = normal(size, 8), index(size, 257)
        for label, pick in _PICKS.items():
            yield Case(f"{label} of a vocabulary", pick, (table, places), 0, grad=True)
        yield Case("index_add_ to a vocabulary", _added, (table, normal(257, 8), places), 257)
        factors = normal(2, 17), normal(size, 17)
        yield Case("linear onto a vocabulary", F.linear, factors, 17, grad=True, dtypes=(BF16,))


def _each(tried: Sequence[Sizes], name: str) -> list[int]:
    """The values of a size that are not 0, each once."""
    return sorted({getattr(sizes, name) for sizes in tried} - {0})


# Indices may differ among equals, so what is judged is what they point at.
_OVER_ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "sum": lambda x: x.sum(-1),
    "cumsum": lambda x: wide(x).cumsum(-1),
    "amax": lambda x: x.amax(-1),
    "argmax": lambda x: x.gather(-1, x.argmax(-1, keepdim=True)),
    "topk": lambda x: x.gather(-1, x.topk(8, dim=-1).indices),
    "sort": lambda x: x.gather(-1, x.sort(-1, descending=True).indices),
    "last": lambda x: x.gather(-1, torch.full((2, 1), x.shape[1] - 1, device=x.device)),
}
_PICKS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "embedding": lambda x, at: F.embedding(_with_last(x, at), x),
    "index_select": lambda x, at: x.index_select(0, _with_last(x, at)),
    "pick by index": lambda x, at: x[_with_last(x, at)],
    "gather": lambda x, at: x.gather(0, _with_last(x, at)[:, None].expand(-1, 8)),
}


def _with_last(x: Tensor, at: Tensor) -> Tensor:
    return torch.cat([at, torch.full_like(at[:1], len(x) - 1)])


def _added(x: Tensor, rows: Tensor, at: Tensor) -> Tensor:
    return x.index_add_(0, at, rows)


def _unpadded(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: run(x[:, :-_PADDING])


def _logprob(logits: Tensor, targets: Tensor) -> Tensor:
    return wide(logits).log_softmax(-1).gather(1, targets[:, None])[:, 0]


def _contexts(tried: Sequence[Sizes]) -> Iterator[Case]:
    for size in _each(tried, "context"):
        # Whole numbers, which fp32 holds exactly: no rounding of the angle excuses an answer.
        positions = index(size, 4097), given(0.0)
        yield Case("sin and cos of positions", _turned, positions, 2, dtypes=(FP32,))
        q, kv = normal(1, 1, 1, 64), normal(1, size, 1, 64)
        yield Case("attention of the decoder over a context", _decoding, (q, kv, kv), size)
        cache, rows = normal(1, 1, size, 4), normal(1, 1, 3, 4)
        yield Case("cache of a context", _at_ends, (cache, rows), 0)


def _turned(at: Tensor, like: Tensor) -> Tensor:
    angle = at.to(like.dtype)
    return torch.cat([angle.sin(), angle.cos()])


def _decoding(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query that sees all keys; q [1, 1, H, D], k and v [1, S, K, D]."""
    seen = torch.ones(1, 1, k.shape[1], dtype=torch.bool, device=q.device)
    return attention(q, k, v, seen, q.shape[-1] ** -0.5)


def _at_ends(cache: Tensor, rows: Tensor) -> Tensor:
    last = cache.shape[2] - 1
    places = torch.tensor([0, last // 2, last], device=cache.device)
    return cache.index_copy_(2, places, rows)


def _layers(tried: Sequence[Sizes]) -> Iterator[Case]:
    widths = {size for name in ("hidden", "inner", "expert_inner", "q_rank", "kv_rank")
              for size in _each(tried, name)}  # fmt: skip
    for size in sorted(widths):
        factors = normal(3, size), normal(65, size)
        yield Case("linear as wide as a layer", F.linear, factors, size, grad=True)
        factors = normal(3, 65), normal(size, 65)
        yield Case("linear onto the width of a layer", F.linear, factors, 65, grad=True)
    for size in _each(tried, "hidden"):
        weight = normal(size, scale=0.1, shift=1.0)
        yield Case("RMSNorm as wide as a layer", _rms_norm, (normal(3, size), weight), size)
    for heads, kv_heads, head_dim in sorted({(s.heads, s.kv_heads, s.head_dim) for s in tried}):
        if heads % max(1, kv_heads) == 0 < kv_heads:
            q, kv = normal(1, 1, heads, head_dim), normal(1, 129, kv_heads, head_dim)
            yield Case("attention of the decoder with many heads", _decoding, (q, kv, kv), 129)
    for experts, chosen in sorted({(s.experts, s.per_token) for s in tried if s.experts}):
        run = _gate(chosen)
        yield Case("expert gate of a model", run, (normal(65, experts),), experts, dtypes=(FP32,))


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    h = wide(x)
    return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * weight).to(x.dtype)


def _gate(chosen: int) -> Callable[[Tensor], Sequence[Tensor]]:
    def run(logits: Tensor) -> Sequence[Tensor]:
        scores = logits.softmax(-1)
        choice = scores.topk(chosen, dim=-1).indices
        return choice.flatten().bincount(minlength=scores.shape[1]), scores.gather(1, choice)

    return run


def _few_rows(tried: Sequence[Sizes]) -> Iterator[Case]:
    for rows in (1, 2, 3):
        for terms in _TERMS:
            x, weight = normal(rows, terms), normal(129, terms)
            padded = normal(rows, terms + _PADDING), normal(129, terms + _PADDING)
            for label, run, factors in (
                ("linear of few rows", F.linear, (x, weight)),
                ("linear of few padded rows", _padded_linear, padded),
                ("mm of few rows", torch.mm, (x, normal(terms, 129))),
            ):
                yield Case(label, run, factors, terms, grad=True, dtypes=_ALL_DTYPES)
            batch = normal(3, rows, terms), normal(3, terms, 65)
            yield Case("bmm of few rows", torch.bmm, batch, terms, grad=rows == 1)


def _padded_linear(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x[:, :-_PADDING], weight[:, :-_PADDING])


def _many_rows(tried: Sequence[Sizes]) -> Iterator[Case]:
    x = normal(_MANY, 5)
    for label, run in _ROW_BY_ROW.items():
        yield Case(f"{label} of many rows", run, (x,), 5, grad=label in ("softmax", "RMSNorm"))
    yield Case("linear of many rows", F.linear, (x, normal(3, 5)), 5, grad=True)
    yield Case("bmm of many batches", torch.bmm, (normal(_MANY, 1, 5), normal(_MANY, 5, 2)), 5)
    q, kv = normal(_MANY, 1, 1, 4), normal(_MANY, 3, 1, 4)
    yield Case("attention of the decoder for many rows", _each_decoding, (q, kv, kv), 5)
    picked = index(1000, _MANY)
    yield Case("embedding of many tokens", _embedding, (normal(1000, 5), picked), 0, grad=True)


_ROW_BY_ROW: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(-1),
    "RMSNorm": lambda x: _rms_norm(x, x[0].detach()),
    "sum": lambda x: x.sum(-1),
    "argmax": lambda x: x.gather(-1, x.argmax(-1, keepdim=True)),
    "sort": lambda x: x.sort(-1).values,
    "cumsum": lambda x: wide(x).cumsum(-1),
}


def _each_decoding(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seen = torch.ones(len(q), 1, k.shape[1], dtype=torch.bool, device=q.device)
    return attention(q, k, v, seen, q.shape[-1] ** -0.5)


def _embedding(x: Tensor, at: Tensor) -> Tensor:
    return F.embedding(at, x)


def _caches(tried: Sequence[Sizes]) -> Iterator[Case]:
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


def _scattered(cache: Tensor, rows: Tensor) -> Tensor:
    return cache.scatter_(2, _everywhere(cache)[:, None].expand_as(rows), rows)


_WRITES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index_copy_": lambda cache, rows: cache.index_copy_(2, _everywhere(cache), rows),
    "assignment": _written_in_turn,
    "index_put_": lambda cache, rows: (
        cache[0].transpose(0, 1).index_put_((_everywhere(cache),), rows[0].transpose(0, 1))
    ),
    "scatter_": _scattered,
    "padded index_copy_": lambda cache, rows: cache[..., :-5].index_copy_(
        2, _everywhere(cache), rows[..., 5:]
    ),
}


def _casts(tried: Sequence[Sizes]) -> Iterator[Case]:
    for dtype in (BF16, FP16):
        every = Input((65_536,), _every(dtype))
        yield Case("cast of every half to fp32", torch.Tensor.float, (every,), 0, dtypes=(dtype,))
        yield Case("copy_ of every half into fp32", _copied, (every,), 0, dtypes=(dtype,))
        padded = Input((256, 256), _every(dtype))
        yield Case("cast of padded halves", lambda x: x[:, 3:].float(), (padded,), 0,
                   dtypes=(dtype,))  # fmt: skip
        some = Input((1_000_003,), _fp32_patterns)
        name = "bf16" if dtype == BF16 else "fp16"
        yield Case(f"cast of fp32 to {name}", _cast_to(dtype), (some,), 0, dtypes=(FP32,))


def _cast_to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda x: x.to(dtype)


def _copied(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=torch.float32, device=x.device).copy_(x)


def _every(dtype: torch.dtype) -> Callable[[Draw, tuple[int, ...]], Tensor]:
    """All patterns of 16 bits, as numbers of that dtype."""
    return lambda draw, shape: torch.arange(65_536).to(torch.int16).view(dtype).float().view(shape)


def _fp32_patterns(draw: Draw, shape: tuple[int, ...]) -> Tensor:
    high, low = ((draw.uniform(shape) * 65_536).long() for _ in range(2))
    return (high << 16 | low).to(torch.int32).view(torch.float32)


def _limits(tried: Sequence[Sizes]) -> Iterator[Case]:
    for power in range(8, 25):
        whole, half = normal((1 << power) + 1), normal(2, (1 << power - 1) + 1 + _PADDING)
        for label, run in _ALL_OVER.items():
            terms, quick = int(label != "copy"), power < 22
            yield Case(f"{label} beyond 2^{power}", run, (whole,), terms, quick=quick)
            part = _unpadded(run)
            yield Case(f"{label} of slices beyond 2^{power}", part, (half,), terms,
                       quick=power % 4 == 0 and power < 22)  # fmt: skip


_ALL_OVER: dict[str, Callable[[Tensor], Tensor]] = {
    "copy": lambda x: x.clone(),
    "exp": torch.exp,
    "product": lambda x: x * 2.5,
}


def _busy_tokens(tried: Sequence[Sizes]) -> Iterator[Case]:
    """Tokens are as unevenly common as words: the commonest is 700 of 4,096 here."""
    tokens = Input((4096,), lambda draw, shape: (1000 * draw.uniform(shape) ** 4).long())
    yield Case("embedding of busy tokens", _embedding, (normal(1000, 65), tokens), 0, grad=True)
    yield Case("pick of busy tokens", lambda x, at: x[at], (normal(1000, 65), tokens), 0, grad=True)


TABLES = (
    *(_vocabularies, _contexts, _layers, _few_rows, _many_rows, _caches, _casts, _limits),
    _busy_tokens,
)
