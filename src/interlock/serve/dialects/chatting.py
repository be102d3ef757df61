"""A chat request made ready, and what its answer tells.

    ChatRequest ──prepare──> Chat: conversation, prompt, Generation
                               └─ pieces ──AnswerReader──> thought, said, called ──> ChatReply

Whoever records a conversation gives a prompt of its own, and is told what was drawn and answered.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol

from msgspec.structs import replace

from interlock.errors import InterlockError
from interlock.records.serving import Generation, Piece, PromptScores
from interlock.serve.answering import Answering
from interlock.serve.endpoint import Endpoint, new_id, new_seed
from interlock.serve.http.frames import Frames
from interlock.serve.http.refusals import refusal_of, wrong
from interlock.serve.http.replies import tags
from interlock.serve.http.streaming import DONE
from interlock.serve.prompts.prompting import ChatPrompt, Conversation
from interlock.serve.prompts.turns import Tool, tools_of
from interlock.serve.reading.deltas import ChatAnswer, Delta, DeltaKind
from interlock.serve.reading.pieces import ChoiceText, DrawnToken, StopHold
from interlock.serve.reading.reader import AnswerReader
from interlock.serve.reading.scores import chat_logprobs, prompt_logprobs
from interlock.serve.requests import asking
from interlock.serve.requests.schemas import ChatRequest
from interlock.serve.structure.choosing import ToolChoice, choice_of
from interlock.serve.structure.forms import Structure, structure_of

PromptOf = Callable[[Conversation], ChatPrompt]


class Keeper(Protocol):
    """Who records a conversation."""

    def take(self, piece: Piece) -> None:
        """What was drawn."""

    def answered(self, number: int, message: dict[str, Any], text: str) -> None:
        """A choice has its end; `message` is what the client is told of it."""

    def close(self) -> None:
        """Nothing more comes. Called more than once."""


class Chat(NamedTuple):
    """A request that can be drawn."""

    fields: ChatRequest
    prompt: ChatPrompt
    tools: Sequence[Tool]
    generation: Generation
    keeper: Keeper | None = None

    def answering(self, endpoint: Endpoint, name: str) -> Answering:
        """Have it drawn. Raises Refusal."""
        then = None if self.keeper is None else self.keeper.close
        return Answering(endpoint, [self.generation], name, then)


# `prepare`, or what records what that prepares.
Prepare = Callable[[ChatRequest, Endpoint, str], Awaitable[Chat]]


def message_of(answer: ChatAnswer) -> dict[str, Any]:
    """The answer as a chat's message."""
    told: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None}
    if answer.reasoning is not None:
        told["reasoning_content"] = answer.reasoning
    if answer.calls:
        told["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in answer.calls
        ]
    return told


def _as_it_is(conversation: Conversation) -> ChatPrompt:
    return conversation.prompt(conversation.render(conversation.turns))


async def prepare(
    fields: ChatRequest, endpoint: Endpoint, key: str, prompt_of: PromptOf = _as_it_is
) -> Chat:
    """Raises Refusal on what cannot be served."""
    _check(fields, endpoint)
    try:
        tools = tools_of(fields.tools)
        choice = choice_of(fields.tool_choice, tools, fields.parallel_tool_calls)
        prompt = await asyncio.to_thread(_prompt, fields, endpoint, choice.told, prompt_of)
        asking.check_prompt(prompt.tokens, endpoint.limits, "messages")
        structure = await asyncio.to_thread(_structure, fields, endpoint, prompt, choice)
        generation = _generation(fields, prompt, structure, endpoint, key)
    except InterlockError as error:
        raise refusal_of(error) from None
    return Chat(fields, prompt, choice.told, generation)


def _check(fields: ChatRequest, endpoint: Endpoint) -> None:
    endpoint.check_model(fields.model)
    endpoint.pool()
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


def _prompt(
    fields: ChatRequest, endpoint: Endpoint, tools: Sequence[Tool], prompt_of: PromptOf
) -> ChatPrompt:
    """In a thread: a template is rendered by another process, which is waited for."""
    conversation = endpoint.form.conversation(
        fields.messages, tools, fields.chat_template_kwargs, fields.reasoning_effort
    )
    return prompt_of(conversation)


def _structure(
    fields: ChatRequest, endpoint: Endpoint, prompt: ChatPrompt, choice: ToolChoice
) -> Structure:
    """In a thread: the largest schema that is taken is compiled in half a second."""
    return structure_of(
        endpoint.form,
        prompt.stage,
        choice,
        fields.response_format,
        fields.structured_outputs,
        fields.thinking_budget,
    )


def _generation(
    fields: ChatRequest, prompt: ChatPrompt, structure: Structure, endpoint: Endpoint, key: str
) -> Generation:
    limits, own = endpoint.limits, endpoint.settings.limits
    name = "max_tokens" if fields.max_completion_tokens is None else "max_completion_tokens"
    room = asking.room(prompt.tokens, getattr(fields, name), name, limits, own)
    thinking = endpoint.form.rules(prompt, fields.thinking_budget)
    return Generation(
        prompt=prompt.tokens,
        sampling=asking.sampling(fields, room),
        seed=new_seed() if fields.seed is None else fields.seed,
        choices=fields.n or 1,
        rules=replace(
            asking.rules(fields, fields.top_logprobs or 0, limits),
            thinking_budget=thinking.thinking_budget,
            thinking_begin=thinking.thinking_begin,
            thinking_end=thinking.thinking_end,
            thinks=thinking.thinks,
            grammar=structure.grammar,
            grammar_after=structure.after,
        ),
        stop_ids=asking.stop_ids(fields, endpoint.tokenizer, limits),
        key=key,
        prompt_logprobs=fields.prompt_logprobs,
    )


class _ChatChoice:
    """One choice as it is read."""

    def __init__(self, chat: Chat, endpoint: Endpoint) -> None:
        stops = chat.generation.sampling.stop
        hold = StopHold(stops) if stops else None
        self._reader = AnswerReader(endpoint.form, chat.prompt.stage, chat.tools, hold)
        told = bool(chat.fields.logprobs)
        self._tokens = ChoiceText(endpoint.tokenizer, stops, told) if told else None
        self._thought = endpoint.settings.reasoning
        self.all_tokens: list[DrawnToken] = []
        self.finish: str | None = None
        self.text = ""

    @property
    def reasoning_tokens(self) -> int:
        return self._reader.reasoning_tokens

    def push(self, piece: Piece) -> tuple[list[Delta], list[DrawnToken]]:
        """What a piece adds, and the tokens that are told with it."""
        deltas = self._reader.push(piece.tokens)
        if piece.finish is not None:
            deltas += self._reader.finish()
            called = piece.finish == "stop" and self._reader.calls
            self.finish = "tool_calls" if called else str(piece.finish)
        tokens = [] if self._tokens is None else self._tokens.push(piece).tokens
        self.all_tokens += tokens
        return deltas, tokens

    def delta(self, delta: Delta) -> dict[str, Any] | None:
        """As a stream tells it; None: nothing."""
        match delta.kind:
            case DeltaKind.CONTENT | DeltaKind.BROKEN:
                return {"content": delta.text} if delta.text else None
            case DeltaKind.REASONING:
                return self._reasoning(delta.text)
            case DeltaKind.CALL:
                function = {"name": delta.name, "arguments": ""}
                call = {"index": delta.number, "id": delta.id, "type": "function"}
                return {"tool_calls": [call | {"function": function}]}
            case DeltaKind.ARGUMENTS:
                more = {"index": delta.number, "function": {"arguments": delta.text}}
                return {"tool_calls": [more]}
        return None  # what was told cannot be taken back

    @property
    def message(self) -> dict[str, Any]:
        """All of it."""
        told = message_of(self._reader.answer)
        thought = told.pop("reasoning_content", None)
        return told if thought is None else told | self._reasoning(thought)

    def _reasoning(self, text: str) -> dict[str, Any]:
        if self._thought == "both":
            return {"reasoning_content": text, "reasoning": text}
        return {self._thought: text}


class ChatReply:
    """The choices of one request, as its answer tells them."""

    def __init__(self, chat: Chat, endpoint: Endpoint) -> None:
        self.id = new_id("chatcmpl")
        self._chat, self._endpoint, self._keeper = chat, endpoint, chat.keeper
        kind = "chat.completion.chunk" if chat.fields.stream else "chat.completion"
        self._common: dict[str, Any] = {"id": self.id, "object": kind}
        self._common |= {"created": int(time.time()), "model": endpoint.name}
        self._choices = [_ChatChoice(chat, endpoint) for _ in range(chat.generation.choices)]

    async def whole(self, answering: Answering) -> dict[str, Any]:
        """The answer in one."""
        scores: PromptScores | None = None
        while heard := await answering.next():
            for _, told in heard:
                if isinstance(told, PromptScores):
                    scores = told
                else:
                    self._push(told)
        choices = [
            {
                "index": number,
                "message": choice.message,
                "logprobs": self._logprobs(choice.all_tokens),
                "finish_reason": choice.finish,
            }
            for number, choice in enumerate(self._choices)
        ]
        more: dict[str, Any] = {"choices": choices, "usage": self._usage(answering)}
        if self._chat.fields.prompt_logprobs is not None:
            more["prompt_logprobs"] = [None]
            if scores is not None:
                prompt, tokenizer = self._chat.prompt.tokens, self._endpoint.tokenizer
                more["prompt_logprobs"] = prompt_logprobs(prompt, scores, tokenizer)
        return self._common | tags(answering.provenance) | more

    async def chunks(self, answering: Answering) -> AsyncIterator[bytes]:
        """The answer as events."""
        options = self._chat.fields.stream_options
        usage = bool(options and options.include_usage)
        always = bool(options and options.continuous_usage_stats)
        heard = await answering.next()
        frames = Frames(self._common | tags(answering.provenance, moved=False), usage)
        begins = {"role": "assistant", "content": ""}
        yield b"".join(frames.chunk(_choice(n, begins)) for n in range(len(self._choices)))
        left = len(self._choices)
        while heard:
            out = bytearray()
            for _, piece in heard:
                for choice in self._deltas(piece) if type(piece) is Piece else ():
                    more: dict[str, Any] = {}
                    if choice["finish_reason"] is not None:
                        left -= 1
                        if not left:
                            while await answering.next():  # its Ended says whether it was moved
                                pass
                            more = {"interlock": answering.provenance.tree}
                    if always:
                        more["usage"] = self._usage(answering)
                    out += frames.closing([choice], more) if more else frames.chunk(choice)
            if out:
                yield bytes(out)
            heard = await answering.next()
        if usage:
            more = {"usage": self._usage(answering), "interlock": answering.provenance.tree}
            yield frames.closing([], more)
        yield DONE

    def _push(self, piece: Piece) -> tuple[list[Delta], list[DrawnToken]]:
        choice = self._choices[piece.number]
        found = choice.push(piece)
        if self._keeper is not None:
            self._keeper.take(piece)
            if choice.finish is not None:
                message = choice.message
                self._keeper.answered(piece.number, message, str(message["content"] or ""))
        return found

    def _deltas(self, piece: Piece) -> list[dict[str, Any]]:
        """The choices of the chunks that a piece makes."""
        deltas, tokens = self._push(piece)
        choice, number = self._choices[piece.number], piece.number
        told = [each for delta in deltas if (each := choice.delta(delta)) is not None]
        if tokens and not told:
            told = [{"content": ""}]
        found = [_choice(number, each) for each in told]
        if tokens:
            found[0]["logprobs"] = self._logprobs(tokens)
        if choice.finish is not None:
            found.append(_choice(number, {}, choice.finish))
        return found

    def _logprobs(self, tokens: list[DrawnToken]) -> dict[str, Any] | None:
        fields = self._chat.fields
        if not fields.logprobs:
            return None
        return chat_logprobs(tokens, self._endpoint.tokenizer, fields.top_logprobs or 0)

    def _usage(self, answering: Answering) -> dict[str, Any]:
        answering.spent.reasoning = sum(each.reasoning_tokens for each in self._choices)
        return answering.spent.tree


def _choice(number: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": number, "delta": delta, "logprobs": None, "finish_reason": finish}
