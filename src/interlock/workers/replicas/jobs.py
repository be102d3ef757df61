"""One generation on its way, and the parts of it that replicas are given.

    Generation ──> LiveGeneration ── one LivePart, of all choices ──> a replica ──> tokens
                    ^                                                    │ it is lost
                    └── split: what has no token together, others each by itself ──> another

A choice that has tokens goes on behind them, under the same weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from interlock.records.rl import Segment, WeightVersion
from interlock.records.serving import Generation
from interlock.workers.replicas.base import Take, Ticket


@dataclass(eq=False)
class LiveChoice:
    """What was drawn of one answer, whoever did."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False


@dataclass(eq=False)
class LiveGeneration:
    """`weights` are those that its first token was drawn from; None: any will do."""

    ticket: Ticket
    generation: Generation
    take: Take
    deadline: float
    weights: WeightVersion | None = None
    moved: int = 0  # times that it went on elsewhere
    forgotten: bool = False  # whoever asked is gone
    scored: bool = False  # its prompt's log-probabilities were told, or are not wanted
    choices: dict[int, LiveChoice] = field(default_factory=dict)
    parts: list["LivePart"] = field(default_factory=list)  # that are not done

    def __post_init__(self) -> None:
        first, count = self.generation.first, self.generation.choices
        self.choices = {number: LiveChoice() for number in range(first, first + count)}
        self.scored = self.generation.prompt_logprobs is None
        self.parts = [LivePart(self, list(self.choices))]

    @property
    def done(self) -> bool:
        """Whether every choice has its end."""
        return all(choice.ended for choice in self.choices.values())


@dataclass(eq=False)
class LivePart:
    """Choices of one job that are given to a replica together; several only without tokens."""

    job: LiveGeneration
    numbers: list[int]  # one behind the other
    strikes: int = 0  # replicas that failed on it before it drew anything
    reason: str = ""  # of the last failure
    avoid: set[str] = field(default_factory=set)  # replicas that failed on it
    unable: set[str] = field(default_factory=set)  # engines that say they can never serve it
    origin: tuple[str, ...] = ()  # what kind of replica drew what it has
    advanced: bool = False  # something was drawn since it was given

    def __contains__(self, number: int) -> bool:
        return self.numbers[0] <= number <= self.numbers[-1]

    @property
    def left(self) -> list[int]:
        """Numbers of its choices that have no end yet."""
        return [number for number in self.numbers if not self.job.choices[number].ended]

    @property
    def generation(self) -> Generation:
        """What a replica is asked."""
        asked = self.job.generation
        first, *_ = self.numbers
        choice, drawn = self.job.choices[first], asked.drawn
        if choice.tokens:
            weights = self.job.weights
            assert weights is not None
            drawn = [*drawn, Segment(choice.tokens, choice.logprobs, weights.number)]
        return msgspec.structs.replace(
            asked,
            first=first,
            choices=len(self.numbers),
            drawn=drawn,
            prompt_logprobs=None if self.job.scored else asked.prompt_logprobs,
        )

    @property
    def prompt_tokens(self) -> int:
        """To be read before its next token is drawn."""
        asked = self.job.generation
        begun = sum(len(segment.tokens) for segment in asked.drawn)
        return len(asked.prompt) + begun + len(self.job.choices[self.numbers[0]].tokens)

    @property
    def room(self) -> int:
        """Tokens that its choices may yet draw."""
        asked = self.job.generation
        most = asked.sampling.max_tokens - sum(len(segment.tokens) for segment in asked.drawn)
        return sum(max(0, most - len(self.job.choices[number].tokens)) for number in self.left)

    @property
    def suspect(self) -> bool:
        """It is given to nobody who would lose much with it."""
        return self.strikes > 1

    def split(self) -> list["LivePart"]:
        """What is left of it, to be given to others."""
        made: list[LivePart] = []
        for number in self.left:
            begun = bool(self.job.choices[number].tokens or self.job.generation.drawn)
            last = made[-1] if made else None
            together = last and not begun and last.numbers[-1] == number - 1
            if last and together and not self.job.choices[last.numbers[0]].tokens:
                last.numbers.append(number)
            else:
                part = LivePart(self.job, [number], self.strikes, self.reason, set(self.avoid))
                part.origin, part.unable = self.origin, set(self.unable)
                made.append(part)
        return made


def sequences(parts: Sequence[LivePart]) -> int:
    """How many are open in some parts."""
    return sum(len(part.left) for part in parts)
