"""What the openai package makes of refusals, of crowds and of servers that are not ready."""

import asyncio
import threading
import time
from typing import Any

import openai
from openai_common import ASK, GREEDY, admin, client
from reporting import BASE_URL, KEY, MODEL, caught


def errors() -> dict[str, Any]:
    create = client.chat.completions.create

    def asked(**more: Any) -> dict[str, Any]:
        return caught(lambda: create(**GREEDY | {"max_completion_tokens": 1} | more))

    stranger = client.with_options(api_key="not-the-key-of-this-server")
    long = [{"role": "user", "content": "word " * 9000}]
    return {
        "model": asked(model="gpt-9"),
        "key": caught(stranger.models.list),
        "temperature": asked(temperature=3),
        "n": asked(n=0),
        "n129": asked(n=129),
        "role": asked(messages=[{"role": "king", "content": "a"}]),
        "empty": asked(messages=[]),
        "unknown": asked(extra_body={"colour": "red"}),
        "penalty": asked(frequency_penalty=1.5),
        "long": asked(messages=long),
        "tokens": asked(max_completion_tokens=10**8),
        "schema": asked(response_format={"type": "json_schema", "json_schema": {"name": "a"}}),
        "absent": caught(lambda: client.embeddings.create(model=MODEL, input="a")),
        "timeout": caught(
            lambda: client.with_options(timeout=0.2).chat.completions.create(
                **GREEDY, max_completion_tokens=2000, extra_body={"ignore_eos": True}
            )
        ),
        "mid_stream": caught(lambda: list(create(**GREEDY, stream=True, max_tokens=-1))),
    }


def concurrent() -> dict[str, Any]:
    """The asynchronous client, eight at once, and one that leaves in the middle."""

    async def all_of_them() -> dict[str, Any]:
        many = openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY, timeout=120, max_retries=0)
        asked = (many.chat.completions.create(**GREEDY, max_completion_tokens=8) for _ in range(8))
        answers = await asyncio.gather(*asked)
        left = await many.chat.completions.create(
            **GREEDY, max_completion_tokens=500, stream=True, extra_body={"ignore_eos": True}
        )
        async for _ in left:
            break
        await left.close()
        return {"texts": sorted({each.choices[0].message.content or "" for each in answers})}

    return asyncio.run(all_of_them())


def retries() -> dict[str, Any]:
    """The only replica is drained, and comes back once the client was refused."""
    replica = admin("GET", "/v1/models", key=KEY)
    name = _replica(replica)
    admin("POST", "/admin/drain", {"replica": name, "on": True})
    try:
        asked = GREEDY | {"max_completion_tokens": 1}
        refused = caught(lambda: client.chat.completions.create(**asked))
        back = {"replica": name, "on": False}
        later = threading.Timer(0.5, admin, ("POST", "/admin/drain", back))
        later.start()
        patient = client.with_options(max_retries=8)
        raw = patient.chat.completions.with_raw_response.create(**asked)
        later.join()
    finally:
        admin("POST", "/admin/drain", {"replica": name, "on": False})
    return {"refused": refused, "retries": raw.retries_taken, "status": raw.status_code}


def crowded() -> dict[str, Any]:
    """More at once than the queue holds: all end well, though some were refused at first."""
    asked: dict[str, Any] = {"model": MODEL, "messages": ASK, "n": 100, "max_completion_tokens": 12}
    asked |= {"extra_body": {"ignore_eos": True}}

    async def together(retries: int) -> list[Any]:
        many = openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY, timeout=300, max_retries=retries)
        raw = many.chat.completions.with_raw_response
        four = (raw.create(**asked) for _ in range(4))
        return await asyncio.gather(*four, return_exceptions=True)

    refused = [each for each in asyncio.run(together(0)) if isinstance(each, Exception)]
    done = asyncio.run(together(50))
    errors = [repr(each) for each in done if isinstance(each, Exception)]
    return {
        "refused": [each.status_code for each in refused],
        "retry_after": [each.response.headers.get("retry-after") for each in refused],
        "errors": errors,
        "choices": [] if errors else [len(each.parse().choices) for each in done],
        "retries": [] if errors else [each.retries_taken for each in done],
    }


def loading() -> dict[str, Any]:
    """Asked before it can answer: refused, and answered to whoever tries again. Not a section of
    a whole run.
    """
    asked = GREEDY | {"max_completion_tokens": 1}
    for _ in range(1200):
        told = caught(lambda: client.chat.completions.create(**asked))
        if told["class"] != "APIConnectionError":  # it does not listen yet
            break
        time.sleep(0.05)
    patient = client.with_options(max_retries=60)
    raw = patient.chat.completions.with_raw_response.create(**asked)
    return {"refused": told, "retries": raw.retries_taken, "status": raw.status_code}


def _replica(models: Any) -> str:
    return str(models["data"][0]["replicas"][0]["name"])
