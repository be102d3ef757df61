"""What a user of the openai package does, each with the figures that tell whether it was right."""

import asyncio
import json
import os
import threading
import time
import urllib.request
from typing import Any, Literal

import openai
from pydantic import BaseModel, Field
from reporting import BASE_URL, KEY, MODEL, caught, report

client = openai.OpenAI(base_url=BASE_URL, api_key=KEY, timeout=120, max_retries=0)
ASK: list[Any] = [{"role": "user", "content": "Name three colours."}]
GREEDY: dict[str, Any] = {"model": MODEL, "messages": ASK, "temperature": 0}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name} two whole numbers",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "minimum": 0, "maximum": 99},
                    "b": {"type": "integer", "minimum": 0, "maximum": 99},
                },
                "required": ["a", "b"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("add", "multiply")
]


class Sum(BaseModel):
    """What the parse helpers are given."""

    operator: Literal["plus", "minus"]
    left: int = Field(ge=0, le=99)
    right: int = Field(ge=0, le=99)


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


def tools() -> dict[str, Any]:
    ask: dict[str, Any] = {
        "model": MODEL,
        "temperature": 0,
        "tools": TOOLS,
        "max_completion_tokens": 128,
        "messages": [{"role": "user", "content": "What is 12 + 30?"}],
    }
    required = client.chat.completions.create(**ask, tool_choice="required")
    named = {"type": "function", "function": {"name": "multiply"}}
    picked = client.chat.completions.create(**ask, tool_choice=named)
    calls = required.choices[0].message.tool_calls or []
    whole: list[dict[str, str]] = []
    finish, fragments = None, 0
    for chunk in client.chat.completions.create(**ask, tool_choice="required", stream=True):
        for call in chunk.choices[0].delta.tool_calls or [] if chunk.choices else []:
            while len(whole) <= call.index:
                whole.append({"id": "", "name": "", "arguments": ""})
            whole[call.index]["id"] += call.id or ""
            if call.function:
                whole[call.index]["name"] += call.function.name or ""
                whole[call.index]["arguments"] += call.function.arguments or ""
                fragments += bool(call.function.arguments)
        if chunk.choices and chunk.choices[0].finish_reason:
            finish = chunk.choices[0].finish_reason
    turns = [
        *ask["messages"],
        required.choices[0].message,
        *({"role": "tool", "tool_call_id": call.id, "content": "42"} for call in calls),
    ]
    after = client.chat.completions.create(**ask | {"messages": turns}, tool_choice="none")
    return {
        "finish": required.choices[0].finish_reason,
        "calls": [[c.function.name, json.loads(c.function.arguments)] for c in calls],
        "ids": [call.id for call in calls],
        "named": [c.function.name for c in picked.choices[0].message.tool_calls or []],
        "named_finish": picked.choices[0].finish_reason,
        "streamed": [[call["name"], json.loads(call["arguments"])] for call in whole],
        "streamed_ids": [call["id"] for call in whole],
        "streamed_finish": finish,
        "fragments": fragments,
        "after": [after.choices[0].message.content, after.choices[0].message.tool_calls],
    }


def tool_helper() -> dict[str, Any]:
    """The package's own accumulation of streamed calls, with a strict tool."""
    with client.chat.completions.stream(
        model=MODEL, temperature=0, messages=ASK, max_completion_tokens=128,
        tools=[openai.pydantic_function_tool(Sum)], tool_choice="required",
    ) as events:  # fmt: skip
        kinds = [event.type for event in events]
        final = events.get_final_completion()
    call = (final.choices[0].message.tool_calls or [])[0]
    parsed = call.function.parsed_arguments
    return {
        "name": call.function.name,
        "parsed": parsed.model_dump() if isinstance(parsed, Sum) else None,
        "deltas": kinds.count("tool_calls.function.arguments.delta"),
        "done": kinds.count("tool_calls.function.arguments.done"),
    }


def structured() -> dict[str, Any]:
    ask: list[Any] = [{"role": "user", "content": "Write 3 + 4 as JSON."}]
    common: dict[str, Any] = {"model": MODEL, "messages": ask, "max_completion_tokens": 96}
    common |= {"temperature": 0}
    parsed = client.chat.completions.parse(**common, response_format=Sum)
    with client.chat.completions.stream(**common, response_format=Sum) as events:
        for _ in events:
            pass
        streamed = events.get_final_completion()
    free = client.chat.completions.create(
        **common | {"max_completion_tokens": 16}, response_format={"type": "json_object"}
    )
    one, two = parsed.choices[0].message.parsed, streamed.choices[0].message.parsed
    cut = common | {"max_completion_tokens": 2}
    return {
        "parsed": one.model_dump() if one else None,
        "streamed": two.model_dump() if two else None,
        "finish": parsed.choices[0].finish_reason,
        "cut": caught(lambda: client.chat.completions.parse(**cut, response_format=Sum))["class"],
        "object": [free.choices[0].message.content, free.choices[0].finish_reason],
    }


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


def responses() -> dict[str, Any]:
    whole = client.responses.create(
        model=MODEL, input="Name three colours.", temperature=0, max_output_tokens=8, store=False
    )
    kinds: list[str] = []
    text = ""
    for event in client.responses.create(
        model=MODEL, input="Name three colours.", temperature=0, max_output_tokens=8, store=False,
        stream=True,
    ):  # fmt: skip
        kinds.append(event.type)
        if event.type == "response.output_text.delta":
            text += event.delta
    parsed = client.responses.parse(
        model=MODEL, input="Write 3 + 4 as JSON.", temperature=0, max_output_tokens=96,
        store=False, text_format=Sum,
    )  # fmt: skip
    function = TOOLS[0]["function"]
    called = client.responses.create(
        model=MODEL, input="What is 12 + 30?", temperature=0, max_output_tokens=96, store=False,
        tools=[{"type": "function", "strict": True, **function}], tool_choice="required",
    )  # fmt: skip
    calls = [each for each in called.output if each.type == "function_call"]
    return {
        "text": whole.output_text,
        "status": whole.status,
        "usage": whole.usage.model_dump() if whole.usage else None,
        "streamed": text,
        "kinds": list(dict.fromkeys(kinds)),
        "parsed": parsed.output_parsed.model_dump() if parsed.output_parsed else None,
        "calls": [[each.name, json.loads(each.arguments)] for each in calls],
        "wrong": caught(
            lambda: client.responses.create(model=MODEL, input="a", previous_response_id="r")
        ),
    }


def tokenize(text: str) -> list[int]:
    """/tokenize is no route of OpenAI's, but the client can ask for any."""
    root = BASE_URL.removesuffix("/v1")
    told: Any = client.post(f"{root}/tokenize", body={"prompt": text}, cast_to=object)
    return list(told["tokens"])


def admin(method: str, path: str, body: Any = None, key: str | None = None) -> Any:
    """What the operator does beside the client."""
    request = urllib.request.Request(
        BASE_URL.removesuffix("/v1") + path,
        None if body is None else json.dumps(body).encode(),
        {
            "Authorization": f"Bearer {key or os.environ['INTERLOCK_ADMIN_KEY']}",
            "Content-Type": "application/json",
        },
        method=method,
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def _replica(models: Any) -> str:
    return str(models["data"][0]["replicas"][0]["name"])


SECTIONS = (chat, stream, many, logprobs, sampling, tools, tool_helper, structured, errors, models)
SECTIONS += (completions, echo, concurrent, retries, crowded, responses)

if __name__ == "__main__":
    report({section.__name__: section for section in SECTIONS}, {"loading": loading})
