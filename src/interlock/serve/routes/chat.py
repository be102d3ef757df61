"""POST /v1/chat/completions: a conversation, answered."""

from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from interlock.serve.dialects.chatting import ChatReply, Prepare, prepare
from interlock.serve.http.gate import asker
from interlock.serve.http.replies import answered, streamed
from interlock.serve.requests.asked import asked, documented, endpoint_of
from interlock.serve.requests.schemas import ChatRequest
from interlock.serve.requests.unsupported import CHAT

router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra=documented(ChatRequest, CHAT))
async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    return await answer_chat(request, prepare)


async def answer_chat(request: Request, ready: Prepare) -> Response:
    """Raises Refusal."""
    endpoint = endpoint_of(request)
    fields = await asked(request, ChatRequest, CHAT)
    chat = await ready(fields, endpoint, asker(request.scope))
    told = ChatReply(chat, endpoint)
    answering = chat.answering(endpoint, told.id)
    if chat.fields.stream:
        return await streamed(request, answering, partial(told.chunks, answering))
    return await answered(request, answering, partial(told.whole, answering))
