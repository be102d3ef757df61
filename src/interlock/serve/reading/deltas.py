"""What is told of an answer as it comes, and the whole that it adds up to."""

from enum import StrEnum
from typing import NamedTuple


class DeltaKind(StrEnum):
    """What a delta adds to."""

    REASONING = "reasoning"
    CONTENT = "content"
    CALL = "call"  # one begins: id, name
    ARGUMENTS = "arguments"  # more of its arguments' JSON
    # A call that was begun is none: `raw` is all of it. `text` is what of that was not told yet,
    # and is content for whoever was told the rest.
    BROKEN = "broken"
    RETRACTED = "retracted"  # what was told as content so far was reasoning


class Delta(NamedTuple):
    """What an answer grew by."""

    kind: DeltaKind
    text: str = ""
    number: int = 0  # of the call
    id: str = ""
    name: str = ""
    raw: str = ""


class ToolCall(NamedTuple):
    """A call that the answer makes."""

    id: str
    name: str
    arguments: str  # JSON


class ChatAnswer(NamedTuple):
    """None: there is none of it."""

    content: str | None
    reasoning: str | None
    calls: list[ToolCall]
    reasoning_tokens: int = 0


class Whole:
    """Adds deltas up for whoever waits for all of them: a broken call is content here, whole."""

    def __init__(self) -> None:
        self._reasoning, self._content = "", ""
        self._calls: dict[int, ToolCall] = {}

    @property
    def calls(self) -> int:
        """Those that are no content after all left out."""
        return len(self._calls)

    def push(self, delta: Delta) -> None:
        """Take what was added."""
        match delta.kind:
            case DeltaKind.REASONING:
                self._reasoning += delta.text
            case DeltaKind.CONTENT:
                self._content += delta.text
            case DeltaKind.CALL:
                self._calls[delta.number] = ToolCall(delta.id, delta.name, "")
            case DeltaKind.ARGUMENTS:
                call = self._calls[delta.number]
                self._calls[delta.number] = call._replace(arguments=call.arguments + delta.text)
            case DeltaKind.BROKEN:
                self._calls.pop(delta.number, None)
                self._content += delta.raw
            case DeltaKind.RETRACTED:
                self._reasoning += self._content.strip("\n")
                self._content = ""

    def answer(self, reasoning_tokens: int = 0) -> ChatAnswer:
        """All that was added, as one answer."""
        calls = [call for _, call in sorted(self._calls.items())]
        reasoning, content = self._reasoning or None, self._content or None
        if reasoning is None and not calls:
            content = self._content
        return ChatAnswer(content, reasoning, calls, reasoning_tokens)
