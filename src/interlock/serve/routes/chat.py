"""POST /v1/chat/completions: a conversation, answered.

messages, tools ──prompt──> Generation ──pieces──> what is thought, said and called ──> deltas
"""

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from interlock.errors import InterlockError
from interlock.records.serving import Generation, Piece, PromptScores
from interlock.serve import asking
from interlock.serve.answering import Answering
from interlock.serve.asked import asked, documented, endpoint_of
from interlock.serve.endpoint import Endpoint, new_id, new_seed
from interlock.serve.frames import Frames
from interlock.serve.gate import asker
from interlock.serve.pieces import Bit, ChoiceText
from interlock.serve.refusals import refusal_of, wrong
from interlock.serve.replies import answered, streamed, tags
from interlock.serve.schemas import ChatRequest
from interlock.serve.scores import chat_logprobs, prompt_logprobs
from interlock.serve.streaming import DONE
from interlock.serve.unsupported import CHAT

router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra=documented(ChatRequest, CHAT))
async def chat(request: Request) -> Response:
    """Answer a conversation."""
    endpoint = endpoint_of(request)
    fields = await asked(request, ChatRequest, CHAT)
    endpoint.check_model(fields.model)
    _check(fields, endpoint)
    prompt = await _prompt(fields, endpoint)
    generation = _generation(fields, prompt, endpoint, asker(request.scope))
    told = ChatReply(fields, endpoint, generation)
    answering = Answering(endpoint, [generation], told.id)
    if fields.stream:
        return await streamed(request, answering, partial(told.chunks, answering))
    return await answered(request, answering, partial(told.whole, answering))


def _check(fields: ChatRequest, endpoint: Endpoint) -> None:
    if fields.stream_options is not None and not fields.stream:
        raise wrong("stream_options", "stream_options is for streams alone; set stream")
    if fields.top_logprobs is not None and not fields.logprobs:
        raise wrong("top_logprobs", "top_logprobs needs logprobs; set that to true")
    if fields.stream and fields.prompt_logprobs is not None:
        raise wrong("prompt_logprobs", "prompt_logprobs is not told in a stream; unset one")
    own = endpoint.settings.limits
    if len(fields.messages) > own.messages:
        count = len(fields.messages)
        raise wrong("messages", f"{count} messages are more than {own.messages}; send fewer")
    if (fields.n or 1) > own.choices:
        raise wrong("n", f"n = {fields.n} is more than {own.choices}")


async def _prompt(fields: ChatRequest, endpoint: Endpoint) -> list[int]:
    try:
        tokens = await asyncio.to_thread(endpoint.tokenizer.chat, fields.messages)
    except InterlockError as error:
        refusal = refusal_of(error)
        refusal.param = refusal.param or "messages"
        raise refusal from None
    asking.check_prompt(tokens, endpoint.limits, "messages")
    return tokens


def _generation(fields: ChatRequest, prompt: list[int], endpoint: Endpoint, key: str) -> Generation:
    limits, own = endpoint.limits, endpoint.settings.limits
    name = "max_tokens" if fields.max_completion_tokens is None else "max_completion_tokens"
    wish = getattr(fields, name)
    stops = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
    ends = asking.stop_ids(fields, limits) + sorted(endpoint.tokenizer.special_ids(stops))
    return Generation(
        prompt=prompt,
        sampling=asking.sampling(fields, asking.room(prompt, wish, name, limits, own)),
        seed=new_seed() if fields.seed is None else fields.seed,
        choices=fields.n or 1,
        rules=asking.rules(fields, fields.top_logprobs or 0, limits),
        stop_ids=ends,
        key=key,
        prompt_logprobs=fields.prompt_logprobs,
    )


class ChatReply:
    """The choices of one request, as its answer tells them."""

    def __init__(self, fields: ChatRequest, endpoint: Endpoint, generation: Generation) -> None:
        self.id = new_id("chatcmpl")
        self._fields, self._generation, self._endpoint = fields, generation, endpoint
        kind = "chat.completion.chunk" if fields.stream else "chat.completion"
        self._common: dict[str, Any] = {"id": self.id, "object": kind}
        self._common |= {"created": int(time.time()), "model": endpoint.name}
        stops, shown = generation.sampling.stop, bool(fields.logprobs)
        self._choices = [
            ChoiceText(endpoint.tokenizer, stops, shown) for _ in range(generation.choices)
        ]

    async def whole(self, answering: Answering) -> dict[str, Any]:
        """The answer in one."""
        bits: list[list[Bit]] = [[] for _ in self._choices]
        scores: PromptScores | None = None
        while heard := await answering.next():
            for _, told in heard:
                if isinstance(told, PromptScores):
                    scores = told
                else:
                    bits[told.number].append(self._choices[told.number].push(told))
        choices = [self._choice(number, each) for number, each in enumerate(bits)]
        common = self._common | tags(answering.provenance)
        more: dict[str, Any] = {"choices": choices, "usage": answering.spent.tree}
        if self._fields.prompt_logprobs is not None:
            prompt, tokenizer = self._generation.prompt, self._endpoint.tokenizer
            more["prompt_logprobs"] = (
                [None] if scores is None else prompt_logprobs(prompt, scores, tokenizer)
            )
        return common | more

    async def chunks(self, answering: Answering) -> AsyncIterator[bytes]:
        """The answer as events."""
        options = self._fields.stream_options
        usage = bool(options and options.include_usage)
        always = bool(options and options.continuous_usage_stats)
        heard = await answering.next()
        frames = Frames(self._common | tags(answering.provenance, moved=False), usage)
        begins = {"role": "assistant", "content": ""}
        told = [self._delta(number, begins) for number in range(len(self._choices))]
        yield b"".join(map(frames.chunk, told))
        open_choices = len(self._choices)
        while heard:
            out = bytearray()
            for _, piece in heard:
                if not isinstance(piece, Piece):
                    continue
                bit = self._choices[piece.number].push(piece)
                for choice in self._deltas(piece.number, bit):
                    ends = choice["finish_reason"] is not None
                    open_choices -= ends
                    if ends and not open_choices:
                        while await answering.next():  # its Ended says whether it was moved
                            pass
                        more = {"interlock": answering.provenance.tree}
                        out += frames.closing([choice], more | _usage(answering, always))
                    elif always:
                        out += frames.closing([choice], _usage(answering, True))
                    else:
                        out += frames.chunk(choice)
            if out:
                yield bytes(out)
            heard = await answering.next()
        if usage:
            more = {"interlock": answering.provenance.tree}
            yield frames.closing([], _usage(answering, True) | more)
        yield DONE

    def _deltas(self, number: int, bit: Bit) -> list[dict[str, Any]]:
        found = []
        logprobs = self._logprobs(bit.tokens) if bit.tokens else None
        if bit.text or logprobs:
            found.append(self._delta(number, {"content": bit.text}, logprobs))
        if bit.finish is not None:
            found.append(self._delta(number, {}, None, bit.finish))
        return found

    def _delta(
        self,
        number: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
    ) -> dict[str, Any]:
        return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _choice(self, number: int, bits: list[Bit]) -> dict[str, Any]:
        text = "".join(bit.text for bit in bits)
        message = {"role": "assistant", "content": text, "refusal": None}
        logprobs = None
        if self._fields.logprobs:
            logprobs = self._logprobs([token for bit in bits for token in bit.tokens])
        finish = bits[-1].finish
        return {
            "index": number,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": finish,
        }

    def _logprobs(self, tokens: list[Any]) -> dict[str, Any]:
        return chat_logprobs(tokens, self._endpoint.tokenizer, self._fields.top_logprobs or 0)


def _usage(answering: Answering, told: bool) -> dict[str, Any]:
    return {"usage": answering.spent.tree} if told else {}
