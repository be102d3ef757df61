"""The answer to /v1/responses: the response whole, or its events in the order of the spec.

created, in_progress ── item added ── part added ── delta* ── done … ── completed or failed, [DONE]
"""

import secrets
import time
from collections.abc import AsyncIterator
from itertools import count
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
from interlock.serve.http.streaming import DONE, named_event
from interlock.serve.requests.schemas import ResponsesRequest

_PREFIX = {BlockKind.THINKING: "rs", BlockKind.TEXT: "msg", BlockKind.CALL: "fc"}


class ResponseReply:
    """What one request is told."""

    def __init__(self, fields: ResponsesRequest, chat: Chat, endpoint: Endpoint) -> None:
        self._fields, self._name = fields, endpoint.name
        self._read = BlockReader(chat, endpoint)
        self.id = f"resp_{secrets.token_hex(16)}"
        self._created = int(time.time())
        self._ids: dict[int, str] = {}
        self._numbers = count()

    async def whole(self, answering: Answering) -> dict[str, Any]:
        """The response."""
        while heard := await answering.next():
            for _, told in heard:
                if isinstance(told, Piece):
                    self._read.push(told)
        items = [self._item(block) for block in blocks_of(self._read.reader.answer)]
        return self._response(self._status, items, answering)

    async def chunks(self, answering: Answering) -> AsyncIterator[bytes]:
        """The events."""
        heard = await answering.next()
        begun = self._response("in_progress", [], None)
        yield self._event("response.created", response=begun) + self._event(
            "response.in_progress", response=begun
        )
        while heard:
            out = b"".join(
                self._told(event)
                for _, told in heard
                if isinstance(told, Piece)
                for event in self._read.push(told)
            )
            if out:
                yield out
            heard = await answering.next()
        items = [self._item(block) for block in self._read.blocks.all]
        response = self._response(self._status, items, answering)
        yield self._event(f"response.{self._status}", response=response) + DONE

    @property
    def _status(self) -> str:
        return "incomplete" if self._read.cut else "completed"

    def _told(self, event: BlockEvent) -> bytes:
        block = event.block
        match event.kind:
            case BlockEventKind.BEGIN:
                added = self._item(block, "in_progress")
                out = self._event(
                    "response.output_item.added", output_index=block.number, item=added
                )
                if block.kind is not BlockKind.CALL:
                    part = self._part(block)
                    out += self._event(
                        "response.content_part.added", **self._place(block), part=part
                    )
                return out
            case BlockEventKind.MORE:
                name = f"response.{_EVENTS[block.kind]}.delta"
                more: dict[str, Any] = {"logprobs": []} if block.kind is BlockKind.TEXT else {}
                return self._event(name, **self._place(block), delta=event.text, **more)
        return self._ended(block)

    def _ended(self, block: AnswerBlock) -> bytes:
        name, place = f"response.{_EVENTS[block.kind]}.done", self._place(block)
        if block.kind is BlockKind.CALL:
            out = self._event(name, **place, name=block.name, arguments=block.text)
        else:
            more: dict[str, Any] = {"logprobs": []} if block.kind is BlockKind.TEXT else {}
            out = self._event(name, **place, text=block.text, **more)
            out += self._event("response.content_part.done", **place, part=self._part(block))
        item = self._item(block)
        return out + self._event("response.output_item.done", output_index=block.number, item=item)

    def _place(self, block: AnswerBlock) -> dict[str, Any]:
        place = {"item_id": self._id(block), "output_index": block.number}
        return place if block.kind is BlockKind.CALL else place | {"content_index": 0}

    def _id(self, block: AnswerBlock) -> str:
        made = f"{_PREFIX[block.kind]}_{secrets.token_hex(16)}"
        return self._ids.setdefault(block.number, made)

    def _item(self, block: AnswerBlock, status: str = "") -> dict[str, Any]:
        begun = status == "in_progress"
        broken = not block.whole or (self._read.cut and block is self._last)
        common = {
            "id": self._id(block),
            "status": status or ("incomplete" if broken else "completed"),
        }
        match block.kind:
            case BlockKind.CALL:
                call = {"type": "function_call", "call_id": block.call, "name": block.name}
                return common | call | {"arguments": block.text}
            case BlockKind.TEXT:
                content = [] if begun else [self._part(block)]
                return common | {"type": "message", "role": "assistant", "content": content}
        content = [] if begun else [self._part(block)]
        return common | {"type": "reasoning", "summary": [], "content": content}

    @property
    def _last(self) -> AnswerBlock | None:
        return self._read.blocks.all[-1] if self._read.blocks.all else None

    @staticmethod
    def _part(block: AnswerBlock) -> dict[str, Any]:
        if block.kind is BlockKind.THINKING:
            return {"type": "reasoning_text", "text": block.text}
        return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}

    def failed(self, answering: Answering, refusal: Refusal) -> bytes:
        """The end of a stream that fails: the error, and the response as far as it came."""
        told = refusal.tree["error"]
        error = {"code": told["code"] or "server_error", "message": told["message"]}
        items = [self._item(block) for block in self._read.blocks.all]
        response = self._response("failed", items, answering) | {"error": error}
        events = (
            self._event("error", **error, param=None),
            self._event("response.failed", response=response),
        )
        return b"".join(events) + DONE

    def _event(self, kind: str, /, **members: Any) -> bytes:
        return named_event(kind, {"sequence_number": next(self._numbers), **members})

    def _response(
        self, status: str, items: list[dict[str, Any]], answering: Answering | None
    ) -> dict[str, Any]:
        fields = self._fields
        over = {"reason": "max_output_tokens"} if status == "incomplete" else None
        effort = None if fields.reasoning is None else fields.reasoning.effort
        text = {"format": {"type": "text"}, "verbosity": "medium"} | (fields.text or {})
        told: dict[str, Any] = {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": over,
            "instructions": fields.instructions,
            "max_output_tokens": fields.max_output_tokens,
            "model": self._name,
            "output": items,
            "parallel_tool_calls": fields.parallel_tool_calls is not False,
            "reasoning": {"effort": effort, "summary": None},
            "temperature": 1.0 if fields.temperature is None else fields.temperature,
            "text": text,
            "tool_choice": fields.tool_choice or "auto",
            "tools": [_told_tool(tool) for tool in fields.tools or []],
            "top_p": 1.0 if fields.top_p is None else fields.top_p,
            "metadata": fields.metadata or {},
            "usage": None if answering is None else self._usage(answering),
        }
        way = {} if answering is None else tags(answering.provenance)
        return told | _SAME | way

    def _usage(self, answering: Answering) -> dict[str, Any]:
        spent = answering.spent
        return {
            "input_tokens": spent.prompt,
            "input_tokens_details": {"cached_tokens": spent.cached},
            "output_tokens": spent.drawn,
            "output_tokens_details": {"reasoning_tokens": self._read.reader.reasoning_tokens},
            "total_tokens": spent.prompt + spent.drawn,
        }


_EVENTS = {
    BlockKind.THINKING: "reasoning_text",
    BlockKind.TEXT: "output_text",
    BlockKind.CALL: "function_call_arguments",
}
# What no request can change here.
_SAME: dict[str, Any] = {
    "background": False,
    "frequency_penalty": 0.0,
    "max_tool_calls": None,
    "presence_penalty": 0.0,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "service_tier": "default",
    "store": False,
    "top_logprobs": 0,
    "truncation": "disabled",
    "user": None,
}


def _told_tool(tool: dict[str, Any]) -> dict[str, Any]:
    return {"description": None, "parameters": None, "strict": None} | tool
