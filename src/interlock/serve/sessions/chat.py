"""Chat in a session: its prompt is the record's, and what is drawn is recorded.

    ChatRequest ── prepare ──> conversation ──begin──> Draft.prompt ──> Chat ──> a route, or ask
                                                          └── take, answered <──┘

`ask` is the whole route without HTTP, for environments that run in the endpoint's process:

    answer = await ask(endpoint, session, {"messages": [{"role": "user", "content": "12 + 30?"}]})
    answer["choices"][0]["message"]["content"]
"""

from typing import Any

from msgspec.structs import replace

from interlock.serve.dialects.chatting import Chat, ChatReply, prepare
from interlock.serve.endpoint import Endpoint
from interlock.serve.http.refusals import wrong
from interlock.serve.prompts.prompting import ChatPrompt, Conversation
from interlock.serve.requests.schemas import ChatRequest, validated
from interlock.serve.requests.unsupported import CHAT
from interlock.serve.sessions.bridge import Asked
from interlock.serve.sessions.session import Draft, RecordedSession


def asked_of(conversation: Conversation) -> Asked:
    """What a session is told of a chat request. Text that users typed stays text there too."""
    settings = conversation.settings | {"tools": [tool.told for tool in conversation.tools]}
    return Asked(conversation.turns, conversation.render, conversation.encode, settings)


class RecordedTurn:
    """One request of a session: `prepare` is what its route has to call."""

    def __init__(self, session: RecordedSession) -> None:
        self._session = session
        self.draft: Draft | None = None

    async def prepare(self, fields: ChatRequest, endpoint: Endpoint, key: str) -> Chat:
        """Its prompt is the record's, and it tells the record. Raises Refusal."""

        def recorded(conversation: Conversation) -> ChatPrompt:
            self.draft = self._session.begin(asked_of(conversation))
            text = self.draft.text
            return ChatPrompt(self.draft.prompt, text, endpoint.form.stage(text))

        try:
            chat = await prepare(fields, endpoint, key, recorded)
        except BaseException:
            if self.draft is not None:
                self.draft.close()
            raise
        assert self.draft is not None
        if fields.seed is None:
            chat = chat._replace(generation=replace(chat.generation, seed=self.draft.seed))
        return chat._replace(keeper=self.draft)


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
    chat = await RecordedTurn(session).prepare(fields, endpoint, key)
    told = ChatReply(chat, endpoint)
    answering = chat.answering(endpoint, told.id)
    try:
        whole = await told.whole(answering)
    except BaseException as error:
        answering.over(error)
        raise
    answering.over()
    return whole
