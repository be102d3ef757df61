"""POST /tokenize, POST /detokenize, GET /tokenizer_info: the tokenizer, for clients without one."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from interlock.errors import InterlockError
from interlock.serve.endpoint import Endpoint
from interlock.serve.http.refusals import refusal_of, wrong
from interlock.serve.http.streaming import encode
from interlock.serve.prompts.turns import tools_of
from interlock.serve.requests.asked import asked, documented, endpoint_of
from interlock.serve.requests.schemas import DetokenizeRequest, TokenizeRequest
from interlock.serve.requests.texts import encoded

router = APIRouter()


@router.post("/tokenize", openapi_extra=documented(TokenizeRequest))
async def tokenize(request: Request) -> Response:
    """Token ids of a text or a conversation."""
    endpoint = endpoint_of(request)
    fields = await asked(request, TokenizeRequest)
    endpoint.check_model(fields.model)
    tokens = await _tokens(fields, endpoint)
    told: dict[str, Any] = {"count": len(tokens), "max_model_len": endpoint.limits.context}
    told["tokens"] = tokens
    told["token_strs"] = None
    if fields.return_token_strs:
        of = endpoint.tokenizer.bytes_of.of
        told["token_strs"] = [of(token).decode("utf-8", "replace") for token in tokens]
    return Response(encode(told), media_type="application/json")


async def _tokens(fields: TokenizeRequest, endpoint: Endpoint) -> list[int]:
    if (fields.prompt is None) == (fields.messages is None):
        raise wrong("prompt", "give either prompt or messages")
    tokenizer = endpoint.tokenizer
    if fields.prompt is not None:
        return await encoded(fields.prompt, tokenizer, fields.add_special_tokens is not False)
    try:
        tools = tools_of(fields.tools)
        given = fields.messages, tools, fields.chat_template_kwargs
        prompt = await asyncio.to_thread(endpoint.form.prompt, *given)
    except InterlockError as error:
        raise refusal_of(error) from None
    return prompt.tokens


@router.post("/detokenize", openapi_extra=documented(DetokenizeRequest))
async def detokenize(request: Request) -> Response:
    """The text of token ids, special tokens included."""
    endpoint = endpoint_of(request)
    fields = await asked(request, DetokenizeRequest)
    endpoint.check_model(fields.model)
    vocab = endpoint.tokenizer.vocab_size
    if fields.tokens and max(fields.tokens) >= vocab:
        raise wrong("tokens", f"the token {max(fields.tokens)} is not one of the {vocab} tokens")
    text = endpoint.tokenizer.decode(fields.tokens, skip_special=False)
    return Response(encode({"prompt": text}), media_type="application/json")


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request) -> Response:
    """What a client needs to frame texts and conversations by itself."""
    endpoint = endpoint_of(request)
    tokenizer = endpoint.tokenizer
    told: dict[str, Any] = {"tokenizer_class": "Tokenizer", "vocab_size": tokenizer.vocab_size}
    told["model_max_length"] = endpoint.limits.context
    told |= {name: tokenizer.roles.get(name) for name in ("bos_token", "eos_token", "pad_token")}
    told["eos_token_id"] = tokenizer.eos_id
    told["chat_template"] = tokenizer.template
    return Response(encode(told), media_type="application/json")
