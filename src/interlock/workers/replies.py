"""Whether to believe a worker: plain functions over what it said, no torch.

Finished ──refusal──> why the answer is garbage, or None
Loaded   ──doubt────> why it does not serve the weights it should, or None
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from interlock.mismatch import mismatch
from interlock.records.rl import Group, WeightVersion
from interlock.workers.generators import Work
from interlock.workers.protocol import Canary, Loaded

_ROUNDING = 1e-3  # a logprob may be this far above 0
_LOWEST = -1e4  # no token that is drawn has a lower one, and sums of these stay finite
_SHOWN = 80  # characters of a bad value in a message


class Target(NamedTuple):
    """The weight version to serve, and what the learner says of the canary's text under it."""

    version: WeightVersion
    text: list[float]


def refusal(
    groups: Sequence[Group],
    work: Work,
    prompts: Sequence[list[int]],
    version: int,
    worker: str,
    vocab: int,
) -> str | None:
    """Why `groups` cannot be the answer of `worker` to `work` at `version`; None when they can.

    `prompts`: the learner's own tokens of each problem.
    """
    if len(groups) != len(work.problems):
        return f"{len(groups)} groups for {len(work.problems)} problems"
    for group, problem, prompt in zip(groups, work.problems, prompts, strict=True):
        if found := _odd_group(group, prompt, work, version, worker, vocab, problem.id):
            return found[: 4 * _SHOWN]
    return None


def _odd_group(
    group: Group, prompt: list[int], work: Work, version: int, worker: str, vocab: int, asked: str
) -> str | None:
    at = f"problem {asked[:_SHOWN]!r}"
    if group.problem.id != asked or group.worker != worker:
        return f"{at}: an answer to {group.problem.id[:_SHOWN]!r} by {group.worker[:_SHOWN]!r}"
    if group.prompt_tokens != prompt:
        return f"{at}: other prompt tokens than the learner's; the tokenizers differ"
    if len(group.completions) != work.completions:
        return f"{at}: {len(group.completions)} completions instead of {work.completions}"
    for answer in group.completions:
        count = len(answer.tokens)
        if answer.weight_version != version:
            return f"{at}: weights of version {answer.weight_version} instead of {version}"
        if not 0 < count <= work.sampling.max_tokens:
            return f"{at}: a completion of {count} tokens, not 1 to {work.sampling.max_tokens}"
        if len(answer.logprobs) != count:
            return f"{at}: {len(answer.logprobs)} logprobs for {count} tokens"
        if min(answer.tokens) < 0 or max(answer.tokens) >= vocab:
            return f"{at}: a token id outside the vocabulary of {vocab}"
        for value in answer.logprobs:
            if not _LOWEST <= value <= _ROUNDING:
                return f"{at}: a log-probability of {value}"
    return None


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
    for value in (*loaded.text, *loaded.decode, *loaded.prefill):
        if not _LOWEST <= value <= _ROUNDING:
            return f"its canary has a log-probability of {value}"
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
