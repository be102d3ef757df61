"""The form that an answer must have, as a grammar: response_format, tool_choice, strict tools.

response_format ──┐
structured_outputs ├──structure_of──> Structure: a llguidance grammar, and behind what it begins
tool_choice, tools┘
"""

import json
from typing import Any, NamedTuple

from interlock.serve.prompts.families import ToolForm
from interlock.serve.prompts.fields import FieldError, known, object_of, one_of, text_of
from interlock.serve.prompts.prompting import ChatFormat, ThinkingStage
from interlock.serve.structure.call_grammar import call_rules, free_rules
from interlock.serve.structure.choosing import ToolChoice
from interlock.serve.structure.lark import check_own, choice_piece, json_piece, literal, regex_piece

_KINDS = ("regex", "choice", "json", "json_object", "grammar")


class Structure(NamedTuple):
    """For Rules; "" asks for nothing."""

    grammar: str = ""
    after: list[int] = []  # noqa: RUF012  never changed


def structure_of(
    form: ChatFormat,
    stage: ThinkingStage,
    choice: ToolChoice,
    response_format: Any = None,
    structured_outputs: Any = None,
    budget: int | None = None,
) -> Structure:
    """What the request asks of the answer's form. Raises FieldError on what cannot be kept to.

    `budget` is that of thinking.
    """
    body = _format(response_format)
    if structured_outputs is not None:
        if body:
            raise FieldError(
                "structured_outputs", "stands beside response_format; send one of them"
            )
        body = _structured(structured_outputs)
    strict = any(tool.strict for tool in choice.callable)
    narrowed = len(choice.callable) < len(choice.told)
    marks = form.family.thinking
    spelt = marks is not None and stage is not ThinkingStage.OFF and len(marks.end_ids) > 1
    begin = marks.begin if marks is not None and spelt and stage is not ThinkingStage.INSIDE else ""
    calls = ""
    if choice.required or strict or (choice.told and (body or not choice.several or narrowed)):
        calls = _calls(form, choice, begin)
    if marks is None or stage is ThinkingStage.OFF:
        return Structure(_grammar("", choice, body, calls))
    if not spelt:
        return Structure(_grammar(_BLANKS, choice, body, calls), marks.end_ids)
    # A mark of several tokens may be written in others than these: the grammar finds its text.
    thinks = f"{literal(begin)} thought" if begin else "thought"
    if begin and calls and not (choice.required or body):
        # Else the words of `free` would take the thinking too, as the longest that may stand there.
        grammar = f"start: {thinks} {_BLANKS}free | unthinking\n{calls}"
    else:
        before = f"({thinks})? " if begin else f"{thinks} "
        grammar = _grammar(before + _BLANKS, choice, body, calls)
    if grammar and budget is not None:
        raise FieldError(
            "thinking_budget",
            f"this model's {marks.end} is no token, so that thinking before an answer of a given "
            "form has no budget; leave one of them out",
        )
    thought = f"thought[suffix={literal(marks.end)}]: /(?s:.*)/\n"
    return Structure(_with(grammar, thought))


_BLANKS = r"/\n{0,2}/ "


def _with(grammar: str, rule: str) -> str:
    """The grammar with one rule more."""
    if not grammar.startswith("{"):
        return grammar + rule if grammar else ""
    tree = json.loads(grammar)
    tree["grammars"][0]["lark_grammar"] += rule
    return json.dumps(tree)


def _grammar(before: str, choice: ToolChoice, body: str, calls: str) -> str:
    """What `before` stands at the beginning of; "" when nothing is asked for."""
    if body.startswith("{"):  # a grammar of the user's own
        if calls:
            raise FieldError("structured_outputs.grammar", "cannot stand beside tools")
        own = json.loads(body)["lark_grammar"]
        main = {"name": "main", "lark_grammar": f"start: {before}@own\n"}
        return json.dumps({"grammars": [main, {"name": "own", "lark_grammar": own}]})
    if not calls:
        return f"start: {before}body\nbody: {body}\n" if body else ""
    if choice.required:
        return f"start: {before}calls\n{calls}"
    if body:
        return f"start: {before}(body | calls)\nbody: {body}\n{calls}"
    return f"start: {before}free\n{calls}"


def _calls(form: ChatFormat, choice: ToolChoice, thinking: str) -> str:
    """`thinking`: a mark of it that the grammar finds by its text."""
    tools = form.family.tools
    if tools is ToolForm.NONE:
        raise FieldError("tools", "this model's chat template knows no tools; serve one that does")
    calls = call_rules(tools, choice.callable, form.token_id, choice.several, choice.required)
    return calls + free_rules(tools, form.token_id, choice.several, thinking)


def _format(value: Any) -> str:
    if value is None:
        return ""
    param = "response_format"
    kind = one_of(
        object_of(value, param).get("type"),
        ("text", "json_object", "json_schema"),
        f"{param}.type",
    )
    known(value, {"type", "json_schema"} if kind == "json_schema" else {"type"}, param)
    if kind == "text":
        return ""
    if kind == "json_object":
        return json_piece({"type": "object"}, param)
    param = f"{param}.json_schema"
    told = object_of(value.get("json_schema"), param)
    known(told, {"name", "description", "schema", "strict"}, param)
    text_of(told.get("name"), f"{param}.name")
    if told.get("strict") not in (None, True, False):
        raise FieldError(f"{param}.strict", "is neither true nor false")
    return json_piece(object_of(told.get("schema"), f"{param}.schema"), f"{param}.schema")


def _structured(value: Any) -> str:
    """vLLM's structured_outputs."""
    param = "structured_outputs"
    asked = {k: v for k, v in object_of(value, param).items() if v is not None}
    known(asked, set(_KINDS), param)
    if len(asked) != 1:
        raise FieldError(param, f"asks for {len(asked)} forms; ask for one of {', '.join(_KINDS)}")
    ((kind, what),) = asked.items()
    param = f"{param}.{kind}"
    match kind:
        case "regex":
            return regex_piece(text_of(what, param), param)
        case "choice":
            if not isinstance(what, list):
                raise FieldError(param, "is no list; send a list of texts")
            return choice_piece([text_of(each, param) for each in what], param)
        case "json":
            return json_piece(object_of(what, param), param)
        case "json_object":
            if what is not True:
                raise FieldError(param, "is not true; leave it out")
            return json_piece({"type": "object"}, param)
    check_own(text_of(what, param), param)
    return json.dumps({"lark_grammar": what})
