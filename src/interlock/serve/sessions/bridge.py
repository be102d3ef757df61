"""The text that a chat template puts between a recorded answer and the next one.

    messages, the answer in them ──a mark in its place──> template ──> text
    text ──cut behind the mark, where the turn closes──> tokens that follow the recorded ones

Only what follows the answer is tokenised: what was recorded stays what it was, though its text may
tokenise otherwise, or be written otherwise by the template (arguments of tool calls, blanks). The
cut is at a special token, so the tokens of both sides are those of the whole text.

A template that leaves out thinking once a user speaks again does not show the recorded turn but
another; what it renders then extends nothing, unless the session keeps thinking.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from interlock.errors import ModelError, UserError
from interlock.models.chat import Messages
from interlock.models.tokenizer import Tokenizer
from interlock.serve.sessions.matching import content, reasoning
from interlock.serve.sessions.record import RecordedAnswer, TurnOrigin


@dataclass(frozen=True)
class Asked:
    """What a client asks to be answered.

    render: the text of a conversation with these tools and settings, up to where the assistant is
        to speak. Raises ConfigError or ModelError on messages that the template refuses.
    encode: the tokens of such a text, or of the rest of one.
    settings: what `render` has beside the messages; compared, not read.
    """

    messages: Messages
    render: Callable[[Messages], str]
    encode: Callable[[str], list[int]]
    settings: dict[str, Any] = field(default_factory=dict)


class Given(NamedTuple):
    """What a turn adds to the record."""

    tokens: list[int]
    text: str


_THOUGHT_ENDS = "</think>"


class _Place(Enum):
    """Where an answer ends."""

    THOUGHT = "thought"  # it was cut off while it thought: the template's end of that is given
    CALL = "call"
    WORDS = "words"


class Bridge:
    """For one model's tokenizer and template."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decode = tokenizer.decode
        # Letters and digits alone: no template trims, splits or escapes them.
        self._mark, self._thought = f"a{secrets.token_hex(16)}", f"t{secrets.token_hex(16)}"
        self.close = _close(tokenizer, self._mark)
        self._closing = tokenizer.decode([self.close], skip_special=False) if self.close else ""

    def text(self, tokens: list[int], message: dict[str, Any]) -> str:
        """Of what was drawn, up to where what was told of it ends: not what stopped it."""
        text, said = self._decode(tokens), content(message)
        end = text.rfind(said) + len(said)
        return text[:end] if not message.get("tool_calls") and said and said in text else text

    def prompt(self, asked: Asked) -> Given:
        """A conversation that nothing recorded stands in. Raises what `render` raises."""
        text = asked.render(asked.messages)
        return Given(asked.encode(text), text)

    def follows(
        self, asked: Asked, path: dict[int, RecordedAnswer], keep: bool
    ) -> Given | TurnOrigin:
        """What stands behind the last answer of `path`, or why nothing does.

        Args:
            path: the recorded answers among the messages, by index; at least one.
            keep: what was thought stays, though the template leaves it out.
        """
        answer = path[max(path)]
        drawn = answer.tokens
        ended = bool(drawn) and drawn[-1] == self.close
        try:
            place, text = self._rendered(asked, path, _places(answer.message, ended))
        except UserError:  # what is wrong with the messages is found without marks, too
            return TurnOrigin.TEMPLATE
        thoughts = sum(_thinks(each.message) for each in path.values())
        if text.count(self._thought) < thoughts - (place is _Place.THOUGHT) and not keep:
            return TurnOrigin.THINKING
        _, found, behind = text.partition(self._mark)
        start = 0 if place is _Place.THOUGHT else behind.find(self._closing)
        if not found or start < 0 or (place is _Place.CALL and not self._closing):
            return TurnOrigin.TEMPLATE
        ids = asked.encode(behind[start:])
        return Given(ids[1:] if ended else ids, behind[start:])

    def _rendered(
        self, asked: Asked, path: dict[int, RecordedAnswer], places: list["_Place"]
    ) -> tuple["_Place", str]:
        """The text with a mark in the first of the places that it shows, or in none."""
        for place in places:
            text = asked.render(self._marked(asked.messages, path, place))
            if self._mark in text:
                break
        return place, text

    def _marked(
        self, messages: Messages, path: dict[int, RecordedAnswer], place: "_Place"
    ) -> Messages:
        """The messages with marks where recorded thinking is, and where the last answer ends."""
        last = max(path)
        marked = list(messages)
        for i, answer in path.items():
            marked[i] = self._thinking(messages[i], answer)
        thought, tag, _ = content(marked[last]).rpartition(_THOUGHT_ENDS)
        match place:
            case _Place.THOUGHT:
                marked[last] |= {"content": "", "reasoning_content": self._mark}
            case _Place.CALL:
                calls = messages[last]["tool_calls"]
                marked[last] |= {"tool_calls": [*calls[:-1], _named(calls[-1], self._mark)]}
            case _Place.WORDS:
                marked[last] |= {"content": thought + tag + self._mark}
        return marked

    def _thinking(self, message: dict[str, Any], answer: RecordedAnswer) -> dict[str, Any]:
        """A message of the assistant with a mark for what it thought, and nothing else of that."""
        told = {k: v for k, v in message.items() if k not in ("reasoning", "reasoning_content")}
        thought, tag, after = content(message).rpartition(_THOUGHT_ENDS)
        if reasoning(answer.message):
            told["reasoning_content"] = self._thought
        elif _thinks(answer.message):
            told["content"] = thought + self._thought + tag + after
        return told


def _places(message: dict[str, Any], ended: bool) -> list[_Place]:
    """The likeliest first: templates may show neither thinking, nor calls beside words."""
    if message.get("tool_calls"):
        return [_Place.CALL, _Place.WORDS]
    cut = not ended and reasoning(message) and not content(message).strip()
    return [_Place.THOUGHT, _Place.WORDS] if cut else [_Place.WORDS]


def _named(call: dict[str, Any], name: str) -> dict[str, Any]:
    written = isinstance((call.get("function") or {}).get("arguments"), str)
    return call | {"function": {"name": name, "arguments": "{}" if written else {}}}


def _thinks(message: dict[str, Any]) -> bool:
    """Whether anything was thought, apart or in the content."""
    thought, tag, _ = content(message).rpartition(_THOUGHT_ENDS)
    return bool(reasoning(message)) or bool(tag and thought.replace("<think>", "").strip())


def _close(tokenizer: Tokenizer, mark: str) -> int | None:
    """The token with which the template closes a turn of the assistant; None: it has none."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
    try:
        behind = tokenizer.render(turns, add_generation_prompt=False).partition(mark)[2]
    except ModelError:
        return None
    first = tokenizer.encode(behind.strip())[:1]
    return first[0] if first and first[0] in tokenizer.eos_ids else None
