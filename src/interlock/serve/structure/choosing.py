"""Which tools an answer may, or must, call: tool_choice.

tool_choice, tools ──choice_of──> ToolChoice: the tools that are told, and those to be called
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from interlock.serve.prompts.fields import FieldError, known, object_of, one_of, text_of
from interlock.serve.prompts.turns import Tool


class ToolChoice(NamedTuple):
    """Which tools are told, and which may or must be called."""

    told: Sequence[Tool]  # the model is told of them, and its calls are read
    callable: Sequence[Tool]  # of these
    required: bool  # at least one must be called
    several: bool = True  # more than one call may be made


def choice_of(tool_choice: Any, tools: Sequence[Tool], parallel: bool | None = None) -> ToolChoice:
    """Raises FieldError on a choice that cannot be made."""
    param, several = "tool_choice", parallel is not False
    if isinstance(tool_choice, dict):
        return _named(tool_choice, tools, several)
    mode = one_of(tool_choice or "auto", ("auto", "none", "required"), param)
    if mode == "required" and not tools:
        raise FieldError(param, "'required' needs tools; send some")
    if mode == "none":
        return ToolChoice((), (), False)
    return ToolChoice(tools, tools, mode == "required", several)


def _named(choice: dict[str, Any], tools: Sequence[Tool], several: bool) -> ToolChoice:
    kind = one_of(choice.get("type"), ("function", "allowed_tools"), "tool_choice.type")
    if kind == "function":
        known(choice, {"type", "function"}, "tool_choice")
        return ToolChoice(tools, [_find(choice, tools, "tool_choice")], True, False)
    known(choice, {"type", "allowed_tools"}, "tool_choice")
    param = "tool_choice.allowed_tools"
    allowed = object_of(choice.get("allowed_tools"), param)
    known(allowed, {"mode", "tools"}, param)
    mode = one_of(allowed.get("mode"), ("auto", "required"), f"{param}.mode")
    named = allowed.get("tools")
    if not isinstance(named, list) or not named:
        raise FieldError(f"{param}.tools", "names no tool; name one at least")
    wanted = [_find(object_of(n, f"{param}.tools"), tools, f"{param}.tools") for n in named]
    return ToolChoice(tools, wanted, mode == "required", several)


def _find(choice: dict[str, Any], tools: Sequence[Tool], param: str) -> Tool:
    function = object_of(choice.get("function"), f"{param}.function")
    known(function, {"name"}, f"{param}.function")
    name = text_of(function.get("name"), f"{param}.function.name")
    for tool in tools:
        if tool.name == name:
            return tool
    raise FieldError(f"{param}.function.name", f"{name[:80]!a} is none of the tools")
