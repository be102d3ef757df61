"""A session: an episode's recorded use of the endpoint.

    asked ── begin ──> Draft.prompt ──> replicas ── Piece ──> Draft.take
                          │                                   Draft.answered ──> the record
                          └─ recorded ids and what follows them (bridge.py), or a prompt of its own

    session = sessions.create(owner="environment")
    draft = session.begin(Asked(messages, render, encode, settings))
    …  draw from draft.prompt, giving every piece to draft.take
    draft.answered(0, {"content": "42"}, "42")
    samples = session.branches()

Clients send whole conversations, as they do to any endpoint; which recorded answers are in them is
found by what was answered (matching.py).
"""

import threading
import time
from array import array
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import Any

from interlock.errors import ConfigError
from interlock.models.chat import Messages
from interlock.records.rl import Completion
from interlock.records.serving import Piece
from interlock.serve.sessions import matching
from interlock.serve.sessions.bridge import Asked, Bridge, Given
from interlock.serve.sessions.record import (
    Branch,
    DrawnChoice,
    RecordedAnswer,
    Turn,
    TurnOrigin,
    TurnTree,
)

TOKEN_BYTES = 20  # of memory, with its log-probability and what Python puts around them


class PastThinking(StrEnum):
    """What becomes of thinking that the template leaves out of earlier turns."""

    TEMPLATE = "template"  # as it says: the turn begins a branch without it
    KEEP = "keep"  # it stays in the context, and one sample holds the whole episode


@dataclass(frozen=True)
class SessionTerms:
    """What a session was made with."""

    seed: int = 0
    most_turns: int = 1_000
    most_tokens: int = 1 << 20  # recorded in all, given and sampled
    past_thinking: PastThinking = PastThinking.TEMPLATE
    metadata: dict[str, Any] = field(default_factory=dict)


class RecordedSession:
    """Its record, and the requests that are being answered. For any thread."""

    def __init__(self, id: str, owner: str, terms: SessionTerms, bridge: Bridge) -> None:
        self.id = id
        self.owner = owner
        self.terms = terms
        self.record = TurnTree()
        self.created = int(time.time())
        self.open = 0  # requests that are being answered
        self._bridge = bridge
        self._lock = threading.Lock()
        self._begun = 0
        self._ends: dict[
            bytes, list[RecordedAnswer]
        ] = {}  # by the messages up to it, itself included
        self._settings: dict[int, bytes] = {}  # of every turn
        self._roots: set[bytes] = set()

    def begin(self, asked: Asked) -> "Draft":
        """Find what it goes on from, and what its prompt is.

        Raises ConfigError when the session has had its turns or tokens, ModelError when the
        template fails on the messages.
        """
        settings = blake2b(matching.canonical(asked.settings), digest_size=16).digest()
        told = list(matching.fingerprints(asked.messages))
        with self._lock:
            self._check()
            path, origin = self._found(asked.messages, told, settings)
            number = self._begun
            self._begun += 1
            self.open += 1
        try:
            turn, given = self._turn(number, asked, path, origin)
        except BaseException:
            with self._lock:
                self.open -= 1
            raise
        return Draft(self, turn, given.text, told[-1], settings)

    def text(self, tokens: list[int], message: dict[str, Any]) -> str:
        """Of an answer, as it is recorded."""
        return self._bridge.text(tokens, message)

    def branches(self) -> list[Branch]:
        with self._lock:
            return self.record.branches()

    def snapshot(self) -> tuple[TurnTree, list[Branch]]:
        """The tree as it stands, and its branches."""
        with self._lock:
            return self.record.copied(), self.record.branches()

    def completions(self) -> list[Completion]:
        """What every branch's prompt was continued with, given and sampled segments in turn."""
        return [branch.completion for branch in self.branches()]

    @property
    def held_bytes(self) -> int:
        """An estimate of what the record holds in memory."""
        return TOKEN_BYTES * self.record.tokens

    def keep(self, draft: "Draft", answer: RecordedAnswer) -> None:
        """An answer of a draft is whole."""
        with self._lock:
            if not answer.turn.answers:
                self._settle(answer.turn, draft.told + draft.settings)
            self.record.add(answer)
            self._settings[answer.turn.number] = draft.settings
            end = matching.answered(draft.told, answer.message)
            self._ends.setdefault(end, []).append(answer)

    def leave(self, broken: int) -> None:
        """A draft is over, and so many of its choices were never ended."""
        with self._lock:
            self.open -= 1
            self.record.broken += broken

    def _check(self) -> None:
        terms = self.terms
        if self._begun >= terms.most_turns:
            raise ConfigError(
                f"session {self.id} has had its {terms.most_turns} turns; begin another, or make "
                "it with a higher limits.turns"
            )
        if self.record.tokens >= terms.most_tokens:
            raise ConfigError(
                f"session {self.id} has recorded {self.record.tokens} tokens, and may hold "
                f"{terms.most_tokens}; begin another, or make it with a higher limits.tokens"
            )

    def _found(
        self, messages: Messages, told: list[bytes], settings: bytes
    ) -> tuple[dict[int, RecordedAnswer], TurnOrigin]:
        """The recorded answers among the messages, by index, and how the turn stands to them."""
        if not self.record.turns:
            return {}, TurnOrigin.FIRST
        if told[-1] + settings in self._roots:
            return {}, TurnOrigin.AGAIN
        changed = False
        for end in range(len(messages) - 2, -1, -1):
            for answer in self._likely(self._ends.get(told[end], []), messages[end]):
                path = _path(messages, answer)
                if path is None:
                    continue
                if self._settings[answer.turn.number] != settings:
                    changed = True
                    continue
                spoken = any(turn.get("role") == "assistant" for turn in messages[end + 1 :])
                known = TurnOrigin.AGAIN if answer.followers else TurnOrigin.EXTENDS
                return path, TurnOrigin.MESSAGES if spoken else known
        return {}, TurnOrigin.SETTINGS if changed else TurnOrigin.MESSAGES

    def _settle(self, turn: Turn, asked: bytes) -> None:
        """Say where a turn stands now that it is kept: others may have been, since it was begun."""
        if turn.parent is not None:
            if turn.parent.followers and turn.origin is TurnOrigin.EXTENDS:
                turn.origin = TurnOrigin.AGAIN
            return
        if asked in self._roots:
            turn.origin = TurnOrigin.AGAIN
        elif turn.origin in (TurnOrigin.FIRST, TurnOrigin.AGAIN):
            turn.origin = TurnOrigin.MESSAGES if self.record.turns else TurnOrigin.FIRST
        self._roots.add(asked)

    @staticmethod
    def _likely(answers: list[RecordedAnswer], message: dict[str, Any]) -> list[RecordedAnswer]:
        """Those that the message may be, the likeliest first: the latest of equals."""
        ranked = [(matching.likeness(message, answer.message), answer) for answer in answers]
        likely = [(rank, i, a) for i, (rank, a) in enumerate(ranked) if rank is not None]
        return [answer for _, _, answer in sorted(likely, key=lambda each: each[:2], reverse=True)]

    def _turn(
        self, number: int, asked: Asked, path: dict[int, RecordedAnswer], origin: TurnOrigin
    ) -> tuple[Turn, Given]:
        parent = path[max(path)] if path else None
        given = None
        if path:
            keep = self.terms.past_thinking is PastThinking.KEEP
            follows = self._bridge.follows(asked, path, keep)
            if isinstance(follows, TurnOrigin):
                parent, origin = None, follows
            else:
                given = follows
        given = given or self._bridge.prompt(asked)
        return Turn(number, len(asked.messages), parent, array("i", given.tokens), origin), given


class Draft:
    """A request of a session while it is answered. `close` it, whatever became of it."""

    def __init__(
        self, session: RecordedSession, turn: Turn, text: str, told: bytes, settings: bytes
    ) -> None:
        self.prompt = turn.prompt
        self.text = text  # of what is given: the end of the prompt's
        self.told, self.settings = told, settings  # fingerprints
        self._session = session
        self._turn = turn
        self._drawn: dict[int, DrawnChoice] = {}
        self._closed = False

    @property
    def number(self) -> int:
        """Of the turn, in the session."""
        return self._turn.number

    @property
    def origin(self) -> TurnOrigin:
        return self._turn.origin

    @property
    def seed(self) -> int:
        """For a request that names none: of the session's seed and the number of the turn."""
        told = f"{self._session.terms.seed}/{self._turn.number}".encode()
        return int.from_bytes(blake2b(told, digest_size=4).digest(), "big") >> 1

    def take(self, piece: Piece) -> None:
        """What was drawn of a choice, in order."""
        self._drawn.setdefault(piece.number, DrawnChoice()).take(piece)

    def answered(self, number: int, message: dict[str, Any], text: str) -> None:
        """A choice is whole, and this is what its client is told: call it before telling.

        Args:
            message: its content, reasoning and tool_calls, as they are sent.
            text: of its content.
        """
        drawn = self._drawn.pop(number)
        tokens = [token for run in drawn.runs for token in run.tokens]
        whole = self._session.text(tokens, message | {"content": text})
        assert drawn.finish is not None, "every piece is taken before the choice is answered"
        self._turn.cached = max(self._turn.cached, drawn.cached)
        self._session.keep(
            self,
            RecordedAnswer(
                self._turn, number, message, whole, drawn.finish, drawn.runs, drawn.replicas
            ),
        )

    def close(self) -> None:
        """Nothing more comes. Choices that are not whole are counted and forgotten."""
        if not self._closed:
            self._closed = True
            self._session.leave(len(self._drawn))


def _path(messages: Messages, answer: RecordedAnswer) -> dict[int, RecordedAnswer] | None:
    """The answer and those before it, by the index of their messages; None: their thinking is not
    what was sent.
    """
    path = {each.turn.length: each for each in [*answer.turn.path, answer]}
    alike = all(
        matching.likeness(messages[i], each.message) is not None for i, each in path.items()
    )
    return path if alike else None
