"""Cases that compute as language models do: products, attention, layers.

Legend: B batch, H query heads, K key/value heads, L queries, S keys, D head size, V vocabulary,
        N tokens, d hidden size
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from interlock.engine.portable.sampler import sample
from interlock.models.attention import attention
from interlock.models.rope import both_halves, rotate
from interlock.qualify.cases.case import (
    BF16,
    BOUNDARIES,
    FP16,
    FP32,
    QUICK_SIZES,
    VOCABULARIES,
    Case,
    between,
    index,
    normal,
    wide,
)
from interlock.records.rl import Sampling


def _products() -> Iterator[Case]:
    for size in BOUNDARIES:
        quick = size in QUICK_SIZES
        for shape in ((size, 576, 64), (64, size, 65), (65, 576, size)):
            yield _mm(*shape, quick=quick and shape[2] != 64, grad=quick)
    for m, k, n, quick in (
        (257, 4096, 1, True),  # vectors
        (1, 4096, 257, True),
        (513, 1, 257, True),
        (33, 576, 960, True),  # SmolLM2-135M: QKV, FFN and back, vocabulary
        (33, 576, 1536, True),
        (33, 1536, 576, True),
        (65, 11_008, 129, True),
        (17, 3584, 4608, False),  # Qwen2.5-7B: QKV
        (2, 64, 151_936, False),
    ):
        yield _mm(m, k, n, quick=quick, grad=quick)
    # Llama-2-7B: FFN and back; SmolLM2's vocabulary. Large, so in the dtype that serves them only.
    for m, k, n in ((257, 4096, 1376), (9, 4096, 11_008), (9, 11_008, 4096), (3, 576, 49_153)):
        yield replace(_mm(m, k, n, quick=False), dtypes=(BF16,))
    a, b = normal(257, 320), normal(320, 129)
    for label, run, inputs in (
        ("mm of a transposed left", lambda a, b: a.T @ b, (normal(320, 257), b)),
        ("mm of a transposed right", lambda a, b: a @ b.T, (a, normal(129, 320))),
        ("mm of both transposed", lambda a, b: a.T @ b.T, (normal(320, 257), normal(129, 320))),
        ("mm of every other row", lambda a, b: a[1::2] @ b[:, 1:], (a, b)),
        ("mm of columns at an offset", lambda a, b: a[:, 3:] @ b[3:], (a, b)),
        ("mm of an expanded row", lambda a, b: a[:1].expand(65, -1) @ b, (a, b)),
        ("mm written into rows", _mm_into_rows, (a, b)),
        ("linear with bias", F.linear, (a, normal(129, 320), normal(129))),
        ("linear of a slice of stacked weights", _stacked_linear, (a, normal(387, 320))),
        ("linear of no rows", lambda x, w: F.linear(x[:0], w), (a, normal(129, 320))),
        ("bmm", torch.bmm, (normal(6, 65, 320), normal(6, 320, 33))),
        ("matmul of broadcast batches", torch.matmul, (normal(3, 1, 65, 320), normal(4, 320, 17))),
        ("addmm", torch.addmm, (normal(129), a, b)),
        ("mv", torch.mv, (normal(513, 320), normal(320))),
        (
            "einsum",
            lambda a, b: torch.einsum("nhd,shd->hns", a, b),
            (normal(65, 4, 80), normal(33, 4, 80)),
        ),
    ):
        grad = "into" not in label
        yield Case(label, run, inputs, terms=320, grad=grad)
    yield replace(_mm(129, 512, 65), dtypes=(FP16,))


def _mm(m: int, k: int, n: int, quick: bool = True, grad: bool = False) -> Case:
    return Case(
        "mm", torch.mm, (normal(m, k), normal(k, n)), terms=max(k, 1), quick=quick, grad=grad
    )


def _mm_into_rows(a: Tensor, b: Tensor) -> Tensor:
    out = a.new_zeros(3 * len(a), b.shape[1])
    torch.mm(a, b, out=out[len(a) : 2 * len(a)])
    return out


def _stacked_linear(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight[129:258])


def _attention() -> Iterator[Case]:
    shapes = (  # B, H, K, L, S, D
        (1, 3, 3, 257, 257, 64, True),
        (2, 4, 2, 17, 513, 80, True),
        (2, 2, 1, 1, 1025, 128, True),  # decoding
        (1, 2, 2, 513, 513, 64, False),
        (1, 2, 1, 65, 511, 128, False),
        (1, 2, 2, 33, 512, 64, False),
        (1, 2, 1, 1, 257, 80, False),
        (1, 1, 1, 16, 2049, 64, False),
    )
    for batch, heads, kv_heads, length, span, size, quick in shapes:
        q = normal(batch, heads, length, size)
        kv = normal(batch, kv_heads, span, size)
        for label, mask in _MASKS.items():
            some = quick and (label in _QUICK_MASKS or length == 17)
            yield Case(
                f"attention with {label}", _attend_by(mask), (q, kv, kv), span, some, grad=True
            )
        for label, call in _SDPA.items():
            if label != "is_causal" or length == span:
                run = _sdpa_by(call)
                case = Case(f"SDPA with {label}", run, (q, kv, kv), span, quick, grad=True)
                yield replace(case, roundings=6.0)
        yield Case("attention of the decoder", _own_attention, (q, kv, kv), span, quick, grad=True)
    q, kv = normal(2, 2, 65, 64), normal(2, 2, 513, 64)
    yield Case("merged attention of the cache", _merged_attention, (q, kv, kv), 513, grad=True)


def _seen(q: Tensor, k: Tensor) -> Tensor:
    """Who sees whom, bool [L, S]: the last query sees to the end, the others causally; every fifth
    key is hidden from all, as padding is."""
    length, span = q.shape[-2], k.shape[-2]
    seen = torch.ones(length, span, dtype=torch.bool, device=q.device).tril(span - length)
    seen[:, 1::5] = False
    return seen


def _bias(seen: Tensor, like: Tensor, hidden: float) -> Tensor:
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, hidden)


_MASKS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "masked_fill": lambda scores, seen: scores.masked_fill(~seen, -torch.inf),
    "where": lambda scores, seen: torch.where(seen, scores, -torch.inf),
    "a bias of -inf": lambda scores, seen: scores + _bias(seen, scores, -torch.inf),
    "a bias of finfo.min": lambda scores, seen: (
        scores + _bias(seen, scores, torch.finfo(scores.dtype).min)
    ),
}
_QUICK_MASKS = ("a bias of finfo.min",)
_SDPA: dict[str, Callable[[Tensor, Tensor], dict[str, object]]] = {
    "a boolean mask": lambda q, k: {"attn_mask": _seen(q, k)},
    "a bias of -inf": lambda q, k: {"attn_mask": _bias(_seen(q, k), q, -torch.inf)},
    "a bias of finfo.min": lambda q, k: {
        "attn_mask": _bias(_seen(q, k), q, torch.finfo(q.dtype).min)
    },
    "is_causal": lambda q, k: {"is_causal": True},
    "no mask": lambda q, k: {},
}


def _attend_by(mask: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """q [B, H, L, D], k and v [B, K, S, D] -> [B, H, L, D]"""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = q.unflatten(1, (k.shape[1], -1)) * q.shape[-1] ** -0.5  # [B, K, H/K, L, D]
        scores = mask(wide(grouped @ k[:, :, None].mT), _seen(q, k))
        return (scores.softmax(-1).to(v.dtype) @ v[:, :, None]).flatten(1, 2)

    return run


def _sdpa_by(call: Callable[[Tensor, Tensor], dict[str, object]]) -> Callable[..., Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped, **call(q, k))  # type: ignore[arg-type]

    return run


def _own_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    a, b, c = (each.transpose(1, 2) for each in (q, k, v))  # as the decoder lays them out
    return attention(a, b, c, _seen(q, k)[None], q.shape[-1] ** -0.5)


def _merged_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The keys in two parts whose softmaxes are merged by log-sum-exps, as the engine does."""
    parts = []
    for rows in (slice(0, 200), slice(200, None)):
        scores = wide(q * q.shape[-1] ** -0.5 @ k[:, :, rows].mT)
        top = scores.amax(-1, keepdim=True)
        weights = (scores - top).exp()
        total = weights.sum(-1, keepdim=True)
        parts.append(((weights / total).to(v.dtype) @ v[:, :, rows], top + total.log()))
    (first, first_lse), (second, second_lse) = parts
    return wide(first).lerp(wide(second), torch.sigmoid(second_lse - first_lse)).to(q.dtype)


def _layers() -> Iterator[Case]:
    for tokens, size in ((257, 576), (33, 4096), (513, 64)):
        x, weight = normal(tokens, size), normal(size, scale=0.1, shift=1.0)
        yield Case("RMSNorm", _rms_norm, (x, weight), size, grad=True)
        yield Case("fused RMSNorm", _fused_rms_norm, (x, weight), size, grad=True, roundings=4.0)
    for scale in (1e10, 1e-10):
        x = normal(65, 576, scale=scale)
        yield Case(f"RMSNorm of {scale:g}", _rms_norm, (x, normal(576)), 576)
    x = normal(129, 576)
    yield Case("LayerNorm", _layer_norm, (x, normal(576), normal(576)), 576, grad=True)
    yield Case("SwiGLU", _swiglu, (normal(257, 512),), grad=True)
    angles = between(-4096.0, 4096.0, 129, 1, 32)
    yield Case("rotary", _rotary, (normal(129, 3, 64), angles), 3, grad=True, dtypes=(FP32,))
    for rows, vocabulary in ((33, 513), (3, VOCABULARIES[0]), (2, VOCABULARIES[1])):
        logits, targets = normal(rows, vocabulary, scale=4.0), index(vocabulary, rows)
        quick = vocabulary < 100_000
        yield Case("cross entropy", _cross_entropy, (logits, targets), vocabulary, quick, grad=True)
        yield Case("logprob of targets", _logprob, (logits, targets), vocabulary, quick, grad=True)
    logits = normal(4, 4096, scale=8.0)
    for rule in (Sampling(temperature=0), Sampling(top_k=1), Sampling(temperature=0.1, top_p=0.9)):
        yield Case(f"sampler at {_rule(rule)}", _sampler_by(rule), (logits,), 4096, dtypes=(FP32,))
    yield Case("expert gate", _gate, (normal(65, 64),), 64, dtypes=(FP32,))


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    h = wide(x)
    return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * weight).to(x.dtype)


def _fused_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, 1e-6)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias)


def _swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def _rotary(x: Tensor, angles: Tensor) -> Tensor:
    return rotate(x, both_halves(angles))


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(wide(logits), targets, reduction="none")


def _logprob(logits: Tensor, targets: Tensor) -> Tensor:
    dtype = wide(logits).dtype
    return F.log_softmax(logits, -1, dtype=dtype).gather(1, targets[:, None])[:, 0]


def _rule(rule: Sampling) -> str:
    return f"temperature {rule.temperature:g}, top-k {rule.top_k}, top-p {rule.top_p:g}"


def _sampler_by(rule: Sampling) -> Callable[[Tensor], Sequence[Tensor]]:
    def run(logits: Tensor) -> Sequence[Tensor]:
        # One token has nearly all the mass and the noise is in its middle: no rounding can tip it.
        peaked = logits.scatter_add(1, logits.argmax(-1)[:, None], logits.new_full((4, 1), 40.0))
        rules, noise = [rule] * len(logits), [(0.5, 0.5)] * len(logits)
        tokens, logprobs = sample(peaked.float(), rules, noise)
        return tokens, logprobs.exp()  # of a logprob so near 0, rounding is all there is

    return run


def _gate(logits: Tensor) -> Sequence[Tensor]:
    scores = logits.softmax(-1)
    choice = scores.topk(6, dim=-1).indices
    weights = scores.gather(1, choice)
    return choice.flatten().bincount(minlength=64), weights / weights.sum(-1, keepdim=True)


TABLES = (_products, _attention, _layers)
