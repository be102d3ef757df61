"""What clients are sent, byte for byte, over a real connection."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from endpoints import Loopback, loopback, saying

from interlock import __version__
from interlock.records.serving import Ended, EndKind
from interlock.serve.http.frames import Frames

TALK = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
PRINT = f"interlock-{__version__}-v3"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Loopback]:
    with loopback(tmp_path, lambda tokenizer: saying(tokenizer, "Hé.", "No")) as running:
        yield running


def neutral(text: str) -> str:
    """Without what is another in every answer."""
    text = re.sub(r'"id":"(chatcmpl|cmpl|gen)-[0-9a-f]{24}"', r'"id":"\1-X"', text)
    text = re.sub(r'"request_id":"gen-[0-9a-f]{24}"', '"request_id":"gen-X"', text)
    return re.sub(r'"created":\d+', '"created":0', text)


def events(text: str) -> list[Any]:
    """The parsed events; [DONE] is the last."""
    assert text.endswith("data: [DONE]\n\n")
    lines = text.removesuffix("data: [DONE]\n\n").split("\n\n")[:-1]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


HEAD = (
    'data: {"id":"chatcmpl-X","object":"chat.completion.chunk","created":0,"model":"tiny",'
    f'"system_fingerprint":"{PRINT}","choices":['
)
USAGE = (
    '"usage":{"prompt_tokens":8,"completion_tokens":5,"total_tokens":13,'
    '"prompt_tokens_details":{"cached_tokens":2},'
    '"completion_tokens_details":{"reasoning_tokens":0}}'
)
WAY = '"interlock":{"version":3,"replicas":["a"],"moved":0}'


def test_a_chat_stream_is_exactly_this(served: Loopback) -> None:
    answer = served.post("/v1/chat/completions", TALK | {"stream": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (answer.headers["x-interlock-version"], answer.headers["x-interlock-replica"]) == (
        "3",
        "a",
    )
    deltas = ['{"role":"assistant","content":""}']
    deltas += [f'{{"content":"{each}"}}' for each in ("H", "é", ".")]
    told = [f'{{"index":0,"delta":{d},"logprobs":null,"finish_reason":null}}' for d in deltas]
    expected = "".join(f"{HEAD}{each}]}}\n\n" for each in told)
    last = '{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}'
    expected += f"{HEAD}{last}],{WAY}}}\n\ndata: [DONE]\n\n"
    assert neutral(answer.text) == expected


def test_with_include_usage_other_chunks_say_null_and_the_last_has_no_choice(
    served: Loopback,
) -> None:
    more = {"stream": True, "stream_options": {"include_usage": True}}
    answer = served.post("/v1/chat/completions", TALK | more)
    *chunks, last = neutral(answer.text).removesuffix("data: [DONE]\n\n").split("\n\n")[:-1]
    assert len(chunks) == 5 and all(each.endswith('"usage":null}') for each in chunks)
    assert last == f"{HEAD}],{USAGE},{WAY}}}"


def test_a_chat_answer_in_one_is_exactly_this(served: Loopback) -> None:
    answer = served.post("/v1/chat/completions", TALK)
    assert neutral(answer.text) == (
        '{"id":"chatcmpl-X","object":"chat.completion","created":0,"model":"tiny",'
        f'"system_fingerprint":"{PRINT}",{WAY},"choices":[{{"index":0,"message":'
        '{"role":"assistant","content":"Hé.","refusal":null},"logprobs":null,'
        f'"finish_reason":"stop"}}],{USAGE}}}'
    )


def test_a_completion_stream_is_exactly_this(served: Loopback) -> None:
    ask = {"model": "tiny", "prompt": "ab", "max_tokens": 3, "n": 2, "stream": True}
    answer = served.post("/v1/completions", ask)
    head = (
        'data: {"id":"cmpl-X","object":"text_completion","created":0,"model":"tiny",'
        f'"system_fingerprint":"{PRINT}","choices":['
    )

    def choice(index: int, text: str, finish: str) -> str:
        told = f'"index":{index},"text":"{text}","logprobs":null,"finish_reason":{finish}'
        return f"{head}{{{told}}}]"

    expected = [
        choice(0, "H", "null"),
        choice(1, "N", "null"),
        choice(1, "o", "null"),
        choice(0, "é", '"length"'),
        choice(1, "", '"stop"') + f",{WAY}",
    ]
    text = "".join(f"{each}}}\n\n" for each in expected) + "data: [DONE]\n\n"
    assert neutral(answer.text) == text


def test_choices_of_a_stream_each_begin_with_their_role_and_end_once(served: Loopback) -> None:
    chunks = events(served.post("/v1/chat/completions", TALK | {"stream": True, "n": 5}).text)
    assert len({(c["id"], c["created"]) for c in chunks}) == 1
    told = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [c["delta"].get("role") for c in told[:5]] == ["assistant"] * 5
    for number in range(5):
        own = [c for c in told if c["index"] == number]
        text = "".join(c["delta"].get("content", "") for c in own)
        assert text == ("Hé.", "No")[number % 2]
        assert [c["finish_reason"] for c in own if c["finish_reason"]] == ["stop"]
    assert ["interlock" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_continuous_usage_counts_along(served: Loopback) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    ask = TALK | {"stream": True, "stream_options": options}
    chunks = events(served.post("/v1/chat/completions", ask).text)
    drawn = [c["usage"]["completion_tokens"] for c in chunks[1:]]
    assert drawn == sorted(drawn) and drawn[-2:] == [5, 5] and len(drawn) == 5


def test_a_failure_in_mid_stream_is_one_error_frame_then_done(served: Loopback) -> None:
    served.replicas.hold()
    served.replicas.step()
    with (
        served.client() as client,
        client.stream("POST", "/v1/chat/completions", json=TALK | {"stream": True}) as answer,
    ):
        parts = answer.iter_text()
        text = next(parts)
        served.replicas.end_all(Ended(EndKind.LOST, "every replica is gone"))
        text += "".join(parts)
    assert answer.status_code == 200
    assert text.endswith(
        '\n\ndata: {"error":{"message":"every replica is gone","type":"server_error",'
        '"param":null,"code":"replica_lost"}}\n\ndata: [DONE]\n\n'
    )
    assert text.count("error") == 2


def test_a_defect_in_mid_stream_is_one_error_frame_too(
    served: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Frames, choices: Any, more: Any) -> bytes:
        raise ZeroDivisionError("of the server's own")

    monkeypatch.setattr(Frames, "closing", broken)
    text = served.post("/v1/chat/completions", TALK | {"stream": True}).text
    assert text.endswith(
        '\n\ndata: {"error":{"message":"the server failed; its log says more",'
        '"type":"server_error","param":null,"code":"internal_error"}}\n\ndata: [DONE]\n\n'
    )
    assert text.startswith('data: {"id"') and "own" not in text
    served.replicas.wait_until(lambda: not served.endpoint.heard)


@pytest.mark.parametrize(
    ("kind", "status"), [(EndKind.MISTAKE, 400), (EndKind.LOST, 503), (EndKind.LATE, 504)]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_token_has_a_status(
    served: Loopback, kind: EndKind, status: int, stream: bool
) -> None:
    served.replicas.hold()
    with served.client() as client:

        def fail() -> None:
            served.replicas.wait_until(lambda: bool(served.replicas.asked))
            served.replicas.end_all(Ended(kind, "so it is"))

        thread = Thread(target=fail)
        thread.start()
        answer = client.post("/v1/chat/completions", json=TALK | {"stream": stream})
        thread.join(20)
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, "so it is")


def test_token_ids_come_and_go(served: Loopback) -> None:
    ask = {"token_ids": [1, 2, 3], "sampling_params": {"max_tokens": 2, "logprobs": 1}}
    answer = served.post("/inference/v1/generate", ask).json()
    ids = served.endpoint.tokenizer.encode("H") + served.endpoint.tokenizer.encode("é")[:1]
    assert answer["choices"] == [
        {
            "index": 0,
            "token_ids": ids,
            "logprobs": [-0.5, -0.5],
            "top_logprobs": [[[ids[0], -0.5]], [[ids[1], -0.5]]],
            "versions": [3, 3],
            "finish_reason": "length",
        }
    ]
    chunks = events(served.post("/inference/v1/generate", ask | {"stream": True}).text)
    streamed = [t for chunk in chunks for choice in chunk["choices"] for t in choice["token_ids"]]
    assert streamed == ids
    assert chunks[-1]["usage"] == answer["usage"] and chunks[-1]["interlock"]["version"] == 3
