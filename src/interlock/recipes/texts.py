r"""What a row of data becomes: tokens, and which of them are learned.

    row ──columns.example──> PlainRow ───────────────> Row
                             ChatRow ──> as a whole ─────> Row        where nothing thinks
                                  └─> turn by turn ───> Row × n    where something does

A turn that thinks is put together as it is generated: what the chat template renders when the
assistant is to begin, which is given; then what the model is to write, to its end token, which is
learned. So nothing is lost of it where a template cuts past thoughts off, and the turns before it
are what they will be when the model is asked: most templates leave out what these thought.

A row may say whether it thinks (`thinking`). There are two ways to tell the model, `switch`:

    "template"  the template's own variable, enable_thinking. Qwen3's then begins the answer of a
                row that does not think with an empty block, which is given, and so not learned
    "tags"      /think or /no_think behind the last user turn, and the model writes the block
                itself, an empty one behind /no_think, which is learned: the fusion of Qwen3 (arXiv
                2505.09388, section 4.3, table 9). Any template will do
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from interlock import thinking
from interlock.config.fields import ThinkingSwitch
from interlock.errors import TaskError
from interlock.models.tokenizer import Tokenizer
from interlock.tasks.columns import ChatRow, PlainRow, example
from interlock.tasks.modes import tagged
from interlock.tasks.rows import Row as DataRow

# Qwen3's name of the switch, and DeepSeek's, which must be told from prose.
_SWITCHES = {
    "enable_thinking": re.compile(r"\benable_thinking\b"),
    "thinking": re.compile(r"\b(?:if|elif|not|and|or|set)\s+thinking\b"),
}
# Not all that there are: a template may know others.
_ROLES = ("system", "developer", "user", "assistant", "tool", "human", "gpt")
_APART = ("reasoning_content", "reasoning")  # where a turn has its thoughts beside its answer


class Row(NamedTuple):
    """One training text: `learned[i]` tells whether token i is to be predicted."""

    tokens: list[int]
    learned: list[bool]


class _Said(NamedTuple):
    """What a turn of the assistant says."""

    thought: str | None  # None: it does not think
    answer: str


def texts(
    row: DataRow,
    tokenizer: Tokenizer,
    switch: ThinkingSwitch = "template",
    thinks: bool | None = None,
) -> list[Row]:
    """The training texts of a row: one, or where a turn thinks one for each turn to be learned.

    `thinks`: what a row teaches that does not say it: see `_fused`. Raises TaskError or ModelError,
    naming the column.
    """
    try:
        found = example(row)
    except ValueError as error:
        raise TaskError(str(error)) from None
    match found:
        case PlainRow(prompt, text):
            return [_plain(prompt, text, tokenizer)]
        case ChatRow():
            _refuse_misspelt(found.turns)
            if not any(turn["role"] == "assistant" for turn in found.turns[found.since :]):
                raise TaskError("no assistant turn to learn from")
            calls = any(turn.get("tool_calls") for turn in found.turns[found.since :])
            if thinks is not None and found.thinking is None and not calls:
                found = _fused(found, thinks)
            if calls and found.thinking is not None:
                raise TaskError("a row with calls of tools cannot say 'thinking' yet; leave it out")
            if calls or (found.thinking is None and not any(map(_thinks, found.turns))):
                return [_whole(found, tokenizer)]
            return list(_turn_by_turn(found, tokenizer, switch))


def _refuse_misspelt(turns: Sequence[Mapping[str, Any]]) -> None:
    """An "asistant" is rendered as whoever else, and what it says is not learned."""
    for number, turn in enumerate(turns, 1):
        if (role := turn["role"]) in _ROLES[:-2]:
            continue
        if near := difflib.get_close_matches(role.strip().lower(), _ROLES, 1, cutoff=0.8):
            meant = {"human": "user", "gpt": "assistant"}.get(near[0], near[0])
            raise TaskError(f"turn {number} is of the role {role!r}; did you mean {meant!r}?")


def _plain(prompt: str, text: str, tokenizer: Tokenizer) -> Row:
    tokens, learned = tokenizer.completed(prompt, text)
    if not prompt:
        learned = [True] * len(tokens)
    if len(tokens) < 2 or not any(learned[1:]) or not text:
        raise TaskError("the text is empty" if not prompt else "the completion is empty")
    return Row(tokens, learned)


def _whole(chat: ChatRow, tokenizer: Tokenizer) -> Row:
    """A conversation as the template renders it."""
    tokens, learned = tokenizer.assistant_mask(chat.turns, **chat.template)
    if chat.since:
        given = tokenizer.chat(chat.turns[: chat.since], **chat.template)
        learned = [flag and place >= len(given) for place, flag in enumerate(learned)]
    if not any(learned[1:]):
        raise TaskError("no assistant turn to learn from")
    return Row(tokens, learned)


def _fused(chat: ChatRow, thinks: bool) -> ChatRow:
    """As a row of a fusion: with its thoughts, where all its learned turns have some and it
    `thinks`; else without any. One of which only some turns think stays as it is.
    """
    learned = [_thinks(t) for t in chat.turns[chat.since :] if t["role"] == "assistant"]
    if any(learned) and not all(learned):
        return chat
    if thinks and all(learned):
        return chat._replace(thinking=True)
    turns = [*chat.turns[: chat.since], *map(_thoughtless, chat.turns[chat.since :])]
    return chat._replace(turns=turns, thinking=False)


def _thoughtless(turn: dict[str, Any]) -> dict[str, Any]:
    if turn["role"] != "assistant":
        return turn
    rest = {name: value for name, value in turn.items() if name not in _APART}
    return rest | {"content": _said(turn).answer}


def _turn_by_turn(chat: ChatRow, tokenizer: Tokenizer, switch: ThinkingSwitch) -> Iterator[Row]:
    """Each of the assistant's turns behind those before it."""
    begin, end = tokenizer.thinking_marks
    for place, turn in enumerate(chat.turns):
        if turn["role"] != "assistant":
            continue
        if place == 0:
            raise TaskError("the first turn is the assistant's, and answers nothing")
        said = _said(turn)
        if chat.thinking is not None:
            _check(said, chat.thinking, place)
        if place < chat.since:
            continue
        told = _told(chat.template, chat.thinking, tokenizer, switch)
        history = chat.turns[:place]
        if chat.thinking is not None and switch == "tags":
            history = tagged(history, chat.thinking)
        before = tokenizer.render(history, **told)
        text = _written(before, said, begin, end, shown=chat.thinking is not None)
        yield Row(*tokenizer.continued(before, text + tokenizer.closing))


def _written(before: str, said: _Said, begin: str, end: str, shown: bool) -> str:
    """What the model writes behind `before`; `shown`: an empty block where it does not think."""
    begun, thought = before.rstrip(), said.thought
    if begun.endswith(end):
        if thought:
            raise TaskError(
                "the chat template ends the thinking before the turn that thinks; tell it "
                "otherwise in the column 'thinking' or 'chat_template_kwargs'"
            )
        return said.answer
    if begun.endswith(begin):
        opened = "" if before.endswith("\n") else "\n"
    elif thought is None and not shown:
        return said.answer
    else:
        opened = f"{begin}\n"
    return f"{opened}{thought or ''}\n{end}\n\n{said.answer}"


def _told(
    template: Mapping[str, Any], thinks: bool | None, tokenizer: Tokenizer, switch: ThinkingSwitch
) -> dict[str, Any]:
    """The template's variables."""
    told = dict(template)
    if thinks is None or switch == "tags":
        return told
    text = tokenizer.template or ""
    names = [name for name, pattern in _SWITCHES.items() if pattern.search(text)]
    if not names and not thinks:
        raise TaskError(
            "thinking = false, which the chat template cannot be told: it has no enable_thinking; "
            'set thinking_switch = "tags" in the stage'
        )
    return told | dict.fromkeys(names[:1], thinks)


def _check(said: _Said, thinks: bool, place: int) -> None:
    if thinks and not said.thought:
        raise TaskError(
            f"thinking = true, but turn {place + 1} thinks nothing; give it a reasoning_content, "
            "or set thinking = false"
        )
    if not thinks and said.thought:
        raise TaskError(
            f"thinking = false, but turn {place + 1} thinks; take its thinking out, or set "
            "thinking = true"
        )


def _thinks(turn: Mapping[str, Any]) -> bool:
    return turn["role"] == "assistant" and _said(turn).thought is not None


def _said(turn: Mapping[str, Any]) -> _Said:
    """A turn's thoughts, without line ends around them, and its answer. Raises TaskError."""
    content = turn["content"] or ""
    apart = [name for name in _APART if turn.get(name) is not None]
    if len(apart) > 1:
        raise TaskError(f"a turn has {apart[0]} and {apart[1]}; take one of them out")
    begin, end = next((pair for pair in thinking.PAIRS if pair[1] in content), ("", ""))
    if not end:
        if any(begin in content for begin, _ in thinking.PAIRS):
            raise TaskError("a turn begins to think and never ends it")
        if not apart:
            return _Said(None, content)
        thought = turn[apart[0]]
        if not isinstance(thought, str):
            raise TaskError(f"{apart[0]} is {thought!r:.60}, not a text")
        return _Said(thought.strip("\n"), content.lstrip("\n"))
    if apart:
        raise TaskError(f"a turn has {apart[0]} and {end} in its content; take one of them out")
    thought, _, answer = content.partition(end)
    before, mark, inside = thought.partition(begin)
    if (mark and before.strip()) or begin in inside or end in answer:
        raise TaskError(f"a turn is to begin with one {begin}…{end}, and this one has it elsewhere")
    return _Said((inside if mark else thought).strip("\n"), answer.lstrip("\n"))
