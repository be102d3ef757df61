"""The prompts of /v1/completions: a text, texts, token ids or lists of these, as token ids."""

import asyncio
from functools import partial
from typing import Any

from interlock.config.serving import LimitSettings
from interlock.engine.base import Limits
from interlock.models.tokenizer import Tokenizer
from interlock.serve.http.refusals import wrong
from interlock.serve.requests.asking import check_prompt

_LONG = 20_000  # characters; a longer text is read beside the event loop


def listed(prompt: Any) -> list[str | list[int]]:
    """One prompt or several, as a list."""
    if isinstance(prompt, str) or type(prompt[0]) is int:
        return [prompt]
    return list(prompt)


async def tokens_of(
    prompts: list[str | list[int]],
    tokenizer: Tokenizer,
    framed: bool,
    limits: Limits,
    own: LimitSettings,
) -> list[list[int]]:
    """Raises Refusal on what cannot be read."""
    if len(prompts) > own.prompts:
        raise wrong("prompt", f"{len(prompts)} prompts are more than {own.prompts}; send fewer")
    found = []
    for index, prompt in enumerate(prompts):
        param = "prompt" if len(prompts) == 1 else f"prompt[{index}]"
        if isinstance(prompt, str):
            prompt = await encoded(prompt, tokenizer, framed)
        check_prompt(prompt, limits, param)
        found.append(prompt)
    return found


async def encoded(text: str, tokenizer: Tokenizer, framed: bool) -> list[int]:
    """Token ids of a text. `framed`: with a BOS, if the tokenizer puts one and the text has none:
    one that somebody rendered by the model's template has it, and no model was trained on two.
    """
    encode = partial(_framed, tokenizer) if framed else tokenizer.encode
    if len(text) > _LONG:
        return await asyncio.to_thread(encode, text)
    return encode(text)


def _framed(tokenizer: Tokenizer, text: str) -> list[int]:
    ids, first = tokenizer.framed(text), tokenizer.framed("")[:1]
    return ids[1:] if first and ids[:2] == 2 * first else ids
