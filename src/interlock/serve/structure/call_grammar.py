"""The grammar of calls, as each form writes them.

tools that may be called ──call_rules──> Lark: rules `calls`, `behind`
                     opening mark ──free_rules──> rule `free`: words, and calls among them
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from interlock.serve.prompts.families import MARKS, ToolForm
from interlock.serve.prompts.fields import FieldError
from interlock.serve.prompts.turns import Tool
from interlock.serve.structure.lark import json_piece, literal, mark

_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


def call_rules(
    form: ToolForm,
    tools: Sequence[Tool],
    token_id: Callable[[str], int | None],
    several: bool,
    everything: bool,
) -> str:
    """Rules of which `calls` is one call of some tool, or several, and `behind` what follows an
    opening mark in it.

    Args:
        everything: the arguments keep to every tool's schema, not to that of strict tools alone.

    Raises FieldError on a schema that cannot be kept to.
    """
    marks = MARKS[form]
    begin, end, first, last, separator = (mark(m, token_id(m)) if m else "" for m in marks)
    names = " | ".join(f"tool_{i}" for i in range(len(tools)))
    more = r"(/\n?/ call)*" if several else ""
    rules = [f"call: {begin} ({names}) {end}", f"calls: {first} call {more} {last}"]
    rules.append(f"behind: call {more} {last}" if first else f"behind: ({names}) {end}")
    for i, tool in enumerate(tools):
        param = f"tools[{tool.name}].function.parameters"
        schema = _schema(tool, param) if everything or tool.strict else {"type": "object"}
        name = json.dumps(tool.name)
        match form:
            case ToolForm.HERMES:
                before = literal(f'\n{{"name": {name}, "arguments": ')
                rules.append(f'tool_{i}: {before} {json_piece(schema, param)} "}}\\n"')
            case ToolForm.QWEN_XML:
                rules += _tags(f"tool_{i}", tool, schema, param)
            case ToolForm.DEEPSEEK:
                opening = literal(f"{tool.name}\n```json\n")
                before = f'"function" {separator} {opening}'
                rules.append(f'tool_{i}: {before} {json_piece(schema, param)} "\\n```"')
            case ToolForm.DEEPSEEK_V31:
                before = f"{literal(tool.name)} {separator}"
                rules.append(f"tool_{i}: {before} {json_piece(schema, param)}")
    return "\n".join(rules) + "\n"


def free_rules(
    form: ToolForm, token_id: Callable[[str], int | None], several: bool, thinking: str = ""
) -> str:
    """Rules of which `free` is any text with calls in it; they stand beside those of `call_rules`.

    No words hold an opening mark: behind one only a call may stand, wherever it is written.

    Args:
        thinking: the text of a mark that is no token; `unthinking` is as `free`, but for what
            begins with it. "": there is no such rule.
    """
    marks = MARKS[form]
    opening = marks.calls_begin or marks.begin
    if token_id(opening) is not None:
        rules = ["WORDS: /(?s:.*)/", "free: WORDS (calls WORDS)?"]
        other, words = "unthinking: OTHER (calls WORDS)?", "WORDS"
    else:
        # Marks around all calls stand in an answer once; marks of each call, as often as there are.
        again = several and not marks.calls_begin
        words = f"(/(?s:.*)/ & ~(/(?s:.*)/ {literal(opening)} /(?s:.*)/))"
        rules = [
            f"WORDS: {words}",
            f"opened[suffix={literal(opening)}]: /(?s:.*)/",
            f"rest: {'(opened behind)* ' if again else ''}WORDS",
            "free: opened behind rest | WORDS",
        ]
        other = "unthinking: other_opened behind rest | OTHER"
        if thinking:
            rules.append(f"UNOPENED: /(?s:.*)/ & ~({literal(thinking)} /(?s:.*)/)")
            rules.append(f"other_opened[suffix={literal(opening)}]: UNOPENED")
    if thinking:
        rules += [f"OTHER: WORDS & ~({literal(thinking)} /(?s:.*)/)", other]
    return "\n".join(rules) + "\n"


def _schema(tool: Tool, param: str) -> dict[str, Any]:
    schema = _NO_PARAMETERS if tool.parameters is None else tool.parameters
    if schema.get("type", "object") != "object":
        raise FieldError(f"{param}.type", "is not 'object'; arguments are an object")
    return schema | {"type": "object"}


def _tags(rule: str, tool: Tool, schema: dict[str, Any], param: str) -> list[str]:
    """Qwen3-Coder's: each parameter in tags, in the order of the schema."""
    json_piece(schema, param)  # what is wrong with the whole is told of the whole
    properties, required = schema.get("properties") or {}, set(schema.get("required") or [])
    if not properties and tool.parameters is not None and "properties" not in schema:
        raise FieldError(param, "names no properties; this model's calls need their names")
    body, rules = [literal(f"\n<function={tool.name}>\n")], []
    for n, (key, own) in enumerate(properties.items()):
        if not isinstance(own, dict):
            raise FieldError(f"{param}.properties.{key}", "is no schema; write an object")
        own = own | {k: schema[k] for k in ("$defs", "definitions") if k in schema}
        begin = literal(f"<parameter={key}>\n")
        value, end = f"{rule}_{n}", literal("\n</parameter>\n")
        if own.get("type") == "string":
            inner = _words(value, own)
            rules.append(inner)
            body.append(f"({begin} {value})" + ("" if key in required else "?"))
        else:
            piece = json_piece(own, f"{param}.properties.{key}")
            body.append(f"({begin} {piece} {end})" + ("" if key in required else "?"))
    body.append(literal("</function>\n"))
    return [f"{rule}: {' '.join(body)}", *rules]


def _words(rule: str, schema: dict[str, Any]) -> str:
    """A bare string with what ends it."""
    end = "\n</parameter>\n"
    allowed = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(allowed, list) and allowed and all(isinstance(a, str) for a in allowed):
        return f"{rule}: ({' | '.join(map(literal, allowed))}) {literal(end)}"
    return f"{rule}[suffix={literal(end)}]: /(?s:.*)/"
