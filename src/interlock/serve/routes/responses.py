"""POST /v1/responses: a conversation as items, answered; nothing is kept of it."""

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from interlock.errors import InterlockError
from interlock.serve.dialects.chatting import Prepare, prepare
from interlock.serve.dialects.response_reply import ResponseReply
from interlock.serve.dialects.responses import (
    choice_for_chat,
    format_for_chat,
    messages_of,
    tools_for_chat,
)
from interlock.serve.http.gate import asker
from interlock.serve.http.refusals import Refusal, refusal_of
from interlock.serve.http.replies import answered, streamed
from interlock.serve.requests.asked import asked, documented, endpoint_of
from interlock.serve.requests.schemas import ChatRequest, ResponsesRequest, validated
from interlock.serve.requests.unsupported import RESPONSES

router = APIRouter()


@router.post("/v1/responses", openapi_extra=documented(ResponsesRequest, RESPONSES))
async def responses(request: Request) -> Response:
    """Answer a conversation."""
    return await answer_responses(request, prepare)


async def answer_responses(request: Request, ready: Prepare) -> Response:
    """Raises Refusal."""
    endpoint = endpoint_of(request)
    fields = await asked(request, ResponsesRequest, RESPONSES)
    try:
        tree = _chat(fields)
    except InterlockError as error:
        raise refusal_of(error) from None
    try:
        chat = await ready(validated(tree, ChatRequest), endpoint, asker(request.scope))
    except Refusal as refusal:
        refusal.param = _own_name(refusal.param)
        raise
    told = ResponseReply(fields, chat, endpoint)
    answering = chat.answering(endpoint, told.id)
    if fields.stream:
        chunks, last_words = partial(told.chunks, answering), partial(told.failed, answering)
        return await streamed(request, answering, chunks, last_words)
    return await answered(request, answering, partial(told.whole, answering))


def _own_name(param: str | None) -> str | None:
    """What a field of the chat is called here."""
    for theirs, ours in _NAMES:
        if param is not None and param.startswith(theirs):
            return ours + param[len(theirs) :]
    return param


_NAMES = (
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("max_completion_tokens", "max_output_tokens"),
    ("reasoning_effort", "reasoning.effort"),
    ("messages", "input"),
)


def _chat(fields: ResponsesRequest) -> dict[str, Any]:
    """The same request of a chat."""
    effort = None if fields.reasoning is None else fields.reasoning.effort
    tree = {
        "model": fields.model,
        "messages": messages_of(fields.instructions, fields.input),
        "tools": tools_for_chat(fields.tools),
        "tool_choice": choice_for_chat(fields.tool_choice),
        "parallel_tool_calls": fields.parallel_tool_calls,
        "response_format": format_for_chat(fields.text),
        "reasoning_effort": effort,
        "max_completion_tokens": fields.max_output_tokens,
        "stream": fields.stream,
    }
    same = ("temperature", "top_p", "top_k", "min_p", "seed", "thinking_budget")
    tree |= {name: getattr(fields, name) for name in same}
    return {name: value for name, value in tree.items() if value is not None}
