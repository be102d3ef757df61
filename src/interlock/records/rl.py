"""What flows between rooms and processes: small frozen records, as msgpack bytes, never pickled.

    Task ── Problem ──> Generator ── Group(Completion × G) ──> verifier ── rewards ──> learner
                             ^                                                       │
                             └───────────────────── WeightVersion ───────────────────┘

Token ids are plain lists of int. Log-probabilities are natural logs of the distribution that was
really sampled from (after temperature, top-k and top-p), one per completion token.
"""

from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta


class Problem(msgspec.Struct, frozen=True):
    """One prompt with what its verifier needs to judge an answer."""

    id: str  # stable over runs: equal ids mean the same problem; seeds the sampling noise
    messages: list[dict[str, str]]  # chat turns, {"role": …, "content": …}
    answer: str  # the reference answer, in whatever form the task's verifier reads
    meta: dict[str, Any] = {}


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How completions are drawn. temperature 0 is greedy; top_k 0 and top_p 1.0 are off."""

    temperature: Annotated[float, Meta(ge=0, le=10)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0)] = 0
    max_tokens: Annotated[int, Meta(gt=0)] = 64
    stop: list[str] = []


class FinishReason(StrEnum):
    STOP = "stop"  # the end-of-turn token or a stop string
    LENGTH = "length"  # max_tokens reached


class Completion(msgspec.Struct, frozen=True):
    """One sampled answer. `tokens` includes the end-of-turn token when that ended it."""

    tokens: list[int]
    logprobs: list[float]
    finish: FinishReason
    text: str  # decoded, without special tokens
    weight_version: int


class Group(msgspec.Struct, frozen=True):
    """The G completions of one problem."""

    problem: Problem
    prompt_tokens: list[int]
    completions: list[Completion]
    worker: str


class Verdict(msgspec.Struct, frozen=True):
    """What a verifier said of one completion; `error` when it crashed, hung or misbehaved."""

    reward: float
    error: str | None = None


class ScoredGroup(msgspec.Struct, frozen=True):
    """A group with its verdicts, index by index: what the ledger keeps."""

    group: Group
    verdicts: list[Verdict]

    @property
    def rewards(self) -> list[float]:
        return [verdict.reward for verdict in self.verdicts]


class WeightVersion(msgspec.Struct, frozen=True):
    """A set of named tensors, identified by number and content digest."""

    number: int
    digest: str  # sha256 over the names, dtypes, shapes and bits of the published tensors
