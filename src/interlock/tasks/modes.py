"""Whether a model is told to think: one problem, or one row, asked in both modes.

    thinking = true    {"enable_thinking": true} for the chat template, or /think     behind the
    thinking = false   {"enable_thinking": false}                    or /no_think  user's last turn

The variable is Qwen3's, and so are the tags (arXiv 2505.09388, section 4.3). A template without the
variable refuses it, where problems are tried (recipes/evaluate.py); tags are for any model.
"""

from typing import Any

from msgspec.structs import replace

from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Problem

SWITCH = "enable_thinking"
_TAGS = {True: " /think", False: " /no_think"}


def asked(problem: Problem, task: TaskSettings) -> Problem:
    """The problem as its task has it asked; what its row says itself goes before that.

    Raises TaskError where no turn could end with a tag.
    """
    thinks = problem.template.get(SWITCH, task.thinking)
    if task.thinking_switch == "template":
        if thinks is None:
            return problem
        return replace(problem, template=problem.template | {SWITCH: thinks})
    if thinks is None:
        return problem
    rest = {name: value for name, value in problem.template.items() if name != SWITCH}
    return replace(problem, messages=tagged(problem.messages, thinks), template=rest)


def tagged(turns: list[dict[str, Any]], thinks: bool) -> list[dict[str, Any]]:
    """With the tag behind the last turn of the user. Raises TaskError where there is none."""
    tag = _TAGS[thinks]
    for place in range(len(turns) - 1, -1, -1):
        if turns[place]["role"] == "user":
            said = turns[place] | {"content": turns[place]["content"] + tag}
            return [*turns[:place], said, *turns[place + 1 :]]
    raise TaskError(f"no user turn that could end with{tag}")
