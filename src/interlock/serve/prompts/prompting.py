"""A chat request becomes a prompt: token ids, and whether they end inside of thinking.

    messages, tools ──turns──> checked ──Typed.hide──> chat template ──> text ──split──> token ids

`ChatFormat` is made once for a model. Text that a user typed never becomes one of the model's
special tokens; everything else has the tokens of transformers' `apply_chat_template`.
"""

import json
import re
from collections.abc import Sequence
from enum import Enum
from functools import cached_property
from typing import Any, NamedTuple

from interlock.errors import ModelError
from interlock.models.chat import Messages, TemplateFailure
from interlock.models.detokenizer import Detokenizer
from interlock.models.tokenizer import Tokenizer
from interlock.records.serving import Rules
from interlock.serve.prompts.families import AUTO, KNOWN_MARKS, MARKS, Family, ToolForm, family_of
from interlock.serve.prompts.fields import FieldError, known, object_of, one_of
from interlock.serve.prompts.plain_text import Typed, any_of
from interlock.serve.prompts.turns import Tool, turns_of

# Beginnings of tokens that are marks though they are not called special.
_MARKED = ("<|", "<｜")  # noqa: RUF001  DeepSeek's fullwidth bar
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
# The switch of thinking: Qwen3's name, and DeepSeek's, which is found as a variable, not as prose.
# Either is taken for either.
_SWITCHES = {
    "enable_thinking": re.compile(r"\benable_thinking\b"),
    "thinking": re.compile(r"\b(?:if|elif|not|and|or|set)\s+thinking\b"),
}


class ThinkingStage(Enum):
    """Where thinking is when an answer begins."""

    OFF = "off"  # this model, or this answer, has none
    OPEN = "open"  # the model may begin to think
    INSIDE = "inside"  # the prompt ends inside of it


class ChatPrompt(NamedTuple):
    """What the model is given to answer."""

    tokens: list[int]
    text: str
    stage: ThinkingStage


class ChatFormat:
    """How one model reads conversations. The two settings are those of `family_of`."""

    def __init__(
        self, tokenizer: Tokenizer, thinking_marks: str = AUTO, tool_form: str = AUTO
    ) -> None:
        self._tokenizer = tokenizer
        self._template = tokenizer.template or ""
        self.family: Family = family_of(tokenizer, thinking_marks, tool_form)
        added = tokenizer.added.items()
        special = {text for text, token in added if token.special}
        # Added tokens that are mere text (blanks, tags of HTML) are read as the model learned them.
        written = {
            text
            for text, _ in added
            if text in KNOWN_MARKS
            or text.startswith(_MARKED)
            or (text.strip() and text in self._template)
        }
        marks = self.family.thinking
        thinks = {marks.begin, marks.end} if marks else set()
        calls = set(MARKS.get(self.family.tools, ())) - {""}
        self._marks = any_of(special | written | thinks | calls)
        # What a model said may have its marks of thinking: templates look for them.
        self._marks_of_assistant = any_of((special | calls) - thinks)

    def prompt(
        self,
        messages: Any,
        tools: Sequence[Tool] = (),
        kwargs: dict[str, Any] | None = None,
        effort: str | None = None,
    ) -> ChatPrompt:
        """The prompt of a chat request, whose fields are those of `conversation`.

        Raises FieldError on what this model cannot be asked.
        """
        conversation = self.conversation(messages, tools, kwargs, effort)
        return conversation.prompt(conversation.render(conversation.turns))

    def conversation(
        self,
        messages: Any,
        tools: Sequence[Tool] = (),
        kwargs: dict[str, Any] | None = None,
        effort: str | None = None,
    ) -> "Conversation":
        """A chat request, read.

        Args:
            messages: as in the request; checked here.
            tools: those the model is told of; none for tool_choice "none".
            kwargs: chat_template_kwargs.
            effort: reasoning_effort.

        Raises FieldError on what this model cannot be asked.
        """
        return Conversation(self, turns_of(messages), tools, self.settings(kwargs, effort))

    def settings(self, kwargs: dict[str, Any] | None, effort: str | None) -> dict[str, Any]:
        """The template's variables for chat_template_kwargs and reasoning_effort."""
        kwargs = object_of(kwargs or {}, "chat_template_kwargs")
        known(kwargs, {*_SWITCHES, "reasoning_effort"}, "chat_template_kwargs")
        found: dict[str, Any] = {}
        for name in _SWITCHES:
            if (value := kwargs.get(name)) is not None:
                param = f"chat_template_kwargs.{name}"
                if not isinstance(value, bool):
                    raise FieldError(param, f"{value!a} is neither true nor false")
                found[self._switch(param)] = value
        param = "reasoning_effort"
        if effort is None and kwargs.get(param) is not None:
            effort, param = kwargs[param], f"chat_template_kwargs.{param}"
        if effort is not None:
            one_of(effort, EFFORTS, param)
            if "reasoning_effort" in self._template:
                found["reasoning_effort"] = effort
            else:
                found.setdefault(self._switch(param), effort != "none")
        return found

    def rules(self, prompt: ChatPrompt, budget: int | None) -> Rules:
        """What the engine is told of thinking. Raises FieldError on a budget nobody can keep."""
        marks = self.family.thinking
        if marks is None or prompt.stage is ThinkingStage.OFF:
            if budget is not None and marks is None:
                raise FieldError("thinking_budget", "this model does not think; leave it out")
            return Rules()
        return Rules(
            thinking_budget=budget,
            thinking_begin=marks.begin_ids,
            thinking_end=marks.end_ids,
            thinks=prompt.stage is ThinkingStage.INSIDE,
        )

    def stream(self) -> Detokenizer:
        """A decoder for one answer's tokens."""
        return self._tokenizer.stream()

    def token_id(self, mark: str) -> int | None:
        """The token that a mark is; None: it is written as text."""
        return self._tokenizer.token_id(mark)

    @property
    def has_switch(self) -> bool:
        """Whether the model can be told to think or not to."""
        return any(pattern.search(self._template) for pattern in _SWITCHES.values())

    def _switch(self, param: str) -> str:
        """The name that the template has for the switch of thinking."""
        for name, pattern in _SWITCHES.items():
            if pattern.search(self._template):
                return name
        raise FieldError(
            param, "this model's chat template has no switch for thinking; leave it out"
        )

    def hidden(
        self, turns: list[dict[str, Any]], tools: Sequence[Tool], typed: Typed
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Turns and tools as the template is given them. Raises FieldError."""
        try:
            told = [self._told(turn, typed, i) for i, turn in enumerate(turns)]
            known_tools = [typed.hide(tool.told, self._marks) for tool in tools]
        except RecursionError:
            raise FieldError("messages", "is nested too deep; flatten it") from None
        if known_tools:
            self._check_tools("tools")
        return told, known_tools

    def _told(self, turn: dict[str, Any], typed: Typed, index: int) -> dict[str, Any]:
        """The turn as the template is given it."""
        role, calls = turn["role"], turn.get("tool_calls")
        if calls or role == "tool":
            self._check_tools(f"messages[{index}]")
        told = {k: v for k, v in turn.items() if k not in ("role", "content", "tool_calls")}
        told = typed.hide(told, self._marks)
        own = self._marks_of_assistant if role == "assistant" else self._marks
        content = typed.hide(turn["content"], own)
        if calls:
            empty, text = self._calls_as
            content = content or empty
            calls = typed.hide(calls, self._marks)
            told["tool_calls"] = list(map(_as_text, calls)) if text else calls
        if role == "developer" and "developer" not in self._template:
            role = "system"
        return {"role": role, "content": content, **told}

    def _check_tools(self, param: str) -> None:
        # Some templates show past calls, but have no place for what may be called.
        untold = param == "tools" and not re.search(r"\btools\b", self._template)
        if untold or self.family.tools is ToolForm.NONE:
            raise FieldError(
                param,
                "this model's chat template has no place for tools; serve a model whose has, or "
                "give this one another chat template",
            )

    @cached_property
    def _calls_as(self) -> tuple[str | None, bool]:
        """What the template wants as the content of a turn that only calls, and whether it wants
        the arguments as a string of JSON. Templates differ, and fail or print Python on the other.
        """
        for content in (None, ""):
            for text in (False, True):
                function = {"name": "f", "arguments": {"probe": 1}}
                call = {"type": "function", "id": "1", "function": function}
                calls = [_as_text(call) if text else call]
                turns: Messages = [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": content, "tool_calls": calls},
                    {"role": "tool", "content": "b", "tool_call_id": "1"},
                ]
                try:
                    shown = self._tokenizer.render(turns)
                except ModelError:
                    continue
                if "'probe'" not in shown and "None" not in shown:
                    return content, text
        return "", True

    def render(self, turns: list[dict[str, Any]], settings: dict[str, Any]) -> str:
        """Raises FieldError, which does not tell where the template lies."""
        if self._tokenizer.template is None:
            raise FieldError(
                "messages",
                "this model has no chat template: send text to /v1/completions, or serve it with "
                "the setting chat_template",
            )
        try:
            return self._tokenizer.render(turns, **settings)
        except TemplateFailure as error:
            said = error.reason.replace("failed:", "refuses them:", 1)
            raise FieldError("messages", f"the model's chat template {said}") from None

    def encode(self, parts: list[str]) -> list[int]:
        if len(parts) > 1 and not self._joins:
            raise FieldError(
                "messages",
                "hold the text of a special token, which this model's tokenizer cannot read as "
                "text; take it out",
            )
        return [token for part in parts for token in self._tokenizer.encode(part)]

    @cached_property
    def _joins(self) -> bool:
        """Whether parts of a text that are encoded one by one make up the text."""
        ids = [*self._tokenizer.encode("a<"), *self._tokenizer.encode("|b")]
        return self._tokenizer.decode(ids) == "a<|b"

    def stage(self, text: str) -> ThinkingStage:
        """`text` is without what users typed."""
        marks = self.family.thinking
        if marks is None:
            return ThinkingStage.OFF
        if self.family.opened or text.rfind(marks.begin) > text.rfind(marks.end):
            return ThinkingStage.INSIDE
        return ThinkingStage.OFF if text.rstrip().endswith(marks.end) else ThinkingStage.OPEN


class Conversation:
    """A chat request, read. `turns` may be rendered otherwise than they are, and the rest of what
    was rendered be encoded alone: a session does so, to go on behind what it has recorded.
    """

    def __init__(
        self,
        form: ChatFormat,
        turns: list[dict[str, Any]],
        tools: Sequence[Tool],
        settings: dict[str, Any],
    ) -> None:
        self.turns = turns
        self.settings = settings
        self.tools = tools
        self._form = form
        self._typed = Typed()

    def render(self, turns: list[dict[str, Any]]) -> str:
        """The text of turns, what users typed of the model's marks hidden. Raises FieldError."""
        told, tools = self._form.hidden(turns, self.tools, self._typed)
        settings = self.settings | ({"tools": tools} if tools else {})
        return self._form.render(told, settings)

    def encode(self, text: str) -> list[int]:
        """The tokens of a rendered text, or of a part of it. Raises FieldError."""
        return self._form.encode(self._typed.split(text))

    def prompt(self, text: str) -> ChatPrompt:
        """Of a text that was rendered."""
        parts = self._typed.split(text)
        return ChatPrompt(self._form.encode(parts), "".join(parts), self._form.stage(text))


def _as_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return call | {"function": function | {"arguments": arguments}}
