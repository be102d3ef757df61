"""/sessions: episodes whose every token is recorded.

    POST /sessions ─> id    GET /sessions, GET /sessions/ID    DELETE /sessions/ID
    POST /sessions/ID/v1/chat/completions, …/responses, …/messages: as without a session

A session belongs to the key that made it; to others it is unknown.
"""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from interlock.errors import InterlockError
from interlock.serve.dialects.chatting import Prepare
from interlock.serve.http.gate import asker
from interlock.serve.http.refusals import Refusal, refusal_of, wrong
from interlock.serve.http.streaming import encode
from interlock.serve.requests.asked import asked, documented, endpoint_of
from interlock.serve.requests.schemas import (
    ChatRequest,
    MessagesRequest,
    ResponsesRequest,
    SessionRequest,
)
from interlock.serve.requests.unsupported import CHAT, MESSAGES, RESPONSES
from interlock.serve.routes import models
from interlock.serve.routes.chat import answer_chat
from interlock.serve.routes.messages import answer_messages
from interlock.serve.routes.responses import answer_responses
from interlock.serve.sessions import telling
from interlock.serve.sessions.chat import RecordedTurn
from interlock.serve.sessions.session import PastThinking, RecordedSession, SessionTerms
from interlock.serve.sessions.store import SessionUnknown

router = APIRouter(prefix="/sessions")

_METADATA_BYTES = 16_384


@router.post("", openapi_extra=documented(SessionRequest), status_code=201)
async def begin(request: Request) -> Response:
    """Begin to record an episode."""
    terms = _terms(await asked(request, SessionRequest))
    try:
        # In a thread: the first looks at how the template closes a turn.
        create = endpoint_of(request).sessions.create
        session = await asyncio.to_thread(create, asker(request.scope), terms)
    except InterlockError as error:
        raise refusal_of(error) from None
    return _json(telling.overview(session), 201)


@router.get("")
async def owned(request: Request) -> Response:
    """The sessions of this key, those first that were not asked for the longest."""
    found = endpoint_of(request).sessions.owned(asker(request.scope))
    return _json({"object": "list", "data": [telling.overview(each) for each in found]})


@router.get("/{session_id}")
async def record(request: Request, session_id: str) -> Response:
    """What was recorded: samples of given and sampled segments, exact to the token."""
    return _json(telling.told(_session(request, session_id)))


@router.delete("/{session_id}")
async def delete(request: Request, session_id: str) -> Response:
    """Forget a session with all that it recorded."""
    session = _session(request, session_id)
    endpoint_of(request).sessions.delete(session.id, session.owner)
    return _json({"id": session.id, "object": "session.deleted", "deleted": True})


@router.get("/{session_id}/v1/models")
async def model_list(request: Request, session_id: str) -> Response:
    """As /v1/models."""
    _session(request, session_id)
    return await models.models(request)


@router.post("/{session_id}/v1/chat/completions", openapi_extra=documented(ChatRequest, CHAT))
async def chat_completions(request: Request, session_id: str) -> Response:
    """Answer a conversation, and record it."""
    return await _recorded(request, session_id, answer_chat)


@router.post("/{session_id}/v1/responses", openapi_extra=documented(ResponsesRequest, RESPONSES))
async def responses(request: Request, session_id: str) -> Response:
    """As /v1/responses, and record it."""
    return await _recorded(request, session_id, answer_responses)


@router.post("/{session_id}/v1/messages", openapi_extra=documented(MessagesRequest, MESSAGES))
async def messages(request: Request, session_id: str) -> Response:
    """As /v1/messages, and record it."""
    return await _recorded(request, session_id, answer_messages)


async def _recorded(
    request: Request, session_id: str, answer: Callable[[Request, Prepare], Awaitable[Response]]
) -> Response:
    """Raises Refusal."""
    recording = RecordedTurn(_session(request, session_id, for_turn=True))
    response = await answer(request, recording.prepare)
    if (draft := recording.draft) is not None:
        response.headers["x-interlock-turn"] = str(draft.number)
        response.headers["x-interlock-turn-cause"] = draft.origin
    return response


def _session(request: Request, session_id: str, for_turn: bool = False) -> RecordedSession:
    """Raises Refusal."""
    sessions = endpoint_of(request).sessions
    find = sessions.for_turn if for_turn else sessions.get
    try:
        return find(session_id, asker(request.scope))
    except SessionUnknown as error:
        raise Refusal(404, str(error), "session_id", "session_not_found") from None
    except InterlockError as error:
        raise refusal_of(error) from None


def _terms(fields: SessionRequest) -> SessionTerms:
    metadata = fields.metadata or {}
    if len(msgspec.json.encode(metadata)) > _METADATA_BYTES:
        raise wrong("metadata", f"is longer than {_METADATA_BYTES} bytes; keep it beside the id")
    usual, limits = SessionTerms(), fields.limits
    return SessionTerms(
        seed=fields.seed or 0,
        most_turns=(limits and limits.turns) or usual.most_turns,
        most_tokens=(limits and limits.tokens) or usual.most_tokens,
        past_thinking=PastThinking(fields.past_thinking or usual.past_thinking),
        metadata=metadata,
    )


def _json(tree: object, status: int = 200) -> Response:
    return Response(encode(tree), status, media_type="application/json")
