"""Whatever stands in a request's fields: it is read, or it is a mistake in one line."""

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from interlock.serve.dialects import messages, responses
from interlock.serve.prompts.fields import FieldError
from interlock.serve.prompts.turns import tools_of, turns_of
from interlock.serve.structure.choosing import choice_of

NAMES = [
    "type",
    "role",
    "content",
    "text",
    "user",
    "assistant",
    "function",
    "name",
    "parameters",
    "tool_calls",
    "arguments",
    "id",
    "input",
    "output",
    "input_text",
    "input_schema",
    "tool_use_id",
    "thinking",
    "summary",
    "strict",
    "mode",
    "tools",
    "format",
    "auto",
    "any",
    "none",
    "required",
    "json_schema",
    "call_id",
    "{}",
]
WORDS = st.sampled_from([*NAMES, "\x00"])
SCALARS = st.none() | st.booleans() | st.integers(-5, 10**20) | WORDS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=12,
)
KINDS = [
    "message",
    "reasoning",
    "function_call",
    "function_call_output",
    "text",
    "tool_use",
    "tool_result",
    "thinking",
    "function",
    "custom",
    "allowed_tools",
    "json_schema",
    "enabled",
]
MEMBERS = st.dictionaries(WORDS, VALUES, max_size=5)
ITEMS = VALUES | st.builds(
    lambda kind, more: {**more, "type": kind}, st.sampled_from(KINDS), MEMBERS
)


def tried(read: Callable[..., Any], *given: Any) -> None:
    try:
        read(*given)
    except FieldError as error:
        assert error.param and "\n" not in str(error)


@given(st.lists(ITEMS, max_size=3) | VALUES, ITEMS)
def test_every_value_is_read_or_refused(many: Any, one: Any) -> None:
    said = [{"role": "user", "content": many}, {"role": "assistant", "content": many}]
    tried(responses.messages_of, None, many)
    tried(messages.turns_of_messages, one, said)
    tried(turns_of, many)
    tried(turns_of, [{"role": "assistant", "content": "", "tool_calls": many}])
    for read in (responses.tools_for_chat, messages.tools_of_messages, tools_of):
        tried(read, many)
    for read in (
        responses.choice_for_chat,
        responses.format_for_chat,
        messages.choice_of_messages,
        messages.format_of_messages,
    ):
        tried(read, one)
    tried(choice_of, one, [])
    tried(messages.thinking_of, one, True, True)
