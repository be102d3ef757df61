"""What is measured and logged: vLLM's names, and no word of a prompt unless it was asked for."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoints import ADMIN, Loopback, loopback, saying

TALK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "secret word"}]}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Loopback]:
    with loopback(tmp_path, lambda tokenizer: saying(tokenizer, "Hi.")) as running:
        yield running


def figures(served: Loopback) -> dict[str, float]:
    with served.client() as client:
        lines = client.get("/metrics").text.splitlines()
    pairs = [line.rpartition(" ") for line in lines if line[:1] != "#"]
    return {name: float(value) for name, _, value in pairs}


def test_the_names_are_vllms_and_the_numbers_right(served: Loopback) -> None:
    served.post("/v1/chat/completions", TALK | {"n": 2})
    served.post("/v1/chat/completions", TALK | {"stream": True, "max_tokens": 2})
    found = figures(served)

    def of(name: str, more: str = "") -> float:
        return found[f'vllm:{name}{{{more}model_name="tiny"}}']

    assert of("num_requests_running") == 0 and of("num_requests_waiting") == 0
    assert of("kv_cache_usage_perc") == 0
    assert of("prompt_tokens_total") == 2 * len("user:secret word\n")
    assert of("generation_tokens_total") == 2 * 4 + 2
    assert of("time_to_first_token_seconds_count") == 2
    assert of("inter_token_latency_seconds_count") == 2 * 3 + 1
    assert of("e2e_request_latency_seconds_count") == 2
    assert of("request_success_total", 'finished_reason="stop",') == 2
    assert of("request_success_total", 'finished_reason="length",') == 1
    assert found['interlock:replica_up{model_name="tiny",replica="a"}'] == 1


def test_a_request_is_one_line_without_its_words(
    served: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "interlock.serve")
    served.post("/v1/chat/completions", TALK)
    served.post("/v1/completions", {"model": "tiny", "prompt": "secret word", "n": 0})
    lines = [r.getMessage() for r in caplog.records if r.name == "interlock.serve"]
    assert len(lines) == 1 and " key-1: 17 + 4 tokens, " in lines[0]
    assert lines[0].endswith(" s, version 3, a; stop")
    assert "secret" not in caplog.text and "k" * 20 not in caplog.text


def test_words_are_logged_where_that_was_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "interlock.serve")
    with loopback(tmp_path, settings=["log_prompts=true"]) as served:
        said = [{"role": "user", "content": "a\x1b[2J\nb"}]
        served.post("/v1/chat/completions", TALK | {"messages": said})
    assert "asks user:a␛[2J b" in caplog.text


def test_models_show_every_replica(served: Loopback) -> None:
    with served.client() as client:
        (first, _) = client.get("/v1/models").json()["data"]
    replica = first["replicas"][0]
    assert (first["max_model_len"], first["version"]) == (512, 3)
    assert {"state", "trust", "parity", "version", "reason"} <= replica.keys()
    assert (replica["state"], replica["trust"], replica["version"]) == ("ready", "generate", 3)


def test_admin_pins_unpins_and_drains(served: Loopback) -> None:
    with served.client(key=ADMIN) as client:
        assert client.post("/admin/pin", json={"version": 2}).status_code == 200
        assert client.post("/admin/unpin").status_code == 200
        assert served.replicas.pinned == [2, None]
        told = client.post("/admin/drain", json={"replica": "a"}).json()
        assert told["replicas"][0]["state"] == "draining"
        told = client.post("/admin/drain", json={"replica": "a", "on": False}).json()
        assert told["replicas"][0]["state"] == "ready"
        answer = client.post("/admin/drain", json={"replica": "b"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "replica")
        assert client.post("/admin/pin", json={"version": -1}).json()["error"]["param"] == "version"


def test_one_connection_too_many_is_503(tmp_path: Path) -> None:
    with (
        loopback(tmp_path, settings=["limits.connections=1"]) as served,
        served.client() as first,
        served.client() as second,
    ):
        assert first.get("/health").status_code == 200
        answer = second.get("/health")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "too_many_connections")
        assert first.get("/health").status_code == 200
