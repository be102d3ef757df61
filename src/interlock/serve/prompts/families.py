"""What a model's own chat format means: how it marks thinking, how it writes tool calls.

    chat template, vocabulary ──family_of──> Family ──> prompting, reading of answers, grammars

Both are read off the template's text and the vocabulary. A setting says it where they do not tell.
"""

# ruff: noqa: RUF001  DeepSeek spells its tokens with a fullwidth bar

from enum import StrEnum
from typing import NamedTuple, Protocol

from interlock import thinking
from interlock.errors import ConfigError

AUTO, NONE = "auto", "none"
_OPENED = "opened "


class ToolForm(StrEnum):
    """How a model writes the tools that it calls."""

    NONE = "none"
    HERMES = "hermes"  # <tool_call>{"name": …, "arguments": {…}}</tool_call>: Hermes, Qwen
    QWEN_XML = "qwen3_coder"  # <tool_call><function=…><parameter=…>…: Qwen3-Coder
    DEEPSEEK = "deepseek"  # those marks around ```json blocks: V3, R1
    DEEPSEEK_V31 = "deepseek_v31"  # the same marks around bare JSON


class CallMarks(NamedTuple):
    """What stands around calls. Empty texts: this form has no such mark."""

    begin: str  # of one call
    end: str
    calls_begin: str = ""  # of all of them
    calls_end: str = ""
    separator: str = ""  # between a call's head and its arguments


_TAGS = CallMarks("<tool_call>", "</tool_call>")
_DEEPSEEK = CallMarks(
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁sep｜>",
)
MARKS = {
    ToolForm.HERMES: _TAGS,
    ToolForm.QWEN_XML: _TAGS,
    ToolForm.DEEPSEEK: _DEEPSEEK,
    ToolForm.DEEPSEEK_V31: _DEEPSEEK,
}


KNOWN_MARKS = {mark for marks in MARKS.values() for mark in marks if mark}
KNOWN_MARKS |= {mark for pair in thinking.PAIRS for mark in pair}
KNOWN_MARKS |= {"<tool_response>", "</tool_response>"}


class ThinkingMarks(NamedTuple):
    """What a model writes around its thinking, with the token ids of each."""

    begin: str
    end: str
    begin_ids: list[int]
    end_ids: list[int]


class Family(NamedTuple):
    """`opened`: thinking is under way when an answer begins, whatever the prompt ends with."""

    thinking: ThinkingMarks | None
    tools: ToolForm
    opened: bool = False


class ChatVocabulary(Protocol):
    """What is needed of models.tokenizer.Tokenizer here."""

    @property
    def template(self) -> str | None: ...
    def token_id(self, token: str) -> int | None: ...
    def encode(self, text: str) -> list[int]: ...


def family_of(
    tokenizer: ChatVocabulary, thinking_marks: str = AUTO, tool_form: str = AUTO
) -> Family:
    """The family of a model.

    Args:
        thinking_marks: "auto", "none", the begin mark ("<think>"), or that with "opened " before
            it for a model that is in thinking from the first token and writes no begin mark.
        tool_form: "auto" or a ToolForm.

    Raises ConfigError on an unknown setting.
    """
    marks = _thinking(tokenizer, thinking_marks.removeprefix(_OPENED))
    opened = marks is not None and thinking_marks.startswith(_OPENED)
    return Family(marks, _tool_form(tokenizer.template or "", tool_form), opened)


def _thinking(tokenizer: ChatVocabulary, setting: str) -> ThinkingMarks | None:
    if setting == NONE:
        return None
    pairs = dict(thinking.PAIRS)
    if setting != AUTO and setting not in pairs:
        known = ", ".join([AUTO, NONE, *pairs])
        raise ConfigError(f"thinking marks {setting!r} are unknown; give one of {known}")
    template = tokenizer.template or ""
    for begin, end in thinking.PAIRS:
        found = end in template or tokenizer.token_id(end) is not None
        if setting == begin or (setting == AUTO and found):
            return ThinkingMarks(begin, end, tokenizer.encode(begin), tokenizer.encode(end))
    return None


def _tool_form(template: str, setting: str) -> ToolForm:
    if setting != AUTO:
        if setting not in set(ToolForm):
            known = ", ".join([AUTO, *ToolForm])
            raise ConfigError(f"tool form {setting!r} is unknown; give one of {known}")
        return ToolForm(setting)
    if _DEEPSEEK.begin in template:
        return ToolForm.DEEPSEEK if "```json" in template else ToolForm.DEEPSEEK_V31
    if "<tool_call>" not in template:
        return ToolForm.NONE
    return ToolForm.QWEN_XML if "<function=" in template else ToolForm.HERMES
