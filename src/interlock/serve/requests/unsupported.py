"""Fields of OpenAI's and vLLM's requests that nothing here is done about.

Each is taken only with the values that ask for nothing; any other value is a mistake that names the
field, never ignored. What is in no table and no schema is unknown, which is a mistake too.
"""

from typing import Any, NamedTuple

from interlock.serve.http.refusals import wrong

_LONGEST = 512  # characters of what only names somebody


class Inert(NamedTuple):
    """The values of a field that ask for nothing; null always does."""

    values: tuple[Any, ...] = ()
    names: bool = False  # any short text: it says who asks, and is kept nowhere
    pairs: bool = False  # an object of short texts, likewise

    def allows(self, value: Any) -> bool:
        """Whether the value asks for nothing."""
        if value is None or any(type(value) is not bool and value == v for v in self.values):
            return True
        if isinstance(value, bool):
            return any(value is v for v in self.values)
        if self.names:
            return isinstance(value, str) and len(value) <= _LONGEST
        return self.pairs and isinstance(value, dict) and _short(value)

    @property
    def schema(self) -> dict[str, Any]:
        """For the OpenAPI document."""
        if self.names:
            return {"type": ["string", "null"], "maxLength": _LONGEST}
        if self.pairs:
            inner = {"type": "string", "maxLength": _LONGEST}
            return {"type": ["object", "null"], "maxProperties": 16, "additionalProperties": inner}
        return {"enum": [*self.values, None]}


def _short(value: dict[str, Any]) -> bool:
    texts = [*value, *value.values()]
    return len(value) <= 16 and all(isinstance(t, str) and len(t) <= _LONGEST for t in texts)


_EVERYWHERE = {
    "presence_penalty": Inert((0,)),
    "frequency_penalty": Inert((0,)),
    "repetition_penalty": Inert((1,)),
    "length_penalty": Inert((1,)),
    "use_beam_search": Inert((False,)),
    "min_tokens": Inert((0,)),
    "priority": Inert((0,)),
    "include_stop_str_in_output": Inert((False,)),
    "skip_special_tokens": Inert((True,)),
    "spaces_between_special_tokens": Inert((True,)),
    "truncate_prompt_tokens": Inert(),
    "user": Inert(names=True),
}
CHAT = _EVERYWHERE | {
    "store": Inert((False,)),
    "service_tier": Inert(("auto", "default")),
    "modalities": Inert((["text"],)),
    "audio": Inert(),
    "prediction": Inert(),
    "web_search_options": Inert(),
    "functions": Inert(),
    "function_call": Inert(),
    "verbosity": Inert(("medium",)),
    "metadata": Inert(pairs=True),
    "safety_identifier": Inert(names=True),
    "prompt_cache_key": Inert(names=True),
    "prompt_cache_retention": Inert(("in_memory", "in-memory")),
    "add_generation_prompt": Inert((True,)),
    "continue_final_message": Inert((False,)),
    "echo": Inert((False,)),
    "chat_template": Inert(),  # code is never taken from a request
    "mm_processor_kwargs": Inert(),
    "documents": Inert(),
}
RESPONSES = {
    "store": Inert((False,)),  # nothing is kept
    "previous_response_id": Inert(),
    "conversation": Inert(),
    "prompt": Inert(),
    "background": Inert((False,)),
    "include": Inert(([],)),
    "max_tool_calls": Inert(),
    "truncation": Inert(("disabled",)),
    "service_tier": Inert(("auto", "default")),
    "top_logprobs": Inert((0,)),
    "stream_options": Inert(({"include_obfuscation": False},)),
    "presence_penalty": Inert((0,)),
    "frequency_penalty": Inert((0,)),
    "repetition_penalty": Inert((1,)),  # a gateway in front writes both out
    "priority": Inert((0,)),
    "user": Inert(names=True),
    "safety_identifier": Inert(names=True),
    "prompt_cache_key": Inert(names=True),
    "prompt_cache_retention": Inert(("in_memory", "in-memory")),
}
MESSAGES = {
    "metadata": Inert(pairs=True),
    "service_tier": Inert(("auto", "standard_only")),
    "container": Inert(),
    "mcp_servers": Inert(([],)),
    "inference_geo": Inert(),
    "cache_control": Inert(({"type": "ephemeral"},)),  # every prompt's beginning is kept
}
COMPLETION = _EVERYWHERE | {"suffix": Inert(("",))}


def drop(tree: dict[str, Any], table: dict[str, Inert]) -> dict[str, Any]:
    """The request without the fields of a table. Raises Refusal on one that asks for something."""
    for name in table.keys() & tree.keys():
        if not table[name].allows(tree[name]):
            raise wrong(name, f"{name!r} is not supported; leave it out", "unsupported_parameter")
    return {name: value for name, value in tree.items() if name not in table}
