"""Whether the messages that a client sends back are those it was told.

    messages ──> fingerprints, each over all messages up to it ──> recorded answers that end there

What the assistant said is told apart by content and tool calls. Clients leave thinking out, write
the arguments of a tool call anew with other spaces and another order of keys, call an empty content
null, and trim it; none of that makes another turn. Every other message counts to the letter.
"""

import json
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

from interlock.models.chat import Messages

_written = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def fingerprints(messages: Messages) -> Iterator[bytes]:
    """[n]: of the first message, of the first two, …"""
    told = b""
    for message in messages:
        said = _spoken(message) if message.get("role") == "assistant" else _whole(message)
        told = blake2b(told + canonical(said), digest_size=16).digest()
        yield told


def answered(before: bytes, message: dict[str, Any]) -> bytes:
    """Of the messages with the fingerprint `before`, and this answer to them."""
    return blake2b(before + canonical(_spoken(message)), digest_size=16).digest()


def canonical(value: Any) -> bytes:
    return _written(value).encode()


def likeness(message: dict[str, Any], recorded: dict[str, Any]) -> int | None:
    """Of what a client sent and an answer with the same fingerprint: the more, the likelier it is
    that one. None: the thinking that it sent is not that of the answer.
    """
    sent, thought = reasoning(message), reasoning(recorded)
    if sent and sent != thought:
        return None
    same = _call_ids(message) == _call_ids(recorded)
    return 2 * (sent == thought) + same


def reasoning(message: dict[str, Any]) -> str:
    """What was thought, under either of its two names."""
    return str(message.get("reasoning_content") or message.get("reasoning") or "").strip()


def content(message: dict[str, Any]) -> str:
    """The text of a message, of its parts too."""
    told = message.get("content") or ""
    if isinstance(told, str):
        return told
    return "".join(str(part.get("text", "")) for part in told if isinstance(part, dict))


def _spoken(message: dict[str, Any]) -> list[Any]:
    calls = [call.get("function") or {} for call in message.get("tool_calls") or []]
    return ["assistant", content(message).strip(), [_call(call) for call in calls]]


def _call(function: dict[str, Any]) -> list[Any]:
    arguments = function.get("arguments") or "{}"
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
        return [function.get("name"), _written(value)]
    except (ValueError, RecursionError):  # what the model wrote: compared as it stands
        return [function.get("name"), str(arguments).strip()]


def _whole(message: dict[str, Any]) -> dict[str, Any]:
    """Without the keys that have no value; a text in one part is that text."""
    kept = {key: value for key, value in message.items() if value is not None}
    parts = kept.get("content")
    if isinstance(parts, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in parts
    ):
        kept["content"] = content(message)
    return kept


def _call_ids(message: dict[str, Any]) -> list[Any]:
    return [call.get("id") for call in message.get("tool_calls") or []]
