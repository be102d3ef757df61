"""Completions of the openai package, of texts and token ids, and the list of models."""

from typing import Any

from openai_common import client, tokenize
from reporting import MODEL, caught


def models() -> dict[str, Any]:
    listed = client.models.list().data
    return {
        "ids": [each.id for each in listed],
        "one": client.models.retrieve(MODEL).id,
        "object": listed[0].object,
        "absent": caught(lambda: client.models.retrieve("gpt-9"))["class"],
    }


def completions() -> dict[str, Any]:
    create = client.completions.create
    prompt = "The capital of France is"
    text = create(model=MODEL, prompt=prompt, max_tokens=4, temperature=0)
    ids = tokenize(prompt)
    of_ids = create(model=MODEL, prompt=ids, max_tokens=4, temperature=0)
    two = create(model=MODEL, prompt=[prompt, "One two three"], max_tokens=4, temperature=0, n=2)
    streamed = "".join(
        chunk.choices[0].text
        for chunk in create(model=MODEL, prompt=prompt, max_tokens=4, temperature=0, stream=True)
        if chunk.choices
    )
    default = create(model=MODEL, prompt=prompt, temperature=0, extra_body={"ignore_eos": True})
    return {
        "text": text.choices[0].text,
        "object": text.object,
        "of_ids": of_ids.choices[0].text,
        "prompt_tokens": [len(ids), text.usage.prompt_tokens if text.usage else None],
        "indices": [choice.index for choice in two.choices],
        "two": [choice.text for choice in two.choices],
        "streamed": streamed,
        "default_tokens": default.usage.completion_tokens if default.usage else None,
    }


def echo() -> dict[str, Any]:
    prompt = "The capital of France is Paris."
    ids = tokenize(prompt)
    told = client.completions.create(
        model=MODEL, prompt=ids, max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1234
    )
    none = client.completions.create(
        model=MODEL, prompt=ids, max_tokens=0, temperature=0, logprobs=1, echo=True
    )
    first = told.choices[0].logprobs
    bare = none.choices[0].logprobs
    return {
        "text": told.choices[0].text,
        "bare_text": none.choices[0].text,
        "ids": ids,
        "token_logprobs": first.token_logprobs if first else None,
        "bare": bare.token_logprobs if bare else None,
        "offsets": first.text_offset if first else None,
        "tokens": first.tokens if first else None,
        "tops": len(first.top_logprobs or []) if first else None,
    }
