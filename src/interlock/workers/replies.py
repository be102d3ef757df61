"""Whether to believe a worker: plain functions over what it said, no torch.

Answered ──refusal──> why the answer is garbage, or None
Loaded   ──doubt────> why it does not serve the weights it should, or None
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from interlock.mismatch import mismatch
from interlock.models.routes import problem
from interlock.records.replay import RouteShape
from interlock.records.rl import Completion, Segment, WeightVersion
from interlock.workers.generators import Work
from interlock.workers.protocol import Answered, Canary, Loaded

_ROUNDING = 1e-3  # a logprob may be this far above 0
_LOWEST = -1e4  # no token that is drawn has a lower one, and sums of these stay finite
_SHOWN = 80  # characters of a bad value in a message


class Target(NamedTuple):
    """The weight version to serve, and what the learner says of the canary's text under it."""

    version: WeightVersion
    text: list[float]


def refusal(
    answered: Answered, work: Work, prompt: list[int], versions: Sequence[int], vocab: int
) -> str | None:
    """Why this cannot be the answer to its problem of `work`; None when it can.

    Args:
        prompt: the learner's own tokens of that problem.
        versions: what may have sampled it, ascending: that which the worker served when it was
            asked, and those that it has proven since.
        vocab: token ids are below it.
    """
    at = f"problem {work.problems[answered.index].id[:_SHOWN]!r}"
    if answered.prompt_tokens != prompt:
        return f"{at}: other prompt tokens than the learner's; the tokenizers differ"
    if len(answered.completions) != work.completions:
        return f"{at}: {len(answered.completions)} completions instead of {work.completions}"
    for completion in answered.completions:
        count, most = len(completion.tokens), work.sampling.max_tokens
        if not 0 < count <= most:
            return f"{at}: a completion of {count} tokens, not 1 to {most}"
        if found := _odd_versions(completion, versions, work.sampling.thinking_budget is not None):
            return f"{at}: {found}"
        most = work.sampling.most_told if work.replay.kept else 0
        for segment in completion.segments:
            if found := _odd_segment(segment, vocab) or _odd_kept(segment, vocab, most):
                return f"{at}: {found}"
    if found := _odd_routes(answered, work.replay.routes):
        return f"{at}: {found}"
    return None


def _odd_versions(completion: Completion, versions: Sequence[int], budget: bool) -> str | None:
    """An engine samples all of a completion, from ever newer weights, each of which was proven;
    with a `budget` of thinking, but for the end of that, which is looked at when it is read.
    """
    before = versions[0]
    if not completion.weight_versions:
        return "tokens that nobody sampled"
    for segment in completion.segments:
        version = segment.weight_version
        if version is None and budget:
            continue
        if version is None:
            return "tokens that nobody sampled"
        if version not in versions:
            return f"weights of version {version} instead of {_either(versions)}"
        if version < before:
            return f"weights of version {version} behind those of {before}"
        before = version
    return None


def _odd_segment(segment: Segment, vocab: int) -> str | None:
    count = len(segment.tokens)
    if not count:
        return "a stretch of no tokens"
    if not segment.sampled and segment.logprobs:
        return "logprobs of tokens that were given"
    if segment.sampled and len(segment.logprobs) != count:
        return f"{len(segment.logprobs)} logprobs for {count} tokens"
    if min(segment.tokens) < 0 or max(segment.tokens) >= vocab:
        return f"a token id outside the vocabulary of {vocab}"
    return odd_logprobs(segment.logprobs)


def _odd_kept(segment: Segment, vocab: int, most: int) -> str | None:
    """`most`: tokens of a kept set, where they were asked for; 0: they were not."""
    kept = segment.kept
    if not segment.sampled or not most:
        return "kept sets that nobody asked for" if kept is not None else None
    if kept is None:
        return "tokens without the sets that they were drawn from"
    if (why := kept.problem(segment.tokens, vocab, most)) is not None:
        return why
    return "a token without the set that it was drawn from" if not all(kept.sizes) else None


def _odd_routes(answered: Answered, shape: RouteShape | None) -> str | None:
    """`shape`: of the routes that were asked for."""
    for number, completion in enumerate(answered.completions):
        told = [(len(each.tokens), each.routes) for each in completion.segments]
        if shape is None and (completion.prompt_routes or any(own for _, own in told)):
            return "routes that nobody asked for"
        if shape is not None:
            # The prompt's are of the first completion alone.
            told.append(
                (0 if number else len(answered.prompt_tokens) - 1, completion.prompt_routes)
            )
            for tokens, own in told:
                if (why := problem(own, tokens, shape)) is not None:
                    return why
    return None


def odd_logprobs(values: Sequence[float]) -> str | None:
    """Why these are none of drawn or given tokens."""
    for value in values:
        if not _LOWEST <= value <= _ROUNDING:  # so is what is no number
            return f"a log-probability of {value}"
    return None


def _either(versions: Sequence[int]) -> str:
    return str(versions[0]) if len(versions) == 1 else f"{versions[0]} to {versions[-1]}"


def doubt(
    loaded: Loaded, target: Target, before: Target | None, canary: Canary, limit: float
) -> str | None:
    """Why a worker that says it loaded `target` does not serve it; None when all fits.

    `before` is what the worker proved last, and a stale engine would still be serving; `limit`
    the mean k3 beyond which two scores of the same tokens contradict each other. Where those of the
    text do, the numbers are off, whatever is served, and a restart mends nothing: no doubt then.
    """
    number = target.version.number
    if loaded.number != number:
        return f"it loaded version {loaded.number} instead of {number}"
    if loaded.digest not in (None, target.version.digest):
        return f"the weights it holds are not those of version {number}"
    drawn = len(loaded.decode)
    if (
        len(loaded.text) != len(target.text)
        or drawn != len(loaded.prefill)
        or not len(canary.prompts) <= drawn <= len(canary.prompts) * canary.tokens
    ):
        return "it scored another canary than it was given"
    if odd := odd_logprobs([*loaded.text, *loaded.decode, *loaded.prefill]):
        return f"its canary has {odd}"
    if before is not None and _closer(loaded.text, before.text, target.text):
        return f"it still serves version {before.version.number} instead of {number}"
    apart = mismatch(loaded.prefill, loaded.decode).k3
    if apart > limit >= mismatch(target.text, loaded.text).k3:
        return f"decode and prefill disagree at version {number} (k3 {apart:.2g} > {limit:g})"
    return None


def _closer(found: Sequence[float], old: Sequence[float], new: Sequence[float]) -> bool:
    """Whether `found` is twice as close to `old` as to `new`.

    What is no larger than the engine's own rounding cannot be told apart, and does no harm.
    """

    def distance(other: Sequence[float]) -> float:
        return math.fsum(abs(a - b) for a, b in zip(found, other, strict=True))

    return 2 * distance(old) < distance(new)
