"""The requests, strictly: no unknown field, no text for a number, no number beyond its range.

a tree (bodies.py) ──validated──> ChatRequest, CompletionRequest, …
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from interlock.serve.http.refusals import Refusal, wrong
from interlock.serve.requests.unsupported import Inert, drop

_64_BITS = 2**63
Seed = Annotated[int, Field(ge=-_64_BITS, lt=_64_BITS)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Amount = Annotated[int, Field(ge=1, le=10**9)]
Text = Annotated[str, Field(max_length=4_000_000)]
Label = Annotated[str, Field(max_length=512)]
StopText = Annotated[str, Field(min_length=1, max_length=1000)]
Stops = StopText | Annotated[list[StopText], Field(max_length=4)]
BiasKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]
Bias = Annotated[float, Field(ge=-100, le=100)]


class RequestModel(BaseModel):
    """Base of every request and of what is in it."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(RequestModel):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Literal[False] | None = None


class SamplingFields(RequestModel):
    """What both kinds of completion have."""

    model: Annotated[str, Field(min_length=1, max_length=500)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Seed | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=10**9)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: Stops | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    logit_bias: Annotated[dict[BiasKey, Bias], Field(max_length=1024)] | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=64)] | None = None


# Messages, tools and formats are looked at where they are used (prompting.py, structure.py):
# whether one can be served depends on the model.
_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"type": ["string", "array", "null"]},
    },
}
_TOOL = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {"type": {"const": "function"}, "function": {"type": "object"}},
}
Messages = Annotated[
    list[dict[str, Any]], Field(min_length=1, json_schema_extra={"items": _MESSAGE})
]
Tools = Annotated[list[dict[str, Any]], Field(json_schema_extra={"items": _TOOL})]


class ChatRequest(SamplingFields):
    messages: Messages
    max_completion_tokens: Amount | None = None
    max_tokens: Amount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Tools | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    thinking_budget: Annotated[int, Field(ge=0, le=10**9)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ReasoningAsked(RequestModel):
    effort: str | None = None
    summary: None = None


class ResponsesRequest(RequestModel):
    """/v1/responses. Its items, tools and formats are looked at in responses.py."""

    model: Annotated[str, Field(min_length=1, max_length=500)]
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1)]
    instructions: Text | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: ReasoningAsked | None = None
    max_output_tokens: Amount | None = None
    metadata: Annotated[dict[str, Label], Field(max_length=16)] | None = None  # told back
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=10**9)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Seed | None = None
    thinking_budget: Annotated[int, Field(ge=0, le=10**9)] | None = None


class CountRequest(RequestModel):
    """/v1/messages/count_tokens. Blocks and tools are looked at in messages.py."""

    model: Annotated[str, Field(min_length=1, max_length=500)]
    messages: Messages
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None


class MessagesRequest(CountRequest):
    """/v1/messages."""

    max_tokens: Amount
    stop_sequences: Annotated[list[StopText], Field(max_length=4)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=10**9)] | None = None


def _prompt(value: Any) -> Any:
    """Text, texts, token ids, or lists of token ids."""
    many = value if isinstance(value, list) else [value]
    if not many:
        raise ValueError("give a text, texts, token ids, or lists of token ids")
    texts = all(isinstance(each, str) for each in many)
    ids = isinstance(value, list) and _are_ids(value)
    lists = isinstance(value, list) and all(isinstance(e, list) and _are_ids(e) for e in value)
    if not (texts or ids or lists):
        raise ValueError("give a text, texts, token ids, or lists of token ids")
    return value


def _are_ids(value: list[Any]) -> bool:
    return all(type(each) is int and 0 <= each < 2**31 for each in value)


_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "items": {"type": "string"}},
        {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "array",
                "minItems": 1,
                "items": {"type": "integer", "minimum": 0},
            },
        },
    ]
}


class CompletionRequest(SamplingFields):
    prompt: Annotated[Any, AfterValidator(_prompt), Field(json_schema_extra=_PROMPT_SCHEMA)]
    max_tokens: Annotated[int, Field(ge=0, le=10**9)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    add_special_tokens: bool | None = None


class GenerateSampling(RequestModel):
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Amount | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=10**9)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Seed | None = None
    stop: Stops | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    logit_bias: Annotated[dict[BiasKey, Bias], Field(max_length=1024)] | None = None
    ignore_eos: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=64)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=64)] | None = None


class GenerateRequest(RequestModel):
    """/inference/v1/generate: token ids in, token ids out."""

    model: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    token_ids: Annotated[list[TokenId], Field(min_length=1)]
    stream: bool | None = None
    sampling_params: GenerateSampling | None = None


class TokenizeRequest(RequestModel):
    """Of a text, or of a conversation."""

    model: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: Literal[True] | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(RequestModel):
    model: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    tokens: list[TokenId]


class PinRequest(RequestModel):
    version: Annotated[int, Field(ge=0, lt=_64_BITS)]


class DrainRequest(RequestModel):
    replica: Annotated[str, Field(min_length=1, max_length=200)]
    on: bool = True


class SessionLimits(RequestModel):
    turns: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    tokens: Annotated[int, Field(ge=1, le=10**9)] | None = None  # recorded, given and sampled


class SessionRequest(RequestModel):
    """POST /sessions: of an episode that is to be recorded."""

    seed: Seed | None = None
    past_thinking: Literal["template", "keep"] | None = None
    limits: SessionLimits | None = None
    metadata: Annotated[dict[str, Any], Field(max_length=64)] | None = None


Request = TypeVar("Request", bound=RequestModel)


def validated(
    tree: dict[str, Any], kind: type[Request], inert: dict[str, Inert] | None = None
) -> Request:
    """The request that a tree is. Raises Refusal that names the first field that is wrong."""
    try:
        return kind.model_validate(drop(tree, inert or {}))
    except ValidationError as error:
        raise _explained(error) from None


def _explained(error: ValidationError) -> Refusal:
    """Of a union the complaint that got furthest: the one about what was meant."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    first = found[0]["loc"][0] if found[0]["loc"] else None
    same = [each for each in found if each["loc"][:1] == (first,)]
    worst = max(same, key=_got_far)
    param = _path(worst["loc"])
    match worst["type"]:
        case "extra_forbidden":
            return wrong(param, f"unknown field {param!r}; leave it out", "unknown_parameter")
        case "missing":
            return wrong(param, f"{param!r} is missing", "missing_parameter")
    said = worst["msg"].removeprefix("Value error, ")
    return wrong(param, f"{param}: {said[:1].lower()}{said[1:]}")


def _got_far(error: Any) -> tuple[int, bool]:
    """Places that were passed; of equals, one whose kind of value was the right one."""
    return sum(map(_names_a_place, error["loc"])), not error["type"].endswith("_type")


def _names_a_place(part: int | str) -> bool:
    """Pydantic puts names of a union's members among those of fields."""
    return isinstance(part, int) or (part.isidentifier() and part not in _MEMBERS)


_MEMBERS = frozenset({"str", "int", "float", "bool", "none"})


def _path(parts: tuple[int | str, ...]) -> str:
    """("messages", 0, "content", "str") is messages[0].content."""
    told = ""
    for part in parts:
        if isinstance(part, int):
            told += f"[{part}]"
        elif part == "[key]" or not _names_a_place(part):
            continue
        else:
            told += f".{part}" if told else part
    return told
