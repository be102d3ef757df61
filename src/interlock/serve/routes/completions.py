"""POST /v1/completions: text, texts or token ids, continued.

prompt(s) ──tokens──> a Generation each ──> choices, numbered prompt by prompt
                                   echo ──> the prompt before each, with its log-probabilities
"""

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from interlock.records.rl import FinishReason
from interlock.records.serving import Generation, Piece, PromptScores
from interlock.serve.answering import Answering
from interlock.serve.endpoint import Endpoint, new_id, new_seed
from interlock.serve.http.frames import Frames
from interlock.serve.http.gate import asker
from interlock.serve.http.refusals import wrong
from interlock.serve.http.replies import answered, streamed, tags
from interlock.serve.http.streaming import DONE
from interlock.serve.reading.pieces import Bit, ChoiceText
from interlock.serve.reading.scores import TextToken, prompt_logprobs, prompt_scored, text_logprobs
from interlock.serve.requests import asking
from interlock.serve.requests.asked import asked, documented, endpoint_of
from interlock.serve.requests.schemas import CompletionRequest
from interlock.serve.requests.texts import listed, tokens_of
from interlock.serve.requests.unsupported import COMPLETION

router = APIRouter()
_TOKENS = 16  # where a request does not say


@router.post("/v1/completions", openapi_extra=documented(CompletionRequest, COMPLETION))
async def completions(request: Request) -> Response:
    """Continue a prompt, or several."""
    endpoint = endpoint_of(request)
    fields = await asked(request, CompletionRequest, COMPLETION)
    endpoint.check_model(fields.model)
    _check(fields)
    prompts = listed(fields.prompt)
    limits, own = endpoint.limits, endpoint.settings.limits
    framed = fields.add_special_tokens is not False
    tokens = await tokens_of(prompts, endpoint.tokenizer, framed, limits, own)
    if (total := len(tokens) * (fields.n or 1)) > own.choices:
        raise wrong("n", f"{total} choices of all prompts are more than {own.choices}")
    generations = _generations(fields, tokens, endpoint, asker(request.scope))
    texts = [each if isinstance(each, str) else None for each in prompts]
    told = CompletionReply(fields, endpoint, generations, texts)
    answering = Answering(endpoint, generations, told.id)
    if fields.stream:
        return await streamed(request, answering, partial(told.chunks, answering))
    return await answered(request, answering, partial(told.whole, answering))


def _check(fields: CompletionRequest) -> None:
    if fields.best_of is not None and fields.best_of != (fields.n or 1):
        raise wrong("best_of", f"best_of = {fields.best_of} is not n; leave it out")
    if fields.stream_options is not None and not fields.stream:
        raise wrong("stream_options", "stream_options is for streams alone; set stream")
    if fields.max_tokens == 0 and not fields.echo:
        raise wrong("max_tokens", "max_tokens = 0 is for echo alone; give at least 1")
    if fields.stream and fields.prompt_logprobs is not None:
        raise wrong("prompt_logprobs", "prompt_logprobs is not told in a stream; unset one")


def _generations(
    fields: CompletionRequest, prompts: list[list[int]], endpoint: Endpoint, key: str
) -> list[Generation]:
    limits, own = endpoint.limits, endpoint.settings.limits
    seed = new_seed() if fields.seed is None else fields.seed
    ends = asking.stop_ids(fields, endpoint.tokenizer, limits)
    scored = fields.prompt_logprobs
    if fields.echo and fields.logprobs is not None:
        scored = max(scored or 0, fields.logprobs)
    most = _TOKENS if fields.max_tokens is None else max(1, fields.max_tokens)
    found = []
    for prompt in prompts:
        # The default is no wish: it may be cut where the context ends.
        left = limits.context - len(prompt)
        wish = min(most, left) if fields.max_tokens is None else most
        room = asking.room(prompt, wish, "max_tokens", limits, own)
        found.append(
            Generation(
                prompt=prompt,
                sampling=asking.sampling(fields, room),
                seed=seed,
                choices=fields.n or 1,
                rules=asking.rules(fields, fields.logprobs or 0, limits),
                stop_ids=ends,
                key=key,
                prompt_logprobs=scored,
            )
        )
    return found


class CompletionReply:
    """The choices of one request, as its answer tells them."""

    def __init__(
        self,
        fields: CompletionRequest,
        endpoint: Endpoint,
        generations: list[Generation],
        texts: list[str | None],
    ) -> None:
        self.id = new_id("cmpl")
        self._fields, self._generations, self._texts = fields, generations, texts
        self._tokenizer = endpoint.tokenizer
        self._common = {"id": self.id, "object": "text_completion", "created": int(time.time())}
        self._common["model"] = endpoint.name
        self._n = fields.n or 1
        stops = generations[0].sampling.stop
        shown = fields.logprobs is not None
        self._choices = [
            ChoiceText(self._tokenizer, stops, shown) for _ in range(self._n * len(generations))
        ]
        self._scores: dict[int, PromptScores] = {}
        self._before = [0] * len(generations)  # characters of an echoed prompt

    async def whole(self, answering: Answering) -> dict[str, Any]:
        """The answer in one."""
        bits: list[list[Bit]] = [[] for _ in self._choices]
        while heard := await answering.next():
            for index, told in heard:
                if isinstance(told, PromptScores):
                    self._scores[index] = told
                else:
                    place = self._place(index, told)
                    bits[place].append(self._bit(place, told))
        choices = [self._choice(place, each) for place, each in enumerate(bits)]
        common = self._common | tags(answering.provenance)
        return common | {"choices": choices, "usage": self._spent(answering)}

    async def chunks(self, answering: Answering) -> AsyncIterator[bytes]:
        """The answer as events."""
        options = self._fields.stream_options
        usage = bool(options and options.include_usage)
        always = bool(options and options.continuous_usage_stats)
        heard = await answering.next()
        frames = Frames(self._common | tags(answering.provenance, moved=False), usage)
        open_choices, opened = len(self._choices), set[int]()
        while heard:
            out = bytearray()
            for index, told in heard:
                if isinstance(told, PromptScores):
                    self._scores[index] = told
                    continue
                place = self._place(index, told)
                bit = self._bit(place, told)
                if not (bit.text or bit.tokens or bit.finish is not None or self._fields.echo):
                    continue
                choice = self._delta(place, bit, place not in opened)
                opened.add(place)
                open_choices -= bit.finish is not None
                if bit.finish is not None and not open_choices:
                    while await answering.next():  # its Ended, which says whether it was moved
                        pass
                    more = {"interlock": answering.provenance.tree}
                    out += frames.closing([choice], more | self._usage(answering, always))
                elif always:
                    out += frames.closing([choice], self._usage(answering, always))
                else:
                    out += frames.chunk(choice)
            if out:
                yield bytes(out)
            heard = await answering.next()
        if usage:
            more = {"interlock": answering.provenance.tree}
            yield frames.closing([], self._usage(answering, True) | more)
        yield DONE

    def _place(self, index: int, piece: Piece) -> int:
        return index * self._n + piece.number

    def _bit(self, place: int, piece: Piece) -> Bit:
        bit = self._choices[place].push(piece)
        if self._echo_alone:  # one was drawn, as an engine cannot draw none
            return Bit("", [], None if bit.finish is None else FinishReason.LENGTH)
        return bit

    @property
    def _echo_alone(self) -> bool:
        return self._fields.max_tokens == 0

    def _usage(self, answering: Answering, told: bool) -> dict[str, Any]:
        return {"usage": self._spent(answering)} if told else {}

    def _spent(self, answering: Answering) -> dict[str, Any]:
        spent = answering.spent
        return (replace(spent, drawn=0) if self._echo_alone else spent).tree

    def _echo(self, place: int) -> tuple[str, list[TextToken]]:
        """The prompt as it is told before a choice."""
        index = place // self._n
        if not self._fields.echo:
            return "", []
        prompt, given = self._generations[index].prompt, self._texts[index]
        if (scores := self._scores.get(index)) is None:
            text = self._tokenizer.decode(prompt) if given is None else given
            return text, []
        text, tokens = prompt_scored(prompt, scores, self._tokenizer)
        text = text if given is None else given
        self._before[index] = len(text)
        return text, tokens

    def _delta(self, place: int, bit: Bit, first: bool) -> dict[str, Any]:
        before, tokens = self._echo(place) if first else ("", [])
        return self._told(place, before + bit.text, tokens, bit.tokens, bit.finish)

    def _choice(self, place: int, bits: list[Bit]) -> dict[str, Any]:
        before, tokens = self._echo(place)
        text = before + "".join(bit.text for bit in bits)
        drawn = [token for bit in bits for token in bit.tokens]
        choice = self._told(place, text, tokens, drawn, bits[-1].finish)
        if self._fields.prompt_logprobs is not None:
            index = place // self._n
            prompt, scores = self._generations[index].prompt, self._scores.get(index)
            told = [None] if scores is None else prompt_logprobs(prompt, scores, self._tokenizer)
            choice["prompt_logprobs"] = told
        return choice

    def _told(
        self, place: int, text: str, prompt: list[TextToken], drawn: list[Any], finish: str | None
    ) -> dict[str, Any]:
        logprobs = None
        if self._fields.logprobs is not None:
            before = self._before[place // self._n]
            tokens = prompt + [
                TextToken(t.token, t.logprob, t.top, before + t.offset) for t in drawn
            ]
            logprobs = text_logprobs(tokens, self._tokenizer, self._fields.logprobs)
        return {"index": place, "text": text, "logprobs": logprobs, "finish_reason": finish}
