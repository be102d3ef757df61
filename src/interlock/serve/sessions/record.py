"""What a session keeps: a tree of turns, exact to the token.

    Turn(given) ── Answer(sampled) ── Turn(given) ── Answer(sampled)      a branch: root to leaf
                └─ Answer(sampled)  n > 1
    Turn(given) ── …                                                      what extended nothing

A turn's prompt is all that stands on the way from its root: what was given and what was sampled,
never a tokenisation of the text of it. `TurnTree.branches` makes samples for a learner of the tree,
in which every sampled token is sampled once: what a branch shares with one before it is its prompt.
"""

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from interlock.records.rl import Completion, FinishReason, Segment
from interlock.records.serving import Piece


class TurnOrigin(StrEnum):
    """Where a turn stands in the tree, and why."""

    FIRST = "first"  # of the session
    EXTENDS = "extends"  # goes on behind a recorded answer
    AGAIN = "again"  # behind a turn that was gone on from before: a second try
    MESSAGES = "messages"  # turns that are recorded were edited or left out, or are others
    SETTINGS = "settings"  # tools, or settings of the template, are others
    THINKING = "thinking"  # the template leaves out thinking that was recorded
    TEMPLATE = "template"  # nothing in the template's text says where the answer ends

    @property
    def branches(self) -> bool:
        return self not in (TurnOrigin.FIRST, TurnOrigin.EXTENDS)


class _Run(NamedTuple):
    """Tokens drawn one after another from the weights of one version."""

    version: int
    tokens: "array[int]"
    logprobs: "array[float]"


@dataclass(eq=False)
class RecordedAnswer:
    """One choice: what was drawn, and what the client was told of it."""

    turn: "Turn"
    number: int  # of the choice
    message: dict[str, Any]  # content, reasoning, tool_calls
    text: str  # of all that was drawn, thinking and calls included, without a stop string
    finish: FinishReason
    runs: list[_Run]
    replicas: list[str]
    followers: list["Turn"] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [token for run in self.runs for token in run.tokens]

    @property
    def count(self) -> int:
        """Of its tokens."""
        return sum(len(run.tokens) for run in self.runs)

    @property
    def segments(self) -> list[Segment]:
        return [Segment(r.tokens.tolist(), r.logprobs.tolist(), r.version) for r in self.runs]


@dataclass(eq=False)
class Turn:
    """One request: what was given since the answer it follows, all of its prompt for a root."""

    number: int  # in the session, from 0
    length: int  # messages of its conversation: the index of the one that answers
    parent: RecordedAnswer | None
    given: "array[int]"
    origin: TurnOrigin
    cached: int = 0  # prompt tokens that a replica had in its prefix cache
    answers: list[RecordedAnswer] = field(default_factory=list)

    @property
    def path(self) -> list[RecordedAnswer]:
        """The answers before it, from the root on."""
        found = []
        answer = self.parent
        while answer is not None:
            found.append(answer)
            answer = answer.turn.parent
        return found[::-1]

    @property
    def prompt_count(self) -> int:
        """Of the prompt's tokens."""
        before = sum(len(answer.turn.given) + answer.count for answer in self.path)
        return before + len(self.given)

    @property
    def prompt(self) -> list[int]:
        ids: list[int] = []
        for answer in self.path:
            ids += answer.turn.given
            ids += answer.tokens
        return [*ids, *self.given]


class DrawnChoice:
    """What comes of one choice, piece by piece."""

    def __init__(self) -> None:
        self.runs: list[_Run] = []
        self.replicas: list[str] = []
        self.cached = 0
        self.finish: FinishReason | None = None

    def take(self, piece: Piece) -> None:
        if not self.runs or self.runs[-1].version != piece.version:
            self.runs.append(_Run(piece.version, array("i"), array("d")))
        self.runs[-1].tokens.extend(piece.tokens)
        self.runs[-1].logprobs.extend(piece.logprobs)
        if piece.replica and piece.replica not in self.replicas:
            self.replicas.append(piece.replica)
        self.cached = max(self.cached, piece.cached)
        self.finish = piece.finish or self.finish


class Branch(NamedTuple):
    """One sample: the prompt, and what followed it. Its sampled tokens are in no other branch."""

    prompt_tokens: list[int]
    completion: Completion  # text and finish are those of its last answer
    turns: list[int]  # numbers of the turns whose answers it samples
    origin: TurnOrigin  # of the first of them


class TurnTree:
    """The tree. Not for several threads at once: the session has a lock."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []  # with an answer, in the order they were begun
        self.broken = 0  # choices that were begun and never ended
        self.tokens = 0  # all of those kept, given and sampled

    def add(self, answer: RecordedAnswer) -> None:
        """Keep an answer, and with the first its turn."""
        turn = answer.turn
        if not turn.answers:
            self.turns.append(turn)
            self.turns.sort(key=lambda each: each.number)
            self.tokens += len(turn.given)
            if turn.parent is not None:
                turn.parent.followers.append(turn)
        turn.answers.append(answer)
        turn.answers.sort(key=lambda each: each.number)
        self.tokens += answer.count

    def copied(self) -> "TurnTree":
        """As it is now, while others go on."""
        other = TurnTree()
        other.turns, other.broken, other.tokens = list(self.turns), self.broken, self.tokens
        return other

    @property
    def origins(self) -> dict[str, int]:
        """How many turns stand where, of those that are not simply the next."""
        return dict(Counter(turn.origin.value for turn in self.turns if turn.origin.branches))

    @property
    def leaves(self) -> Iterator[RecordedAnswer]:
        """Answers that nothing follows, the oldest first."""
        for turn in self.turns:
            yield from (answer for answer in turn.answers if not answer.followers)

    def branches(self) -> list[Branch]:
        """The samples: as many as there are leaves."""
        told: set[int] = set()  # ids of answers that are in a sample already
        found = []
        for leaf in self.leaves:
            path = [*leaf.turn.path, leaf]
            fresh = [answer for answer in path if id(answer) not in told]
            told |= {id(answer) for answer in fresh}
            found.append(_branch(fresh))
        return found


def _branch(answers: list[RecordedAnswer]) -> Branch:
    """Of answers that follow one another."""
    first, last = answers[0], answers[-1]
    segments = list(first.segments)
    for answer in answers[1:]:
        segments += [Segment(answer.turn.given.tolist()), *answer.segments]
    completion = Completion(segments, last.finish, last.text)
    numbers = [answer.turn.number for answer in answers]
    return Branch(first.turn.prompt, completion, numbers, first.turn.origin)
