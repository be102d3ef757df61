"""Sessions and the chat route: a request's conversation is asked of a session."""

from interlock.serve.prompting import Conversation
from interlock.serve.sessions.bridge import Asked


def asked_of(conversation: Conversation) -> Asked:
    """What a session is told of a chat request. Text that users typed stays text there too."""
    settings = conversation.settings | {"tools": [tool.told for tool in conversation.tools]}
    return Asked(conversation.turns, conversation.render, conversation.encode, settings)
