"""Chat in a session: its prompt is the record's, and what is drawn is recorded.

    ChatRequest ──prepare──> conversation ──begin──> Draft.prompt ──> Chat ── reply, ask
                                                       └── take, answered <──┘

`ask` is the whole route without HTTP, for environments that run in the endpoint's process:

    answer = await ask(endpoint, session, {"messages": [{"role": "user", "content": "12 + 30?"}]})
    answer["choices"][0]["message"]["content"]
"""

from typing import Any

from msgspec.structs import replace

from interlock.serve.answering import Answering
from interlock.serve.chatting import Chat, ChatReply, prepare
from interlock.serve.endpoint import Endpoint
from interlock.serve.prompting import ChatPrompt, Conversation
from interlock.serve.refusals import wrong
from interlock.serve.schemas import ChatRequest, validated
from interlock.serve.sessions.bridge import Asked
from interlock.serve.sessions.session import Draft, RecordedSession
from interlock.serve.unsupported import CHAT


def asked_of(conversation: Conversation) -> Asked:
    """What a session is told of a chat request. Text that users typed stays text there too."""
    settings = conversation.settings | {"tools": [tool.told for tool in conversation.tools]}
    return Asked(conversation.turns, conversation.render, conversation.encode, settings)


async def begin(
    fields: ChatRequest, endpoint: Endpoint, session: RecordedSession, key: str
) -> tuple[Chat, Draft]:
    """The request, and who records it: close that one. Raises Refusal."""
    drafts: list[Draft] = []

    def recorded(conversation: Conversation) -> ChatPrompt:
        draft = session.begin(asked_of(conversation))
        drafts.append(draft)
        return ChatPrompt(draft.prompt, draft.text, endpoint.form.stage(draft.text))

    try:
        chat = await prepare(fields, endpoint, key, recorded)
    except BaseException:
        for draft in drafts:
            draft.close()
        raise
    [draft] = drafts
    if fields.seed is None:
        chat = chat._replace(generation=replace(chat.generation, seed=draft.seed))
    return chat, draft


async def ask(
    endpoint: Endpoint, session: RecordedSession, body: dict[str, Any], key: str = ""
) -> dict[str, Any]:
    """The answer to a chat request, as the route tells it. On the endpoint's event loop.

    Args:
        body: as clients send it; without `model` the endpoint's is meant. It may not ask for a
            stream.

    Raises Refusal on what cannot be served.
    """
    fields = validated({"model": endpoint.name} | body, ChatRequest, CHAT)
    if fields.stream:
        raise wrong("stream", "an answer in one process is no stream; leave it out")
    chat, draft = await begin(fields, endpoint, session, key)
    try:
        told = ChatReply(chat, endpoint, draft)
        answering = Answering(endpoint, [chat.generation], told.id)
        try:
            whole = await told.whole(answering)
        except BaseException as error:
            answering.over(error)
            raise
        answering.over()
        return whole
    finally:
        draft.close()
