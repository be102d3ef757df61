"""What the columns of a row mean: the forms of TRL's data sets, and ours.

    row ──example──> ChatRow | PlainRow   what a stage of supervised fine-tuning learns from
        ──asked────> AskedRow              what a stage of reinforcement learning asks

The table of the forms is in docs/recipes.md. What could mean two things is refused, naming the
columns; so are the forms that no stage learns from, and those that are not text. Other columns are
not looked at. A column without a value (null) is as one that is not there.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from interlock.tasks.rows import Row, WrittenFloat, plain
from interlock.text import one_line

Turns = list[dict[str, Any]]
_FORMS = ("messages", "conversations", "text", "prompt")
_QUESTIONS = ("question", "prompt", "problem")
_ANSWERS = ("answer", "solution", "ground_truth")
# What TRL's data sets have and no stage here learns from.
_UNLEARNED = {
    "chosen": "a preference",
    "rejected": "a preference",
    "label": "a judgement of the completion",
    "completions": "steps",
    "labels": "judgements of steps",
    "image": "an image",
    "images": "images",
}
_ROLES_OF = {"human": "user", "gpt": "assistant"}  # as ShareGPT calls them
_SWITCH = "enable_thinking"


class ChatRow(NamedTuple):
    """A conversation; the assistant's turns from number `since` on are to be learned."""

    turns: Turns
    since: int = 0
    thinking: bool | None = None  # whether those turns think; None: as they are
    template: Mapping[str, Any] = {}  # what the chat template is told, beside that


class PlainRow(NamedTuple):
    """Text that no chat template is put around; of the prompt nothing is learned."""

    prompt: str
    text: str


class AskedRow(NamedTuple):
    question: str | Turns
    answer: str
    template: dict[str, Any]  # what the chat template is told of this row
    form: tuple[str, str, type]  # the columns, and what is in that of the question


def example(row: Row) -> ChatRow | PlainRow:
    """What a row teaches. Raises ValueError, naming the column."""
    there = [name for name, value in row.items() if value is not None]
    for name in there:
        if name in _UNLEARNED:
            raise ValueError(
                f"the column {name!r} is {_UNLEARNED[name]}, which no stage learns from; take it "
                "out of the data, or choose other data"
            )
    forms = [name for name in _FORMS if name in there]
    if len(forms) > 1:
        raise ValueError(f"a row has {forms[0]} or {forms[1]}, not both; take one of them out")
    match forms:
        case ["prompt"]:
            return _completed(row)
        case ["text"]:
            return PlainRow("", _text(row, "text"))
        case [name]:
            thinking, template = _told(row)
            return ChatRow(turns(row[name], name), 0, thinking, template)
    for name in ("completion", *_FORMS):
        if name == "completion" and name in there:
            raise ValueError("a row with a completion needs a prompt, which is not there")
        if name in row:
            raise ValueError(f"the column {name!r} is null; a row needs a value")
    raise ValueError(
        'a row is {"messages": [{"role": …, "content": …}, …]}, {"text": …} or '
        f'{{"prompt": …, "completion": …}}; this one has {_names(row)}'
    )


def _completed(row: Row) -> ChatRow | PlainRow:
    """A prompt and its completion, both texts or both turns."""
    prompt, completion = row["prompt"], row.get("completion")
    if completion is None:
        raise ValueError(
            "the column 'prompt' needs a 'completion' to be learned; prompts alone are for a "
            "stage of reinforcement learning"
        )
    if {type(prompt), type(completion)} == {str, list}:
        raise ValueError(
            "of the columns 'prompt' and 'completion' one is a text and the other turns of a "
            "conversation; give both in one form"
        )
    if isinstance(prompt, str):
        for name in ("thinking", "chat_template_kwargs"):
            if row.get(name) is not None:
                raise ValueError(
                    f"the column {name!r} is for a chat template, and 'prompt' and 'completion' "
                    "are plain texts, which have none; give them as turns of a conversation"
                )
        return PlainRow(prompt, _text(row, "completion"))
    thinking, template = _told(row)
    before = turns(prompt, "prompt")
    if before and before[-1].get("role") == "assistant":
        raise ValueError("the column 'prompt' ends with the assistant's turn; move it to the other")
    return ChatRow([*before, *turns(completion, "completion")], len(before), thinking, template)


def asked(row: Row, question: str | None = None, answer: str | None = None) -> AskedRow:
    """What a row asks, and the reference answer.

    question, answer: the columns; None: the one of those usual that is there. A question is a text,
    or turns of a conversation that end with the user's. Raises ValueError, naming the column.
    """
    question = question or _usual(row, _QUESTIONS, "question")
    answer = answer or _usual(row, _ANSWERS, "answer")
    thinking, template = _told(row)
    if thinking is not None:
        template[_SWITCH] = thinking
    value = row.get(question)
    said: str | Turns
    if not isinstance(value, list):
        said = field(row, question)
    else:
        said = turns(value, question)
        if not said or said[-1]["role"] != "user":
            raise ValueError(f"the field {question!r} is to end with the user's turn")
        if not all(isinstance(each["content"], str) and len(each) == 2 for each in said):
            raise ValueError(f"the turns of {question!r} are to have a role and a content alone")
    form = (question, answer, list if isinstance(value, list) else str)
    return AskedRow(said, field(row, answer), template, form)


def pass_rate(row: Row, column: str) -> float | None:
    """The share of right answers that a row tells; None: it does not. Raises ValueError."""
    value = row.get(column)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"the column {column!r} is {_shown(value)}, no pass rate from 0 to 1")
    return float(value)


def _usual(row: Row, names: Sequence[str], what: str) -> str:
    found = [name for name in names if row.get(name) is not None]
    if len(found) > 1:
        raise ValueError(
            f"the row has the columns {' and '.join(map(repr, found))}; say which is the {what}: "
            f'{what}_field = "{found[0]}"'
        )
    if found:
        return found[0]
    for name in names:
        if name in row:
            return name  # null, which is told
    usual = f"{', '.join(map(repr, names[:-1]))} or {names[-1]!r}"
    raise ValueError(f"no field {usual}; the row has {_names(row)}")


def field(row: Row, name: str) -> str:
    """A non-empty text, or a number as text. Raises ValueError."""
    if name not in row:
        raise ValueError(f"no field {name!r}; the row has {_names(row)}")
    value = row[name]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return plain(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"the field {name!r} is {_shown(value)}, not a text or a number")
    return value


def turns(value: Any, name: str) -> Turns:
    """The turns of a conversation, in the words of OpenAI. Raises ValueError, naming the column."""
    if not isinstance(value, list):
        raise ValueError(f"the column {name!r} is {_shown(value)}, not a list of turns")
    return [_turn(each, name) for each in value]


def _turn(turn: Any, name: str) -> dict[str, Any]:
    if isinstance(turn, dict) and {"from", "value"} <= turn.keys():
        role = _ROLES_OF.get(turn["from"], turn["from"])
        rest = {key: each for key, each in turn.items() if key not in ("from", "value")}
        turn = {"role": role, "content": turn["value"], **rest}
    match turn:
        case {"role": str(), "content": str()}:
            pass
        case {"role": "assistant", "tool_calls": [_, *_], **rest} if rest.get("content") is None:
            turn = {"content": None, **turn}
        case _:
            raise ValueError(
                f"a message needs a role and a content, not {one_line(repr(turn), 80)} "
                f"(in the column {name!r})"
            )
    # What a table has no value of is not there.
    return {key: each for key, each in turn.items() if each is not None or key == "content"}


def _told(row: Row) -> tuple[bool | None, dict[str, Any]]:
    """Whether the row thinks, as it says itself, and the other variables of its chat template."""
    thinking, given, tools = (
        row.get(name) for name in ("thinking", "chat_template_kwargs", "tools")
    )
    if thinking is not None and not isinstance(thinking, bool):
        raise ValueError(f"the column 'thinking' is {_shown(thinking)}, not true or false")
    if not isinstance(given, dict | None):
        raise ValueError(f"the column 'chat_template_kwargs' is {_shown(given)}, no object")
    template = {name: value for name, value in (given or {}).items() if value is not None}
    switch = template.pop(_SWITCH, None)
    if not isinstance(switch, bool | None):
        raise ValueError(f"chat_template_kwargs.{_SWITCH} is {_shown(switch)}, not true or false")
    if None not in (thinking, switch) and thinking is not switch:
        raise ValueError(
            f"the columns 'thinking' and 'chat_template_kwargs' say different things of {_SWITCH}; "
            "take one of them out"
        )
    if tools is not None:
        template["tools"] = _tools(tools)
    return (switch if thinking is None else thinking), template


def _tools(value: Any) -> list[Any]:
    """A list, or the JSON of one, as TRL has it in tables."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise ValueError(f"the column 'tools' is {_shown(value)}, not a list of tools")
    return found


def _text(row: Row, name: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise ValueError(f"a row is a text: the column {name!r} is {_shown(value)}")
    return value


def _names(row: Row) -> str:
    return ", ".join(map(repr, row))


def _shown(value: Any) -> str:
    if isinstance(value, WrittenFloat):
        return value.text
    try:
        return json.dumps(value)[:80]
    except (TypeError, ValueError):
        return one_line(repr(value), 80)
