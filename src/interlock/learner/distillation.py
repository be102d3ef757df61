"""Losses against a teacher's distribution, over hidden states: no logits outlive their chunk.

    student's hidden [M, d] ─ head ─> logits [chunk, V] ─ log pi ─┐
    teacher's hidden [M, e] ─ head ─> logits [chunk, V] ─ log nu ─┴─> divergence, and at once its
    or a served one's top k tokens ──────── log nu [chunk, k] ────┘   slope by the student's logits

As in losses/projection.py a chunk's gradient is taken in the forward pass. What is compared, and
the closed forms of its slopes: losses/divergences.py.

Legend: M tokens, V vocabulary, d and e hidden sizes, k alternatives, b rows of a chunk, T
        completion tokens of all groups
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from interlock.chips.products import Product
from interlock.errors import TrainingError
from interlock.learner.learner import Learner
from interlock.learner.losses.divergences import (
    Divergence,
    Tops,
    bucketed,
    divergence,
    overlapping,
)
from interlock.learner.losses.mismatches import mismatches
from interlock.learner.losses.policy import Sums
from interlock.learner.losses.projection import CACHED, add_product, kept_gradients, project, slices
from interlock.learner.packing import MicroBatch, TrainingGroup
from interlock.learner.reading import read, read_targets
from interlock.learner.step_result import StepResult
from interlock.mismatch import Mismatch
from interlock.models.attention import repeated
from interlock.models.decoder import Decoder


@dataclass(frozen=True)
class TeacherSums:
    """Sums over tokens that one teacher scored; they add up over micro-batches."""

    tokens: int = 0
    divergence: float = 0.0
    reverse_kl: float = 0.0
    overlap: float = 0.0  # share of the teacher's top_k that are the student's
    advantage: float = 0.0  # see `overlapping`

    def __add__(self, other: "TeacherSums") -> "TeacherSums":
        return TeacherSums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class Compared(NamedTuple):
    """Of b tokens, each [b] but the slope."""

    divergence: Tensor
    reverse_kl: Tensor
    slope: Tensor  # [b, V], of the divergence by the student's logits, times the temperature
    overlap: Tensor
    advantage: Tensor


class TeacherSays(Protocol):
    """What is known of the teacher's distribution after some tokens."""

    def chunk(self, rows: slice) -> tuple[Tensor, ...]:
        """Of some of them, [m, …]; freed before the next chunk."""
        ...

    def compare(self, log_p: Tensor, part: tuple[Tensor, ...]) -> Compared:
        """log_p [b, V] of the student, and the same rows of what `chunk` gave."""
        ...


class TeacherTarget(Protocol):
    """A teacher of a step, who says of each micro-batch what there is to learn."""

    def of(self, batch: MicroBatch, mine: Tensor) -> TeacherSays:
        """mine [M] bool: the targets of the batch that are this teacher's."""
        ...


@dataclass(frozen=True)
class WholeVocabulary:
    """The teacher's whole distribution, out of its hidden states [M, e] and its head [V, e]."""

    hidden: Tensor
    head: Tensor
    product: Product
    how: Divergence

    def chunk(self, rows: slice) -> tuple[Tensor, ...]:
        return (project(self.hidden[rows], self.head, self.product),)  # [m, V]

    def compare(self, log_p: Tensor, part: tuple[Tensor, ...]) -> Compared:
        log_q = _log_softmax(part[0], self.how.temperature, log_p.dtype)
        top = log_q.topk(min(self.how.top_k, log_q.shape[1]))
        overlap, advantage = overlapping(log_p, top.indices, top.values)
        value, slope, reverse = divergence(log_p, log_q, self.how.beta)
        return Compared(value, reverse, slope, overlap, advantage)


@dataclass(frozen=True)
class Likeliest:
    """The teacher's own [M], ids [M, k] and logprobs [M, k], as of Tops; targets [M].

    Its reverse KL is log pi - log nu of the sampled token, which has it for an expectation.
    """

    tops: Tops
    targets: Tensor
    how: Divergence

    def chunk(self, rows: slice) -> tuple[Tensor, ...]:
        own, ids, logprobs = self.tops
        return own[rows], ids[rows], logprobs[rows], self.targets[rows]

    def compare(self, log_p: Tensor, part: tuple[Tensor, ...]) -> Compared:
        own, ids, log_q, targets = part
        own, log_q = own.to(log_p.dtype), log_q.to(log_p.dtype)
        overlap, advantage = overlapping(log_p, ids, log_q)
        value, slope, _ = bucketed(log_p, ids, log_q, self.how.beta)
        sampled = log_p.gather(1, targets[:, None])[:, 0] - own
        return Compared(value, sampled, slope, overlap, advantage)


@dataclass(frozen=True)
class LocalTarget:
    """A decoder in this process, which reads every micro-batch beside the student."""

    decoder: Decoder
    vocab: int  # words of student and teacher: those that both have a row for
    how: Divergence

    @torch.no_grad()
    def of(self, batch: MicroBatch, mine: Tensor) -> TeacherSays:
        decoder = self.decoder
        hidden = repeated(read(decoder, batch), batch.rows[mine])
        head = decoder.head[: self.vocab].to(decoder.dtype)
        return WholeVocabulary(hidden, head, decoder.product, self.how)


@dataclass(frozen=True)
class ToldTarget:
    """What a teacher said beforehand."""

    tops: Tops
    how: Divergence

    def of(self, batch: MicroBatch, mine: Tensor) -> TeacherSays:
        at, place = batch.source[mine].cpu(), batch.source.device
        tops = Tops(*(column[at].to(place) for column in self.tops))
        return Likeliest(tops, batch.targets[mine], self.how)


class Columns(NamedTuple):
    """Columns [M] of `chunked_divergence`, without gradients, all but entropy as in Compared."""

    logprobs: Tensor  # log pi of the targets
    entropy: Tensor
    divergence: Tensor
    reverse_kl: Tensor
    overlap: Tensor
    advantage: Tensor


def chunked_divergence(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    weights: Tensor,
    given: TeacherSays,
    temperature: float,
    chunk: int,
    dtype: torch.dtype | None = None,
    product: Product = F.linear,
) -> tuple[Tensor, Columns]:
    """The weighted sum of M tokens' divergences, never holding logits of more than `chunk` of them
    on either side.

    hidden [M, d], head [V, d], targets [M] int64, weights [M]; dtype and product as of
    loss.chunked_loss. -> loss [], with the gradients of hidden and head; Columns
    """
    rest = targets, weights, given, temperature, chunk, dtype or hidden.dtype, product
    loss, *columns = _ChunkedDivergence.apply(hidden, head, *rest)
    return loss, Columns(*columns)


class _ChunkedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        weights: Tensor,
        given: TeacherSays,
        temperature: float,
        chunk: int,
        dtype: torch.dtype,
        product: Product,
    ) -> tuple[Tensor, ...]:
        weight = head.to(dtype)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        columns = hidden.new_empty((len(Columns._fields), len(targets)), dtype=wide)
        d_hidden = torch.empty_like(hidden)
        learned = ctx.needs_input_grad[1]
        d_head = torch.zeros_like(head, dtype=wide) if learned else None
        on_cpu = hidden.device.type == "cpu"
        block = max(1, CACHED // head.shape[0]) if on_cpu else chunk
        for rows in slices(len(targets), chunk):
            logits, theirs = project(hidden[rows], weight, product), given.chunk(rows)  # [m, V]
            scale = weights[rows, None] / temperature
            for part in slices(len(logits), block):
                log_p = _log_softmax(logits[part], temperature, wide)
                found = given.compare(log_p, tuple(each[part] for each in theirs))
                own = log_p.gather(1, targets[rows][part, None])[:, 0]
                entropy = -(log_p.exp() * log_p).sum(-1)
                columns[:, rows][:, part] = torch.stack([own, entropy, *_columns_of(found)])
                logits[part] = found.slope * scale[part]
            slopes = logits.to(dtype)
            d_hidden[rows] = product(slopes, weight.mT, None)
            if d_head is not None:
                add_product(d_head, slopes.mT, hidden[rows].to(dtype))
        ctx.save_for_backward(d_hidden, d_head)
        ctx.head_dtype = head.dtype
        ctx.mark_non_differentiable(*(out := columns.unbind()))
        return (weights * Columns(*out).divergence).sum(), *out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *kept_gradients(ctx, grads[0]), *[None] * 7


def distil(
    learner: Learner,
    groups: Sequence[TrainingGroup],
    owners: Tensor,
    targets: Sequence[TeacherTarget],
    how: Divergence,
    chunk: int,
    vocab: int,
) -> tuple[StepResult, list[TeacherSums]]:
    """One optimizer step on the divergence of every token with a weight, from its own teacher.

    Args:
        groups: as Learner.step takes them; a token's weight is its share of the loss.
        owners: int64 [T], on the CPU: the place in `targets` of who teaches each completion token.
        chunk: tokens whose logits are held at a time.
        vocab: words that student and all of `targets` have rows for; others are left out.

    Returns:
        The step, and what was measured of each teacher's tokens.

    Raises:
        TrainingError: as Learner.update does, and for a token that is not of the `vocab` words.
    """
    _check_known(groups, vocab)
    decoder = learner.decoder
    head = decoder.head if vocab == decoder.arch.vocab else decoder.head[:vocab]
    totals = [TeacherSums() for _ in targets]

    def accumulate(batch: MicroBatch) -> Sums:
        whose = owners[batch.source.cpu()].to(batch.source.device)
        hidden: Tensor | None = None
        total, loss = Sums(), torch.zeros((), device=batch.source.device)
        for place, target in enumerate(targets):
            mine = (batch.weights != 0) & (whose == place)
            if not mine.any():
                continue
            given = target.of(batch, mine)
            hidden = read(decoder, batch) if hidden is None else hidden
            part, found = chunked_divergence(
                repeated(hidden, batch.rows[mine]),
                head,
                batch.targets[mine],
                batch.weights[mine],
                given,
                how.temperature,
                chunk,
                decoder.dtype,
                decoder.product,
            )
            loss = loss + part
            totals[place] += _measured(found)
            total += _sums(part, found, batch, mine)
        if hidden is not None:
            loss.backward()
        return total

    result = learner.update(groups, accumulate)
    return result, totals


@torch.no_grad()
def tops(
    decoder: Decoder,
    learner: Learner,
    groups: Sequence[TrainingGroup],
    temperature: float,
    chunk: int,
    k: int,
    vocab: int,
) -> Tops:
    """What a decoder in this process says of all completion tokens of some groups.

    `vocab` as of `distil`. Raises TrainingError when they hold a token that is not of these words.
    """
    _check_known(groups, vocab)
    count = sum(len(text) for group in groups for text in group.completions)
    own = torch.zeros(count)
    ids, values = torch.zeros((count, k), dtype=torch.int64), torch.zeros((count, k))
    head = decoder.head[:vocab].to(decoder.dtype)
    for batch in learner.pack(groups, every_token=True):
        hidden = read_targets(decoder, batch)
        at = batch.source.cpu()
        for rows in slices(len(at), chunk):
            logits = project(hidden[rows], head, decoder.product)
            log_q = _log_softmax(logits, temperature, torch.float32)
            own[at[rows]] = log_q.gather(1, batch.targets[rows, None])[:, 0].cpu()
            if k:
                top = log_q.topk(k)
                ids[at[rows]], values[at[rows]] = top.indices.cpu(), top.values.cpu()
    return Tops(own, ids, values)


def _check_known(groups: Sequence[TrainingGroup], vocab: int) -> None:
    tokens = (
        token for group in groups for text in (group.prompt, *group.completions) for token in text
    )
    if (largest := max(tokens, default=0)) >= vocab:
        raise TrainingError(
            f"the token {largest} was sampled, which is none of the {vocab} words that student and "
            "teacher share"
        )


def _log_softmax(logits: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    return F.log_softmax(logits.to(dtype) / temperature, dim=-1)


def _columns_of(found: Compared) -> list[Tensor]:
    return [found.divergence, found.reverse_kl, found.overlap, found.advantage]


def _measured(found: Columns) -> TeacherSums:
    values = torch.stack(found[2:]).double().sum(-1).tolist()
    return TeacherSums(len(found.logprobs), *values)


@torch.no_grad()
def _sums(loss: Tensor, found: Columns, batch: MicroBatch, mine: Tensor) -> Sums:
    by_label: dict[int, Mismatch] = {}
    if batch.sampler_logprobs is not None:
        assert batch.labels is not None
        apart = found.logprobs - batch.sampler_logprobs[mine]
        by_label = mismatches(apart, batch.labels[mine])
    return Sums(
        tokens=len(found.logprobs),
        loss=loss.item(),
        entropy=found.entropy.double().sum().item(),
        mismatch=sum(by_label.values(), Mismatch()),
        by_label=by_label,
    )
