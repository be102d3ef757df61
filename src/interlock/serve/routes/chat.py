"""POST /v1/chat/completions: a conversation, answered."""

from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from interlock.serve.answering import Answering
from interlock.serve.asked import asked, documented, endpoint_of
from interlock.serve.chatting import Chat, ChatReply, Keeper, prepare
from interlock.serve.gate import asker
from interlock.serve.replies import answered, streamed
from interlock.serve.schemas import ChatRequest
from interlock.serve.unsupported import CHAT

router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra=documented(ChatRequest, CHAT))
async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    fields = await asked(request, ChatRequest, CHAT)
    chat = await prepare(fields, endpoint_of(request), asker(request.scope))
    return await reply(request, chat)


async def reply(request: Request, chat: Chat, keeper: Keeper | None = None) -> Response:
    """Have it drawn, and tell it. Raises Refusal."""
    endpoint = endpoint_of(request)
    told = ChatReply(chat, endpoint, keeper)
    then = None if keeper is None else keeper.close
    answering = Answering(endpoint, [chat.generation], told.id, then)
    if chat.fields.stream:
        return await streamed(request, answering, partial(told.chunks, answering))
    return await answered(request, answering, partial(told.whole, answering))
