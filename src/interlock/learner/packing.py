"""Groups of a training step, laid out as micro-batches in which every prompt is computed once.

    TrainingGroup … ──check──> pieces ──fill──> MicroBatch …
                               (a group, or some of its completions with the prompt repeated)

The weights come from the recipe: nothing in the learner knows what an advantage is. The last token
of a completion predicts nothing, so it is a target but never an input.

Legend: N tokens of the stream, M tokens whose log-probability is needed, T completion tokens of all
        groups
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, repeat
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from interlock.errors import TrainingError
from interlock.learner.ahead import Ahead, Text, ahead_of
from interlock.learner.losses.kept import KeptSets
from interlock.learner.routes import RoutedTexts, check_routes, stream_routes
from interlock.models.attention import FUSED_ABOVE, Groups
from interlock.records.replay import KeptTokens, RouteShape

# A sampler in low precision may give a sure token a probability just above 1.
_ROUNDING = 1e-3


class TrainingGroup(msgspec.Struct, frozen=True):
    """Completions of one prompt with what the learner does to each of their tokens.

    The nested lists run completion by completion, token by token, and are as long as `completions`.
    Two completions of 2 and 1 tokens, with the advantages 1 and -1, each token normalised by the 3
    tokens of the step:

        TrainingGroup(
            prompt=[11, 12],
            completions=[[21, 22], [31]],
            weights=[[1 / 3, 1 / 3], [-1 / 3]],
            sampler_logprobs=[[-0.1, -2.3], [-0.7]],
        )
    """

    prompt: list[int]
    completions: list[list[int]]
    weights: list[list[float]]  # signed: advantage times normalisation; 0 leaves the token alone
    sampler_logprobs: list[list[float]] | None = None  # None: the text was not sampled (SFT)
    kl_weights: list[list[float]] | None = None  # beta times normalisation; None: no KL term
    label: str = ""  # groups of one label share their mismatch statistics
    # Of sampled text: which tokens the policy drew; None: all. The others are read, nothing else.
    sampled: list[list[bool]] | None = None
    # Of each completion, what its tokens were drawn from, over which they are then normalised in
    # every score of them: policy, old policy and reference. None: the whole vocabulary.
    kept: list[KeptTokens | None] | None = None
    # The experts that the sampler's tokens passed: see routes.py. The policy is read by these.
    prompt_routes: bytes = b""
    routes: list[bytes] = []


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass. Tensors are on the learner's device."""

    tokens: Tensor  # [N] int64
    attend: Groups  # of the stream; `attend.positions` [N]
    rows: Tensor  # [M] int64, the stream row that predicts each target
    targets: Tensor  # [M] int64
    source: Tensor  # [M] int64, the target's place among all T completion tokens, in group order
    weights: Tensor  # [M] fp32
    sampler_logprobs: Tensor | None  # [M] fp32
    kl_weights: Tensor | None  # [M] fp32
    labels: Tensor | None  # [M] int64, place in `labels_of(groups)`; of sampled groups only
    ahead: Ahead | None = None  # where more than the next token is predicted
    kept: KeptSets | None = None  # of the M targets
    routes: Tensor | None = None  # [N, L, k] int16 (routes.py)


class _Piece(NamedTuple):
    group: int
    members: range  # completions of the group
    tokens: int  # of the stream


class _Columns(NamedTuple):
    """Every completion token of all groups, in order; fields as in MicroBatch, [T]."""

    targets: Tensor
    weights: Tensor
    sampler_logprobs: Tensor | None
    kl_weights: Tensor | None
    labels: Tensor | None
    needed: Tensor  # bool
    kept: KeptSets | None


def pack(
    groups: Sequence[TrainingGroup],
    micro_batch_tokens: int,
    vocab: int,
    device: torch.device,
    every_token: bool = False,
    fused_above: int = FUSED_ABOVE,
    predict: bool = False,
    shape: RouteShape | None = None,
) -> list[MicroBatch]:
    """Fill micro-batches with groups, in the order given.

    A group is split only when it is larger than a micro-batch, and a completion never: one that is
    too long goes alone. Tokens with neither a weight nor a sampler's log-probability are context
    and no targets, and so are those that were given amid a sampled text; a micro-batch without any
    target is left out.

    Args:
        micro_batch_tokens: tokens of a micro-batch's stream, at most.
        vocab: token ids are below it.
        device: of the tensors.
        every_token: make every completion token a target.
        fused_above: see models/attention.py.
        predict: lay out `ahead`, too.
        shape: of a mixture's routes.

    Raises:
        TrainingError: a group is malformed: lengths that differ, ids outside the vocabulary, values
            that are not finite, log-probabilities above 0.
    """
    for index, group in enumerate(groups):
        _check(group, described(index, group), vocab)
        check_routes(_routed(group), shape, described(index, group))
    columns = _columns(groups, every_token)
    lengths = [len(completion) for group in groups for completion in group.completions]
    ends = list(accumulate(lengths, initial=0))
    members = accumulate((len(group.completions) for group in groups), initial=0)
    starts = [ends[member] for member in members]  # of each group, among the T tokens
    told = shape if any(group.routes or group.prompt_routes for group in groups) else None
    batches = (
        _micro_batch(groups, pieces, starts, columns, device, fused_above, predict, told)
        for pieces in _filled(_pieces(groups, micro_batch_tokens), micro_batch_tokens)
    )
    return [batch for batch in batches if len(batch.rows)]


def described(index: int, group: TrainingGroup) -> str:
    """A group's name in messages."""
    return f"training group {index}" + (f" ({group.label})" if group.label else "")


def check_sampled(groups: Sequence[TrainingGroup]) -> None:
    """Raise TrainingError where one was not sampled, which the loss of a policy needs."""
    for index, group in enumerate(groups):
        if group.sampler_logprobs is None:
            raise TrainingError(
                f"{described(index, group)} has no sampler log-probabilities, which the loss needs"
            )


def labels_of(groups: Sequence[TrainingGroup]) -> list[str]:
    """The labels of the groups, each once, in the order of their first appearance."""
    return list(dict.fromkeys(group.label for group in groups))


def _check(group: TrainingGroup, name: str, vocab: int) -> None:
    if not group.prompt or not group.completions or not all(group.completions):
        raise TrainingError(f"{name} has an empty prompt, an empty completion or none at all")
    for token in chain(group.prompt, *group.completions):
        if not 0 <= token < vocab:
            raise TrainingError(f"{name}: token id {token} is outside the vocabulary of {vocab}")
    lengths = [len(completion) for completion in group.completions]
    columns = (
        ("weights", group.weights),
        ("sampler_logprobs", group.sampler_logprobs),
        ("kl_weights", group.kl_weights),
    )
    for field, column in columns:
        if column is None:
            continue
        if [len(values) for values in column] != lengths:
            raise TrainingError(
                f"{name}: completions of {lengths} tokens, but {field} of "
                f"{[len(values) for values in column]} values"
            )
        for value in chain.from_iterable(column):
            if not math.isfinite(value):
                raise TrainingError(f"{name}: {field} holds {value}, which is not finite")
            if field == "sampler_logprobs" and value > _ROUNDING:
                raise TrainingError(f"{name}: {field} holds {value}; no probability is above 1")
    if group.sampled is not None:
        _check_given(group, group.sampled, name)
    if group.kept is not None:
        _check_kept(group, group.kept, name, vocab)


def _check_kept(
    group: TrainingGroup, sets: Sequence[KeptTokens | None], name: str, vocab: int
) -> None:
    if len(sets) != len(group.completions):
        raise TrainingError(f"{name}: {len(sets)} kept sets for {len(group.completions)} answers")
    for tokens, kept in zip(group.completions, sets, strict=True):
        if kept is not None and (why := kept.problem(tokens, vocab)):
            raise TrainingError(f"{name}: {why}")


def _check_given(group: TrainingGroup, sampled: list[list[bool]], name: str) -> None:
    if [len(flags) for flags in sampled] != [len(tokens) for tokens in group.completions]:
        raise TrainingError(f"{name}: sampled does not say of every token whether it was")
    for column in (group.weights, group.kl_weights or ()):
        pairs = zip(chain.from_iterable(column), chain.from_iterable(sampled), strict=False)
        if any(weight and not drawn for weight, drawn in pairs):
            raise TrainingError(f"{name}: a token that was given and not sampled has a weight")


def _columns(groups: Sequence[TrainingGroup], every_token: bool) -> _Columns:
    lacking = [described(i, g) for i, g in enumerate(groups) if g.sampler_logprobs is None]
    sampled = len(lacking) < len(groups)
    if sampled and lacking:
        raise TrainingError(
            f"{lacking[0]} and {len(lacking) - 1} more of {len(groups)} lack the sampler's "
            "log-probabilities; give them for all groups of a step, or for none"
        )
    weights = _column(group.weights for group in groups)
    kl_weights = None
    if any(group.kl_weights is not None for group in groups):
        kl_weights = _column(
            group.kl_weights or [[0.0] * len(tokens) for tokens in group.completions]
            for group in groups
        )
    if every_token:
        needed = torch.ones(len(weights), dtype=torch.bool)
    elif sampled:
        needed = torch.tensor([drawn for group in groups for drawn in _drawn(group)])
    else:
        needed = weights != 0 if kl_weights is None else (weights != 0) | (kl_weights != 0)
    return _Columns(
        targets=torch.tensor([t for g in groups for tokens in g.completions for t in tokens]),
        weights=weights,
        sampler_logprobs=_column(g.sampler_logprobs or [] for g in groups) if sampled else None,
        kl_weights=kl_weights,
        labels=_labels(groups) if sampled else None,
        needed=needed,
        kept=_kept(groups),
    )


def _kept(groups: Sequence[TrainingGroup]) -> KeptSets | None:
    if all(group.kept is None for group in groups):
        return None
    return KeptSets.read(
        [
            (len(tokens), sets)
            for group in groups
            for tokens, sets in zip(
                group.completions, group.kept or [None] * len(group.completions), strict=True
            )
        ]
    )


def _drawn(group: TrainingGroup) -> Iterator[bool]:
    """Of each completion token, whether it was sampled."""
    if group.sampled is not None:
        yield from chain.from_iterable(group.sampled)
    else:
        yield from repeat(True, sum(map(len, group.completions)))


def _labels(groups: Sequence[TrainingGroup]) -> Tensor:
    places = {label: place for place, label in enumerate(labels_of(groups))}
    tokens = torch.tensor([sum(map(len, group.completions)) for group in groups])
    return torch.tensor([places[group.label] for group in groups]).repeat_interleave(tokens)


def _column(groups: Iterable[list[list[float]]]) -> Tensor:
    values = [value for group in groups for completion in group for value in completion]
    return torch.tensor(values, dtype=torch.float32)


def _pieces(groups: Sequence[TrainingGroup], limit: int) -> Iterator[_Piece]:
    """The groups, those larger than `limit` split by completions."""
    for index, group in enumerate(groups):
        first, tokens = 0, len(group.prompt)
        for member, completion in enumerate(group.completions):
            inputs = len(completion) - 1
            if member > first and tokens + inputs > limit:
                yield _Piece(index, range(first, member), tokens)
                first, tokens = member, len(group.prompt)
            tokens += inputs
        yield _Piece(index, range(first, len(group.completions)), tokens)


def _filled(pieces: Iterable[_Piece], limit: int) -> Iterator[list[_Piece]]:
    """Consecutive pieces that fit into `limit` together."""
    batch: list[_Piece] = []
    tokens = 0
    for piece in pieces:
        if batch and tokens + piece.tokens > limit:
            yield batch
            batch, tokens = [], 0
        batch.append(piece)
        tokens += piece.tokens
    if batch:
        yield batch


def _micro_batch(
    groups: Sequence[TrainingGroup],
    pieces: list[_Piece],
    starts: list[int],
    columns: _Columns,
    device: torch.device,
    fused_above: int,
    predict: bool,
    shape: RouteShape | None,
) -> MicroBatch:
    tokens: list[int] = []
    rows: list[int] = []
    source: list[int] = []
    for piece in pieces:
        group = groups[piece.group]
        tokens += group.prompt
        prompt_end = len(tokens) - 1
        at = starts[piece.group] + sum(map(len, group.completions[: piece.members.start]))
        for member in piece.members:
            completion = group.completions[member]
            rows += [prompt_end, *range(len(tokens), len(tokens) + len(completion) - 1)]
            source += range(at, at + len(completion))
            tokens += completion[:-1]
            at += len(completion)
    chosen = torch.tensor(source)
    needed = columns.needed[chosen]
    chosen = chosen[needed]
    lengths = [[len(groups[p.group].completions[m]) - 1 for m in p.members] for p in pieces]
    sampler, kl_weights, labels = columns.sampler_logprobs, columns.kl_weights, columns.labels
    kept = columns.kept
    routes = stream_routes((_routed(groups[p.group], p.members) for p in pieces), shape)
    return MicroBatch(
        tokens=torch.tensor(tokens, device=device),
        attend=Groups(
            [len(groups[piece.group].prompt) for piece in pieces],
            [[length for length in members if length] for members in lengths],
            device,
            fused_above,
        ),
        rows=torch.tensor(rows)[needed].to(device),
        targets=columns.targets[chosen].to(device),
        source=chosen.to(device),
        weights=columns.weights[chosen].to(device),
        sampler_logprobs=None if sampler is None else sampler[chosen].to(device),
        kl_weights=None if kl_weights is None else kl_weights[chosen].to(device),
        labels=None if labels is None else labels[chosen].to(device),
        ahead=ahead_of((_texts(groups, p) for p in pieces), device, fused_above)
        if predict
        else None,
        kept=None if kept is None else kept.of(chosen).to(device),
        routes=None if routes is None else routes.to(device),
    )


def _routed(group: TrainingGroup, members: Sequence[int] | None = None) -> RoutedTexts:
    if members is None:
        return group.prompt, group.completions, group.prompt_routes, group.routes
    texts = [group.completions[member] for member in members]
    own = [group.routes[member] for member in members] if group.routes else []
    return group.prompt, texts, group.prompt_routes, own


def _texts(groups: Sequence[TrainingGroup], piece: _Piece) -> list[Text]:
    group = groups[piece.group]
    return [(group.prompt, group.completions[m], group.weights[m]) for m in piece.members]
