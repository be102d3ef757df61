"""The answer to /v1/messages: the message whole, or its events.

message_start ── content_block_start ── content_block_delta* ── content_block_stop, …
              ── message_delta: why it stopped, usage ── message_stop; or error
"""

import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

from interlock.records.serving import Piece
from interlock.serve.answering import Answering
from interlock.serve.dialects.blocks import (
    AnswerBlock,
    BlockEvent,
    BlockEventKind,
    BlockKind,
    BlockReader,
    blocks_of,
)
from interlock.serve.dialects.chatting import Chat
from interlock.serve.endpoint import Endpoint
from interlock.serve.http.refusals import Refusal
from interlock.serve.http.replies import tags
from interlock.serve.http.streaming import named_event


class MessageReply:
    """What one request is told."""

    def __init__(self, chat: Chat, endpoint: Endpoint) -> None:
        self._read = BlockReader(chat, endpoint)
        self.id = f"msg_{secrets.token_hex(12)}"
        self._common = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": endpoint.name,
        }

    async def whole(self, answering: Answering) -> dict[str, Any]:
        """The message."""
        while heard := await answering.next():
            for _, told in heard:
                if isinstance(told, Piece):
                    self._read.push(told)
        answer = self._read.reader.answer
        content = [_whole(block) for block in blocks_of(answer) if block.text or block.call]
        return {
            **self._common,
            "content": content,
            **self._stop(bool(answer.calls)),
            "usage": _usage(answering),
            **tags(answering.provenance),
        }

    async def chunks(self, answering: Answering) -> AsyncIterator[bytes]:
        """The events."""
        heard = await answering.next()
        usage = _usage(answering) | {"output_tokens": 0}
        begun = {
            **self._common,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
            **tags(answering.provenance, moved=False),
        }
        yield _event("message_start", message=begun)
        while heard:
            out = b"".join(
                _told(event)
                for _, told in heard
                if isinstance(told, Piece)
                for event in self._read.push(told)
            )
            if out:
                yield out
            heard = await answering.next()
        called = any(b.kind is BlockKind.CALL and b.whole for b in self._read.blocks.all)
        yield _event(
            "message_delta",
            delta=self._stop(called),
            usage=_usage(answering),
            interlock=answering.provenance.tree,
        ) + _event("message_stop")

    @staticmethod
    def failed(refusal: Refusal) -> bytes:
        """The end of a stream that fails: Anthropic's clients know no [DONE]."""
        return _event("error", **refusal.tree)

    def _stop(self, called: bool) -> dict[str, Any]:
        """Why it stopped."""
        hold = self._read.hold
        if hold is not None and hold.found is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": hold.found}
        reason = "max_tokens" if self._read.cut else "tool_use" if called else "end_turn"
        return {"stop_reason": reason, "stop_sequence": None}


def _told(event: BlockEvent) -> bytes:
    block = event.block
    match event.kind:
        case BlockEventKind.BEGIN:
            return _event("content_block_start", index=block.number, content_block=_begun(block))
        case BlockEventKind.MORE:
            delta = _DELTAS[block.kind](event.text)
            return _event("content_block_delta", index=block.number, delta=delta)
    signature = b""
    if block.kind is BlockKind.THINKING:
        delta = {"type": "signature_delta", "signature": ""}
        signature = _event("content_block_delta", index=block.number, delta=delta)
    return signature + _event("content_block_stop", index=block.number)


_DELTAS = {
    BlockKind.THINKING: lambda text: {"type": "thinking_delta", "thinking": text},
    BlockKind.TEXT: lambda text: {"type": "text_delta", "text": text},
    BlockKind.CALL: lambda text: {"type": "input_json_delta", "partial_json": text},
}


def _begun(block: AnswerBlock) -> dict[str, Any]:
    match block.kind:
        case BlockKind.THINKING:
            return {"type": "thinking", "thinking": "", "signature": ""}
        case BlockKind.TEXT:
            return {"type": "text", "text": ""}
    return {"type": "tool_use", "id": block.call, "name": block.name, "input": {}}


def _whole(block: AnswerBlock) -> dict[str, Any]:
    begun = _begun(block)
    match block.kind:
        case BlockKind.THINKING:
            return begun | {"thinking": block.text}
        case BlockKind.TEXT:
            return begun | {"text": block.text}
    return begun | {"input": json.loads(block.text)}


def _usage(answering: Answering) -> dict[str, Any]:
    spent = answering.spent
    return {
        "input_tokens": spent.prompt - spent.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": spent.cached,
        "output_tokens": spent.drawn,
    }


def _event(kind: str, /, **members: Any) -> bytes:
    return named_event(kind, members)
