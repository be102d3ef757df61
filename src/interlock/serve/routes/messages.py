"""POST /v1/messages and /v1/messages/count_tokens: blocks, answered or counted."""

from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from interlock.errors import InterlockError
from interlock.serve.dialects.chatting import Chat, Prepare, prepare
from interlock.serve.dialects.message_reply import MessageReply
from interlock.serve.dialects.messages import (
    choice_of_messages,
    format_of_messages,
    thinking_of,
    tools_of_messages,
    turns_of_messages,
)
from interlock.serve.endpoint import Endpoint
from interlock.serve.http.gate import asker
from interlock.serve.http.refusals import refusal_of
from interlock.serve.http.replies import answered, streamed
from interlock.serve.http.streaming import encode
from interlock.serve.requests.asked import asked, documented, endpoint_of
from interlock.serve.requests.schemas import ChatRequest, CountRequest, MessagesRequest, validated
from interlock.serve.requests.unsupported import MESSAGES

router = APIRouter()
Counted = TypeVar("Counted", bound=CountRequest)


@router.post("/v1/messages", openapi_extra=documented(MessagesRequest, MESSAGES))
async def messages(request: Request) -> Response:
    """Answer a conversation."""
    return await answer_messages(request, prepare)


async def answer_messages(request: Request, ready: Prepare) -> Response:
    """Raises Refusal."""
    fields, chat = await _chat(request, MessagesRequest, ready)
    endpoint = endpoint_of(request)
    told = MessageReply(chat, endpoint)
    answering = chat.answering(endpoint, told.id)
    if fields.stream:
        chunks = partial(told.chunks, answering)
        return await streamed(request, answering, chunks, told.failed)
    return await answered(request, answering, partial(told.whole, answering))


@router.post("/v1/messages/count_tokens", openapi_extra=documented(CountRequest, MESSAGES))
async def count_tokens(request: Request) -> Response:
    """How many tokens a conversation is."""
    _, chat = await _chat(request, CountRequest, prepare)
    body = encode({"input_tokens": len(chat.prompt.tokens)})
    return Response(body, media_type="application/json")


async def _chat(request: Request, kind: type[Counted], ready: Prepare) -> tuple[Counted, Chat]:
    endpoint = endpoint_of(request)
    fields = await asked(request, kind, MESSAGES)
    try:
        tree = _tree(fields, endpoint)
    except InterlockError as error:
        raise refusal_of(error) from None
    return fields, await ready(validated(tree, ChatRequest), endpoint, asker(request.scope))


def _tree(fields: CountRequest, endpoint: Endpoint) -> dict[str, Any]:
    """The same request of a chat."""
    form = endpoint.form
    choice, parallel = choice_of_messages(fields.tool_choice)
    tree: dict[str, Any] = {
        "model": fields.model,
        "messages": turns_of_messages(fields.system, fields.messages),
        "tools": tools_of_messages(fields.tools),
        "tool_choice": choice,
        "parallel_tool_calls": parallel,
        "response_format": format_of_messages(fields.output_config),
        **thinking_of(fields.thinking, form.family.thinking is not None, form.has_switch),
    }
    if isinstance(fields, MessagesRequest):
        tree |= {
            "max_tokens": fields.max_tokens,
            "stop": fields.stop_sequences or None,
            "stream": fields.stream,
            "temperature": fields.temperature,
            "top_p": fields.top_p,
            "top_k": fields.top_k,
        }
    return {name: value for name, value in tree.items() if value is not None}
