"""Every kind of bad input: its status, the field it names, and the four keys of an error."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoints import ADMIN, KEY, Loopback, loopback, saying

from interlock.records.serving import ReplicaState

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TALK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
WRITE: dict[str, Any] = {"model": "tiny", "prompt": "hi"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    directory = tmp_path_factory.mktemp("served")
    settings = ["limits.body_mb=1", "limits.messages=8", "limits.prompts=4", "limits.choices=200"]
    with loopback(directory, lambda tokenizer: saying(tokenizer, "ok"), settings) as running:
        yield running


def error_of(served: Loopback, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
    told = {"content-type": "application/json"} | headers
    with served.client() as client:
        answer = client.post(path, content=body, headers=told)
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"} and set(error) == {"message", "type", "param", "code"}
    assert answer.headers["content-type"] == "application/json"
    assert error["message"] and "\n" not in error["message"]
    return answer.status_code, error


ANYWHERE = [
    ("n", 0),
    ("n", -1),
    ("n", 129),
    ("n", 1e6),
    ("n", 1_000_000),
    ("n", "2"),
    ("n", 1.5),
    ("n", True),
    ("n", [1]),
    ("max_tokens", -1),
    ("max_tokens", 2**63),
    ("max_tokens", "5"),
    ("max_tokens", 100_000),
    ("temperature", -1),
    ("temperature", 2.1),
    ("temperature", "hot"),
    ("top_p", 1.1),
    ("top_p", -0.1),
    ("top_k", -2),
    ("min_p", 2),
    ("stop", ["a", "b", "c", "d", "e"]),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", 3),
    ("seed", 2**63),
    ("seed", -(2**63) - 1),
    ("seed", 1.5),
    ("logit_bias", {"1": 101}),
    ("logit_bias", {"x": 1}),
    ("logit_bias", {"01": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"257": 1}),
    ("logit_bias", [1]),
    ("stop_token_ids", [257]),
    ("prompt_logprobs", 65),
    ("stream", "yes"),
    ("stream_options", {"include_usage": True}),
    ("presence_penalty", 0.5),
    ("frequency_penalty", -1),
    ("repetition_penalty", 1.1),
    ("user", 3),
    ("user", "x" * 513),
    ("model", 3),
    ("model", ""),
    ("nonsense", 1),
]


@pytest.mark.parametrize(("path", "base"), [(CHAT, TALK), (TEXT, WRITE)], ids=["chat", "text"])
@pytest.mark.parametrize(("field", "value"), ANYWHERE, ids=lambda v: repr(v)[:30])
def test_a_bad_value_is_400_and_its_field_is_named(
    served: Loopback, path: str, base: dict[str, Any], field: str, value: Any
) -> None:
    status, error = error_of(served, path, json.dumps(base | {field: value}).encode())
    assert (status, error["type"]) == (400, "invalid_request_error")
    assert error["param"].partition(".")[0].partition("[")[0] == field


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("max_tokens", 0, "max_tokens"),
        ("max_completion_tokens", 0, "max_completion_tokens"),
        ("max_completion_tokens", 600, "max_completion_tokens"),
        ("top_logprobs", 21, "top_logprobs"),
        ("top_logprobs", 2, "top_logprobs"),
        ("logprobs", 2, "logprobs"),
        ("messages", [], "messages"),
        ("messages", None, "messages"),
        ("messages", "hi", "messages"),
        ("messages", [3], "messages[0]"),
        ("messages", [{"role": "user", "content": "x"}] * 9, "messages"),
        ("messages", [{"role": "wizard", "content": "x"}], "messages[0].role"),
        ("messages", [{"role": "user", "content": None}], "messages[0].content"),
        ("messages", [{"role": "user"}], "messages[0].content"),
        ("messages", [{"role": "user", "content": 3}], "messages[0].content"),
        ("messages", [{"role": "user", "content": []}], "messages[0].content"),
        ("messages", [{"role": "user", "content": "x", "odd": 1}], "messages[0].odd"),
        (
            "messages",
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[0].content[0].type",
        ),
        ("messages", [{"role": "user", "content": "x" * 600}], "messages"),
        ("chat_template", "{{ 1 }}", "chat_template"),
        ("chat_template_kwargs", {"messages": []}, "chat_template_kwargs.messages"),
        ("chat_template_kwargs", {"tools": "x"}, "chat_template_kwargs.tools"),
        ("chat_template_kwargs", 3, "chat_template_kwargs"),
        ("reasoning_effort", "vast", "reasoning_effort"),
        ("thinking_budget", 5, "thinking_budget"),
        ("tools", [{"type": "function"}], "tools[0].function"),
        ("store", True, "store"),
        ("service_tier", "priority", "service_tier"),
        ("modalities", ["audio"], "modalities"),
        ("functions", [], "functions"),
        ("metadata", {"a": 1}, "metadata"),
        ("audio", {}, "audio"),
        ("verbosity", "high", "verbosity"),
    ],
    ids=lambda v: repr(v)[:40],
)
def test_a_bad_chat_is_400(served: Loopback, field: str, value: Any, param: str) -> None:
    status, error = error_of(served, CHAT, json.dumps(TALK | {field: value}).encode())
    assert (status, error["param"]) == (400, param)


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("max_tokens", 0, "max_tokens"),
        ("logprobs", 6, "logprobs"),
        ("logprobs", True, "logprobs"),
        ("prompt", [], "prompt"),
        ("prompt", "", "prompt"),
        ("prompt", None, "prompt"),
        ("prompt", [1, "a"], "prompt"),
        ("prompt", [[1], []], "prompt[1]"),
        ("prompt", [-1], "prompt"),
        ("prompt", [1.5], "prompt"),
        ("prompt", [257], "prompt"),
        ("prompt", ["a"] * 5, "prompt"),
        ("prompt", [1] * 512, "prompt"),
        ("prompt", {"a": 1}, "prompt"),
        ("best_of", 2, "best_of"),
        ("suffix", "end", "suffix"),
    ],
    ids=lambda v: repr(v)[:40],
)
def test_a_bad_completion_is_400(served: Loopback, field: str, value: Any, param: str) -> None:
    status, error = error_of(served, TEXT, json.dumps(WRITE | {field: value}).encode())
    assert (status, error["param"]) == (400, param)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (json.dumps(TALK | {"stop": ["a"] * 5}).encode(), "at most 4 items"),
        (json.dumps(TALK | {"stop": ["a"] * 4 + [1]}).encode(), "at most 4 items"),
        (json.dumps(TALK | {"stop": 3}).encode(), "a valid string"),
        (b"\xef\xbb\xbf" + json.dumps(TALK).encode(), "a byte order mark"),
    ],
)
def test_what_is_wrong_is_said(served: Loopback, body: bytes, says: str) -> None:
    status, error = error_of(served, CHAT, body)
    assert status == 400 and says in error["message"]


def test_choices_of_all_prompts_together_have_a_limit(served: Loopback) -> None:
    body = json.dumps(WRITE | {"prompt": ["a", "b"], "n": 101}).encode()
    assert error_of(served, TEXT, body)[1]["param"] == "n"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model": "tiny", "messages": [',
        b"[]",
        b"3",
        b"null",
        b'{"model": "tiny"} x',
        b'{"temperature": NaN, "model": "tiny"}',
        b'{"temperature": Infinity, "model": "tiny"}',
        b'{"temperature": 1e999, "model": "tiny"}',
        b'{"n": ' + b"9" * 5000 + b"}",
        b'{"model": "tiny", "model": "tiny"}',
        b'{"messages": [{"role": "user", "role": "user"}]}',
        b'{"a": "\xff\xfe"}',
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b"[" * 100_000,
        b'{"a":' * 65 + b"1" + b"}" * 65,
        b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}",
        b"\x00",
        b"\xef\xbb\xbf{}",
    ],
    ids=lambda body: repr(body[:24]),
)
@pytest.mark.parametrize("path", [CHAT, TEXT, "/tokenize", "/detokenize", "/inference/v1/generate"])
def test_what_is_no_json_is_400(served: Loopback, path: str, body: bytes) -> None:
    status, error = error_of(served, path, body)
    assert (status, error["code"]) == (400, "invalid_json")


def test_a_nul_in_a_text_is_text(served: Loopback) -> None:
    said = [{"role": "user", "content": "a\0b"}]
    assert served.post(CHAT, TALK | {"messages": said}).status_code == 200
    assert b"\0" in served.endpoint.tokenizer.decode(served.replicas.asked[-1].prompt).encode()


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "json"])
def test_another_content_type_is_415(served: Loopback, kind: str) -> None:
    body = json.dumps(TALK).encode()
    assert error_of(served, CHAT, body, **{"content-type": kind})[0] == 415


def test_a_compressed_body_is_415(served: Loopback) -> None:
    assert error_of(served, CHAT, b"{}", **{"content-encoding": "gzip"})[0] == 415


def test_a_body_that_says_it_is_too_long_is_413(served: Loopback) -> None:
    body = json.dumps(TALK | {"user": "x" * (1 << 20)}).encode()
    assert error_of(served, CHAT, body)[0] == 413


def test_a_body_that_does_not_say_so_is_413_where_it_is_too_long(served: Loopback) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * (1 << 16)

    with served.client() as client:
        answer = client.post(CHAT, content=parts(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "name", ["gpt-4o", "tiny ", "TINY", "../tiny", "tiny/../../etc/passwd", "tiny\n", "\u2028"]
)
def test_an_unknown_model_is_404(served: Loopback, name: str) -> None:
    for path, body in ((CHAT, TALK), (TEXT, WRITE), ("/tokenize", {"prompt": "a"})):
        status, error = error_of(served, path, json.dumps(body | {"model": name}).encode())
        assert (status, error["param"], error["code"]) == (404, "model", "model_not_found")
    with served.client() as client:
        assert client.get("/v1/models/..%2f..%2fetc").status_code == 404


def test_either_name_is_answered_and_the_first_is_told(served: Loopback) -> None:
    answer = served.post(CHAT, TALK | {"model": "other/name"})
    assert (answer.status_code, answer.json()["model"]) == (200, "tiny")
    with served.client() as client:
        told = [each["id"] for each in client.get("/v1/models").json()["data"]]
        assert client.get("/v1/models/other/name").json()["id"] == "other/name"
    assert told == ["tiny", "other/name"]


def test_no_route_is_404_and_no_method_405(served: Loopback) -> None:
    with served.client() as client:
        assert client.get("/v1/nothing").json()["error"]["code"] == "unknown_route"
        answer = client.get(CHAT)
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
        assert answer.headers["allow"] == "POST"
        assert client.get("/v1/models/").status_code == 404


def test_values_that_ask_for_nothing_are_taken(served: Loopback) -> None:
    nothing = {"presence_penalty": 0, "frequency_penalty": 0.0, "store": False, "user": "me"}
    nothing |= {"metadata": {"a": "b"}, "service_tier": "auto", "modalities": ["text"]}
    nothing |= {"logit_bias": None, "parallel_tool_calls": True, "safety_identifier": "me"}
    assert served.post(CHAT, TALK | nothing).status_code == 200


def test_a_full_queue_is_429_with_the_time_to_wait(served: Loopback) -> None:
    served.replicas.overloaded = True
    try:
        answer = served.post(CHAT, TALK)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
        assert answer.json()["error"]["type"] == "rate_limit_error"
        served.replicas.state = ReplicaState.REFUSED
        assert served.post(TEXT, WRITE).status_code == 503
        with served.client() as client:
            assert client.get("/health").status_code == 503
    finally:
        served.replicas.overloaded, served.replicas.state = False, ReplicaState.READY
    assert served.post(CHAT, TALK).status_code == 200


def test_drained_is_503_with_the_time_to_wait(served: Loopback) -> None:
    served.replicas.drain("a", True)
    try:
        answer = served.post(CHAT, TALK)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
        assert answer.json()["error"]["code"] == "no_replica"
        with served.client() as client:
            assert client.get("/health").status_code == 200, "what it has goes on"
    finally:
        served.replicas.drain("a", False)
    assert served.post(CHAT, TALK).status_code == 200


def test_nothing_that_was_refused_was_drawn(tmp_path: Path) -> None:
    with loopback(tmp_path) as served:
        for body in (TALK | {"n": 0}, TALK | {"model": "x"}, WRITE):
            assert served.post(CHAT, body).status_code in (400, 404)
        assert served.replicas.asked == [] and served.endpoint.heard == 0


def test_while_the_replicas_start_it_is_503(tmp_path: Path) -> None:
    with loopback(tmp_path, loading=True) as served:
        for answer in (served.post(CHAT, TALK), served.post(TEXT, WRITE)):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")
            assert answer.headers["retry-after"] == "1"
        with served.client(key=None) as client:
            assert client.get("/health").status_code == 503
        with served.client() as client:
            assert client.get("/v1/models").status_code == 200
            assert client.get("/metrics").status_code == 200
            assert client.get("/tokenizer_info").status_code == 503
        with served.client(key=ADMIN) as client:
            assert client.get("/admin/replicas").status_code == 503


def test_the_key_is_not_told_in_an_error(served: Loopback) -> None:
    with served.client() as client:
        answer = client.post(CHAT, content=KEY, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and KEY not in answer.text
