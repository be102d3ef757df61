"""POST /inference/v1/generate: token ids in, token ids out, with what drew each of them.

For reinforcement learning: nothing is decoded, so nothing has to be encoded again.
"""

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from interlock.records.serving import Generation, Piece, PromptScores
from interlock.serve.answering import Answering
from interlock.serve.endpoint import Endpoint, new_id, new_seed
from interlock.serve.http.gate import asker
from interlock.serve.http.replies import answered, streamed
from interlock.serve.http.streaming import DONE, event
from interlock.serve.requests import asking
from interlock.serve.requests.asked import asked, documented, endpoint_of
from interlock.serve.requests.schemas import GenerateRequest, GenerateSampling

router = APIRouter()


@router.post("/inference/v1/generate", openapi_extra=documented(GenerateRequest))
async def generate(request: Request) -> Response:
    """Continue token ids."""
    endpoint = endpoint_of(request)
    fields = await asked(request, GenerateRequest)
    endpoint.check_model(fields.model)
    generation = _generation(fields, endpoint, asker(request.scope))
    told = GenerateReply(endpoint, generation)
    answering = Answering(endpoint, [generation], told.id)
    if fields.stream:
        return await streamed(request, answering, partial(told.chunks, answering))
    return await answered(request, answering, partial(told.whole, answering))


def _generation(fields: GenerateRequest, endpoint: Endpoint, key: str) -> Generation:
    limits, own = endpoint.limits, endpoint.settings.limits
    given, prompt = fields.sampling_params or GenerateSampling(), fields.token_ids
    asking.check_prompt(prompt, limits, "token_ids")
    most = asking.room(prompt, given.max_tokens, "sampling_params.max_tokens", limits, own)
    ends = asking.stop_ids(given, endpoint.tokenizer, limits)
    return Generation(
        prompt=prompt,
        sampling=asking.sampling(given, most),
        seed=new_seed() if given.seed is None else given.seed,
        choices=given.n or 1,
        rules=asking.rules(given, given.logprobs or 0, limits),
        stop_ids=ends,
        key=key,
        prompt_logprobs=given.prompt_logprobs,
    )


class GenerateReply:
    """The choices of one request: ids, log-probabilities, versions."""

    def __init__(self, endpoint: Endpoint, generation: Generation) -> None:
        self.id = new_id("gen")
        self._common = {"request_id": self.id, "model": endpoint.name}
        self._generation = generation

    async def whole(self, answering: Answering) -> dict[str, Any]:
        """The answer in one."""
        found: list[list[Piece]] = [[] for _ in range(self._generation.choices)]
        told: dict[str, Any] = dict(self._common)
        while heard := await answering.next():
            for _, each in heard:
                if isinstance(each, PromptScores):
                    told["prompt_logprobs"] = _scores(each)
                else:
                    found[each.number].append(each)
        told["choices"] = [_choice(number, pieces) for number, pieces in enumerate(found)]
        more = {"usage": answering.spent.tree, "interlock": answering.provenance.tree}
        return told | more

    async def chunks(self, answering: Answering) -> AsyncIterator[bytes]:
        """The answer as events: one for all that a step drew."""
        while heard := await answering.next():
            told: dict[str, Any] = dict(self._common)
            pieces = []
            for _, each in heard:
                if isinstance(each, PromptScores):
                    told["prompt_logprobs"] = _scores(each)
                else:
                    pieces.append(each)
            yield event(told | {"choices": [_choice(each.number, [each]) for each in pieces]})
        more = {"usage": answering.spent.tree, "interlock": answering.provenance.tree}
        yield event(self._common | {"choices": []} | more) + DONE


def _scores(scores: PromptScores) -> dict[str, Any]:
    """Of prompt[1:]."""
    return {"logprobs": scores.logprobs, "top": scores.top}


def _choice(number: int, pieces: list[Piece]) -> dict[str, Any]:
    return {
        "index": number,
        "token_ids": [token for piece in pieces for token in piece.tokens],
        "logprobs": [value for piece in pieces for value in piece.logprobs],
        "top_logprobs": [top for piece in pieces for top in piece.top],
        "versions": [piece.version for piece in pieces for _ in piece.tokens],
        "finish_reason": pieces[-1].finish if pieces else None,
    }
