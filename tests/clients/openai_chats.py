"""Chats of the openai package: whole, streamed, several, with logprobs, steered."""

from typing import Any

from openai_common import ASK, GREEDY, client, tokenize
from reporting import MODEL


def chat() -> dict[str, Any]:
    first, second = (
        client.chat.completions.create(**GREEDY, max_completion_tokens=8) for _ in "ab"
    )
    return {
        "texts": [first.choices[0].message.content, second.choices[0].message.content],
        "finish": first.choices[0].finish_reason,
        "role": first.choices[0].message.role,
        "object": first.object,
        "model": first.model,
        "usage": first.usage.model_dump() if first.usage else None,
        "ids_differ": first.id != second.id,
        "request_id": first._request_id,
    }


def stream() -> dict[str, Any]:
    chunks = list(
        client.chat.completions.create(
            **GREEDY, max_completion_tokens=8, stream=True, stream_options={"include_usage": True}
        )
    )
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    return {
        "text": "".join(deltas),
        "pieces": sum(map(bool, deltas)),
        "ids": len({chunk.id for chunk in chunks}),
        "created": len({chunk.created for chunk in chunks}),
        "objects": sorted({chunk.object for chunk in chunks}),
        "finishes": [c.choices[0].finish_reason for c in chunks if c.choices][-1:],
        "last_choices": len(chunks[-1].choices),
        "usage": chunks[-1].usage.model_dump() if chunks[-1].usage else None,
        "usage_before": sum(chunk.usage is not None for chunk in chunks[:-1]),
    }


def many() -> dict[str, Any]:
    asked: dict[str, Any] = {"model": MODEL, "messages": ASK, "n": 3, "seed": 11}
    asked |= {"temperature": 1.0, "max_completion_tokens": 12}
    big = asked | {"n": 128, "max_completion_tokens": 1}
    whole = client.chat.completions.create(**asked)
    texts = {0: "", 1: "", 2: ""}
    finishes = dict.fromkeys(texts, "")
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finishes[choice.index] += choice.finish_reason or ""
    return {
        "indices": [choice.index for choice in whole.choices],
        "texts": [choice.message.content for choice in whole.choices],
        "streamed": [texts[i] for i in range(3)],
        "finishes": [finishes[i] for i in range(3)],
        "completion_tokens": whole.usage.completion_tokens if whole.usage else None,
        "big": len(client.chat.completions.create(**big).choices),
    }


def logprobs() -> dict[str, Any]:
    whole = client.chat.completions.create(
        **GREEDY, max_completion_tokens=6, logprobs=True, top_logprobs=20
    )
    choice = whole.choices[0]
    told = choice.logprobs.content if choice.logprobs and choice.logprobs.content else []
    joined = b"".join(bytes(each.bytes or []) for each in told)
    streamed = [
        each
        for chunk in client.chat.completions.create(
            **GREEDY, max_completion_tokens=6, logprobs=True, top_logprobs=2, stream=True
        )
        if chunk.choices and chunk.choices[0].logprobs
        for each in chunk.choices[0].logprobs.content or []
    ]
    return {
        "tokens": len(told),
        "text_is_bytes": joined.decode() == choice.message.content,
        "alternatives": [len(each.top_logprobs) for each in told],
        "descend": all(
            x.logprob >= y.logprob
            for each in told
            for x, y in zip(each.top_logprobs, each.top_logprobs[1:], strict=False)
        ),
        "greedy_is_best": all(
            each.token == each.top_logprobs[0].token
            and each.logprob == each.top_logprobs[0].logprob
            for each in told
        ),
        "mass": [sum(2.718281828459045**alt.logprob for alt in each.top_logprobs) for each in told],
        "logprobs": [each.logprob for each in told],
        "streamed": [each.logprob for each in streamed],
    }


def sampling() -> dict[str, Any]:
    """A bias, a stop, and the fields that OpenAI has not, as extra_body."""
    comma = tokenize(",")[0]
    stopped = client.chat.completions.create(**GREEDY, max_completion_tokens=60, stop=["\n", "."])
    biased = client.chat.completions.create(
        **GREEDY, max_completion_tokens=4, logit_bias={str(comma): 100}
    )
    narrow = client.chat.completions.create(
        model=MODEL, messages=ASK, temperature=2, top_p=1, max_completion_tokens=8,
        extra_body={"top_k": 1},
    )  # fmt: skip
    return {
        "stopped": [stopped.choices[0].message.content, stopped.choices[0].finish_reason],
        "biased": biased.choices[0].message.content,
        "narrow": narrow.choices[0].message.content,
        "greedy": client.chat.completions.create(**GREEDY, max_completion_tokens=8)
        .choices[0]
        .message.content,
    }
