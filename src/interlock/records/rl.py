"""What flows between rooms and processes: small frozen records, as msgpack bytes, never pickled.

    Task ── Problem ──> Generator ── Group(Completion × G) ──> verifier ── rewards ──> learner
                             ^                                                       │
                             └───────────────────── WeightVersion ───────────────────┘

Token ids are plain lists of int. Log-probabilities are natural logs of the distribution that was
really sampled from (after temperature, min-p, top-k and top-p), one per sampled token.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from math import nan
from statistics import fmean, mean
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from interlock.records.replay import MOST_KEPT, KeptTokens, joined


class Problem(msgspec.Struct, frozen=True):
    """One prompt with what its verifier needs to judge an answer."""

    id: str  # stable over runs: equal ids mean the same problem; seeds the sampling noise
    messages: list[dict[str, str]]  # chat turns, {"role": …, "content": …}
    answer: str  # the reference answer, in whatever form the task's verifier reads
    meta: dict[str, Any] = {}
    task: str = ""  # what its stage calls the task that it is of
    template: dict[str, Any] = {}  # what the chat template is told: {"enable_thinking": False}


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How completions are drawn. temperature 0 is greedy; top_k 0, top_p 1.0 and min_p 0 are off.

    min_p: a token is left out whose probability is less than this share of the likeliest one's.
    """

    temperature: Annotated[float, Meta(ge=0, le=10)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=10**9)] = 0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    max_tokens: Annotated[int, Meta(gt=0, le=10**9)] = 64
    stop: list[Annotated[str, Meta(min_length=1)]] = []
    # Tokens of thinking, after which a completion is given the end of it; None: as many as it likes
    thinking_budget: Annotated[int, Meta(ge=0, le=10**9)] | None = None
    thinking_words: Annotated[str, Meta(max_length=1000)] = ""  # what that end says before its mark

    @property
    def narrows(self) -> bool:
        """Whether tokens are left out of what is drawn from."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0 or self.min_p > 0)

    @property
    def most_kept(self) -> int:
        """Tokens that are drawn from, where kept sets are told (replay.py); 0: nothing is left out.

        An engine of others may keep more, of equals beside the last one.
        """
        return min(self.top_k or MOST_KEPT, MOST_KEPT) if self.narrows else 0

    @property
    def most_told(self) -> int:
        """The largest kept set that is taken from an engine."""
        return self.most_kept + MOST_KEPT if self.narrows else 0


class FinishReason(StrEnum):
    STOP = "stop"  # the end-of-turn token or a stop string
    LENGTH = "length"  # max_tokens reached
    BROKEN = "broken"  # the grammar that it keeps to came to its limits


class Segment(msgspec.Struct, frozen=True):
    """A stretch of tokens [n] that one weight version sampled, or that was given.

    Given is what the policy did not write: a tool's result, a user's turn, the end of a thinking
    that had used its budget. It is read, not learned.
    """

    tokens: list[int]
    logprobs: list[float] = []  # [n] of sampled tokens, as they were drawn; [] of given ones
    weight_version: int | None = None  # None: given
    kept: KeptTokens | None = None  # what each of the tokens was drawn from, where that is told
    # Where that is told: the route (replay.py) of the token before each, in the very pass that
    # drew it, so by the weights that the segment names. b"": it is not.
    routes: bytes = b""

    @property
    def sampled(self) -> bool:
        return self.weight_version is not None


class Completion(msgspec.Struct, frozen=True):
    """One answer, in the order it came about: the segments that were sampled, and those given.

    An answer in one go is one segment; one that new weights were loaded under is several. The
    token that ended a turn is in its segment.
    """

    segments: list[Segment]  # at least one of them sampled
    finish: FinishReason
    text: str  # decoded, without special tokens and stop strings
    # Where routes are told, those of the prompt but for its last token: of a group's first
    # completion alone, since all read the same.
    prompt_routes: bytes = b""

    @classmethod
    def sampled(
        cls,
        tokens: list[int],
        logprobs: list[float],
        finish: FinishReason,
        text: str,
        weight_version: int,
    ) -> "Completion":
        """An answer of one segment: tokens [n] with their logprobs [n], all of one version."""
        return cls([Segment(tokens, logprobs, weight_version)], finish, text)

    @property
    def tokens(self) -> list[int]:
        """[N], of all segments."""
        if len(self.segments) == 1:
            return self.segments[0].tokens
        return [token for segment in self.segments for token in segment.tokens]

    @property
    def logprobs(self) -> list[float]:
        """[N]; 0.0 for a token that was given."""
        if len(self.segments) == 1:
            return self.segments[0].logprobs
        return [
            value
            for segment in self.segments
            for value in (segment.logprobs if segment.sampled else [0.0] * len(segment.tokens))
        ]

    @property
    def kept(self) -> KeptTokens | None:
        """Of all N tokens; None: of none of them it is told."""
        return joined([(len(segment.tokens), segment.kept) for segment in self.segments])

    @property
    def routes(self) -> bytes:
        """Of the token before each of all N; b"": of some it is not told."""
        parts = [segment.routes for segment in self.segments]
        return b"".join(parts) if all(parts) else b""

    @property
    def mask(self) -> list[bool]:
        """[N]; whether the policy sampled the token, and may learn from it."""
        return [segment.sampled for segment in self.segments for _ in segment.tokens]

    @property
    def weight_versions(self) -> list[int]:
        """Those that sampled it, segment by segment."""
        return [s.weight_version for s in self.segments if s.weight_version is not None]

    @property
    def weight_version(self) -> int:
        """The oldest that sampled any of it: what staleness is counted from."""
        return min(self.weight_versions)


class Group(msgspec.Struct, frozen=True):
    """The G completions of one problem."""

    problem: Problem
    prompt_tokens: list[int]
    completions: list[Completion]
    worker: str
    opening: str = ""  # what the prompt's end says for the assistant already: "<think>\n"

    @property
    def weight_version(self) -> int:
        """The oldest that sampled any of it."""
        return min(completion.weight_version for completion in self.completions)

    @property
    def turns(self) -> list[str]:
        """What the assistant says in each completion, as verifiers read it."""
        return [self.opening + completion.text for completion in self.completions]


class Attempt(NamedTuple):
    """One completion as it is judged. The figures are None where only the text is known."""

    problem: Problem
    text: str  # of the whole turn, with what the prompt's end says for the assistant already
    tokens: int | None = None  # sampled
    finish: FinishReason | None = None
    max_tokens: int | None = None  # that it might have had
    step: int | None = None  # of the stage, that learns from it; None: nothing does


class VerdictStatus(StrEnum):
    """How it went to judge a completion."""

    JUDGED = "judged"
    TIMEOUT = "timeout"  # no verdict in time
    CRASHED = "crashed"  # the verifier's process ended
    ERROR = "error"  # the verifier raised, or returned what is no verdict
    # What judges did not start, or could not be reached: nobody's fault.
    UNAVAILABLE = "unavailable"
    # It had no processor. Of one that was judged alone: others than answers held them.
    STARVED = "starved"

    @property
    def judged(self) -> bool:
        return self is VerdictStatus.JUDGED

    @property
    def counts(self) -> bool:
        """Whether the answer may have caused it; else it says nothing of the policy."""
        return self not in (VerdictStatus.UNAVAILABLE, VerdictStatus.STARVED)


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of a completion's worth once its verifier was asked.

    Reward and correctness are two things: a reward teaches, and may be any mix of parts; whether
    the answer is right is what accuracy counts. Example: Verdict(0.7, correct=True,
    parts={"answer": 1.0, "length": -0.3}).
    """

    reward: float  # finite; 0 when it was not judged
    correct: bool | None = None  # that the answer is right; None: the verifier does not say
    parts: dict[str, float] = {}  # what the reward is made of, by name
    status: VerdictStatus = VerdictStatus.JUDGED
    cause: str | None = None  # one line, why it was not judged

    @classmethod
    def failed(cls, status: VerdictStatus, cause: str) -> "Verdict":
        return cls(0.0, status=status, cause=cause)

    @property
    def right(self) -> bool:
        """Whether the answer counts as right: as the verifier says, else from a reward of 1 on."""
        return self.reward >= 1 if self.correct is None else self.correct


class ScoredGroup(msgspec.Struct, frozen=True):
    """A group with its verdicts, index by index: what the ledger keeps."""

    group: Group
    verdicts: list[Verdict]

    @property
    def rewards(self) -> list[float]:
        return [verdict.reward for verdict in self.verdicts]

    @property
    def right(self) -> list[bool]:
        return [verdict.right for verdict in self.verdicts]

    @property
    def counted(self) -> list[bool]:
        """Which completions say something of the policy; the others are in no statistic."""
        return [verdict.status.counts for verdict in self.verdicts]


class DrawnProblems(msgspec.Struct, frozen=True):
    """The problems of a stretch of a stage's stream, drawn by pass rate: what the ledger keeps."""

    known: int  # it was drawn by what the groups of the steps up to this one had shown
    problems: list[Problem]  # fewer than a step has, where a task has ended
    retired: list[str] = []  # ids of problems that none is drawn of since the draw before
    ended: list[str] = []  # tasks with fewer problems left than a step may want of them


class Score(NamedTuple):
    """What the completions of some groups are worth: two figures that need not go together."""

    accuracy: float  # share that is right (Verdict.right)
    reward: float  # mean; any finite number
    completions: int  # that count
    tasks: Mapping[str, "Score"] = MappingProxyType({})  # of each, where there are several
    pass_at: Mapping[int, float] = MappingProxyType({})  # by k, where it was asked for
    problems: int | None = None  # that they answer, several times each; None: once each

    @classmethod
    def of(cls, scored: Sequence[ScoredGroup]) -> "Score":
        """Of the completions that count (VerdictStatus.counts); not a number where none does."""
        verdicts = [each for group in scored for each in group.verdicts if each.status.counts]
        if not verdicts:
            return cls(nan, nan, 0, _by_task(scored))
        # `mean` is exact: the sum that fmean takes overflows near the largest float.
        rewards = mean(verdict.reward for verdict in verdicts)
        accuracy = fmean(verdict.right for verdict in verdicts)
        return cls(accuracy, rewards, len(verdicts), _by_task(scored))


def of_tasks(scored: Sequence[ScoredGroup]) -> dict[str, list[ScoredGroup]]:
    """The groups of each task, in the order in which they first come."""
    found: dict[str, list[ScoredGroup]] = {}
    for each in scored:
        found.setdefault(each.group.problem.task, []).append(each)
    return found


def _by_task(scored: Sequence[ScoredGroup]) -> dict[str, Score]:
    tasks = of_tasks(scored)
    return {} if len(tasks) < 2 else {name: Score.of(own) for name, own in tasks.items()}


class WeightVersion(msgspec.Struct, frozen=True):
    """A set of named tensors, identified by number and content digest."""

    number: int
    digest: str  # sha256 over the names, dtypes, shapes and bits of the published tensors
