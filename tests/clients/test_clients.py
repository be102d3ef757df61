"""Real clients, unmodified, each in an environment of its own, against a server: `make clients`.

conftest: interlock serve smollm2-135m-instruct, with a key
     ^ HTTP
*_program.py, *.mjs: what a user writes ──JSON──> the figures here
"""

import math
import socket
from pathlib import Path
from typing import Any

import pytest
from real_clients import Client, Served, run, serving

from interlock.config.schema import GeneratorSettings
from interlock.engine.portable.engine import open_engine
from interlock.models.tokenizer import Tokenizer

pytestmark = [pytest.mark.clients, pytest.mark.timeout(1800)]

OPENAI = ("openai", "openai_python.py")
NPM = ("npm", "openai_npm.mjs")
ANTHROPIC = ("anthropic", "anthropic_program.py")
INSPECT = ("inspect-ai", "inspect_program.py")
RED = "1. Red\n2. Blue\n"  # eight tokens of SmolLM2, greedily, to "Name three colours."
ADDED = {"a": 12, "b": 30}


# openai (Python)


def test_openai_chats(client: Client) -> None:
    found = client(*OPENAI, "chat")
    assert found["texts"] == [RED, RED] and found["finish"] == "length"
    assert (found["role"], found["object"]) == ("assistant", "chat.completion")
    usage = found["usage"]
    counted = [usage[f"{kind}_tokens"] for kind in ("prompt", "completion", "total")]
    assert counted == [13, 8, 21]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0
    assert found["ids_differ"]


def test_openai_streams_what_it_chats(client: Client) -> None:
    found = client(*OPENAI, "stream")
    assert (found["text"], found["pieces"], found["finishes"]) == (RED, 8, ["length"])
    assert (found["ids"], found["created"]) == (1, 1)
    assert found["objects"] == ["chat.completion.chunk"]
    assert (found["last_choices"], found["usage_before"]) == (0, 0)
    assert found["usage"]["total_tokens"] == 21


def test_openai_gets_several_choices(client: Client) -> None:
    found = client(*OPENAI, "many")
    assert found["indices"] == [0, 1, 2] and found["completion_tokens"] == 36
    assert len(set(found["texts"])) == 3 and found["streamed"] == found["texts"]
    assert found["finishes"] == ["length"] * 3
    assert found["big"] == 128


def test_openai_gets_logprobs(client: Client) -> None:
    found = client(*OPENAI, "logprobs")
    assert found["tokens"] == 6 and found["text_is_bytes"]
    assert found["alternatives"] == [20] * 6
    assert found["descend"] and found["greedy_is_best"]
    assert all(0 < mass <= 1 + 1e-6 for mass in found["mass"])
    assert found["streamed"] == pytest.approx(found["logprobs"], abs=1e-4)


def test_openai_steers_sampling(client: Client) -> None:
    found = client(*OPENAI, "sampling")
    assert found["stopped"] == ["1", "stop"]  # "1. Red", cut before the dot
    assert found["biased"] == ",,,,"
    assert found["narrow"] == found["greedy"] == RED  # top_k = 1 at temperature 2


def test_openai_calls_tools(client: Client) -> None:
    found = client(*OPENAI, "tools")
    assert found["finish"] == found["streamed_finish"] == "tool_calls"
    assert found["calls"][0] == ["add", ADDED]
    assert found["streamed"] == found["calls"] and found["fragments"] > len(found["calls"])
    ids = found["ids"] + found["streamed_ids"]
    assert len(set(ids)) == len(ids) == 2 * len(found["calls"])
    assert found["named_finish"] == "tool_calls" and set(found["named"]) == {"multiply"}
    text, calls = found["after"]
    assert text and calls is None


def test_openai_parses_strict_tools_and_schemas(client: Client) -> None:
    called = client(*OPENAI, "tool_helper")
    assert called["name"] == "Sum" and called["done"] == 1 and called["deltas"] > 1
    found = client(*OPENAI, "structured")
    for parsed in (called["parsed"], found["parsed"], found["streamed"]):
        assert parsed["operator"] in ("plus", "minus")
        assert 0 <= parsed["left"] <= 99 and 0 <= parsed["right"] <= 99
    assert found["streamed"] == found["parsed"] and found["finish"] == "stop"
    assert found["cut"] == "LengthFinishReasonError"
    assert found["object"][0].startswith("{")


@pytest.mark.parametrize(
    ("name", "raised", "status", "param", "code"),
    [
        ("model", "NotFoundError", 404, "model", "model_not_found"),
        ("key", "AuthenticationError", 401, None, "invalid_api_key"),
        ("temperature", "BadRequestError", 400, "temperature", "invalid_value"),
        ("n", "BadRequestError", 400, "n", "invalid_value"),
        ("n129", "BadRequestError", 400, "n", "invalid_value"),
        ("role", "BadRequestError", 400, "messages[0].role", "invalid_value"),
        ("empty", "BadRequestError", 400, "messages", "invalid_value"),
        ("unknown", "BadRequestError", 400, "colour", "unknown_parameter"),
        ("penalty", "BadRequestError", 400, "frequency_penalty", "unsupported_parameter"),
        ("long", "BadRequestError", 400, "messages", "context_length_exceeded"),
        ("tokens", "BadRequestError", 400, "max_completion_tokens", "context_length_exceeded"),
        ("schema", "BadRequestError", 400, "response_format.json_schema.schema", "invalid_value"),
        ("absent", "NotFoundError", 404, None, "unknown_route"),
        ("mid_stream", "BadRequestError", 400, "max_tokens", "invalid_value"),
        ("timeout", "APITimeoutError", None, None, None),
    ],
)
def test_openai_raises_its_own_errors(
    client: Client, name: str, raised: str, status: int | None, param: str | None, code: str | None
) -> None:
    found = client(*OPENAI, "errors")[name]
    told = [found[key] for key in ("class", "status_code", "param", "code")]
    assert told == [raised, status, param, code]


def test_openai_lists_models(client: Client) -> None:
    found = client(*OPENAI, "models")
    assert found["ids"] == ["smollm2-135m-instruct"] and found["one"] == found["ids"][0]
    assert (found["object"], found["absent"]) == ("model", "NotFoundError")


def test_openai_completes_texts_and_tokens(client: Client) -> None:
    found = client(*OPENAI, "completions")
    assert found["text"] == found["of_ids"] == found["streamed"] == found["two"][0]
    assert found["text"].startswith(" Paris") and found["object"] == "text_completion"
    assert found["prompt_tokens"] == [5, 5]
    assert found["indices"] == [0, 1, 2, 3] and found["two"][0] == found["two"][1]
    assert found["default_tokens"] == 16


def test_openai_has_the_prompts_logprobs_echoed(client: Client, smollm2: Path) -> None:
    found = client(*OPENAI, "echo")
    own = scores(smollm2, found["ids"])
    assert found["token_logprobs"][0] is None and found["bare"][0] is None
    assert found["token_logprobs"][1:-1] == pytest.approx(own, abs=1e-4)
    assert found["bare"][1:] == pytest.approx(own, abs=1e-4)
    assert found["bare_text"] == "The capital of France is Paris."
    assert found["text"] == "".join(found["tokens"])
    starts = [sum(map(len, found["tokens"][:i])) for i in range(len(found["tokens"]))]
    assert found["offsets"] == starts and found["tops"] == len(starts)


def test_openai_asks_at_once_and_leaves(client: Client, served: Served) -> None:
    assert client(*OPENAI, "concurrent") == {"texts": [RED]}


def test_openai_retries_what_is_drained_and_what_overflows(client: Client) -> None:
    found = client(*OPENAI, "retries")
    assert found["refused"]["status_code"] in (429, 503)
    assert found["retries"] >= 1 and found["status"] == 200
    crowd = client(*OPENAI, "crowded")
    assert crowd["refused"] and set(crowd["refused"]) == {429}
    assert all(int(seconds) >= 1 for seconds in crowd["retry_after"])
    assert crowd["errors"] == [] and crowd["choices"] == [100] * 4
    assert sum(crowd["retries"]) >= 1


def test_openai_retries_while_the_server_loads(smollm2: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving("smollm2-135m-instruct", tmp_path / "log", port=port, wait=False) as loading:
        found = run(*OPENAI, loading, "loading")["loading"]
    assert "failed" not in found, found
    refused = found["refused"]
    assert (refused["class"], refused["status_code"]) == ("InternalServerError", 503)
    assert refused["code"] in ("loading", "no_replica")  # by how far the server has come
    assert found["retries"] >= 1 and found["status"] == 200


def test_openai_uses_the_responses_api(client: Client) -> None:
    found = client(*OPENAI, "responses")
    assert found["text"] == found["streamed"] == RED and found["status"] == "incomplete"
    assert [found["usage"][f"{kind}_tokens"] for kind in ("input", "output")] == [13, 8]
    assert found["kinds"][0] == "response.created" and found["kinds"][-1] == "response.incomplete"
    assert 0 <= found["parsed"]["left"] <= 99
    assert found["calls"][0] == ["add", ADDED]
    assert found["wrong"]["class"] == "BadRequestError"


# openai (npm)


def test_npm_chats_streams_and_parses(client: Client) -> None:
    assert client(*NPM, "chat")["text"] == client(*NPM, "stream")["text"] == RED
    assert client(*NPM, "stream")["usage"] == client(*NPM, "chat")["usage"]
    assert client(*NPM, "chat")["usage"]["total_tokens"] == 21
    assert client(*NPM, "many") == {"indices": [0, 1, 2]}
    assert client(*NPM, "logprobs") == {"alternatives": [3, 3, 3, 3]}
    assert 0 <= client(*NPM, "structured")["parsed"]["left"] <= 99
    assert client(*NPM, "models") == {"ids": ["smollm2-135m-instruct"]}
    echoed = client(*NPM, "completions")
    assert echoed["text"].startswith("The capital of France is Paris")
    assert (echoed["tokens"], echoed["first"]) == (9, None)
    assert client(*NPM, "abort") == {"seen": 3}


def test_npm_calls_tools_and_raises_its_own_errors(client: Client) -> None:
    found = client(*NPM, "tools")
    assert found["finish"] == "tool_calls" and found["calls"][0] == ["add", ADDED]
    assert found["deltas"] > len(found["calls"])
    errors = client(*NPM, "errors")
    told = {name: (each["class"], each["status"], each["param"]) for name, each in errors.items()}
    assert told == {
        "model": ("NotFoundError", 404, "model"),
        "key": ("AuthenticationError", 401, None),
        "temperature": ("BadRequestError", 400, "temperature"),
    }


# anthropic


def test_anthropic_sends_messages(client: Client) -> None:
    found = client(*ANTHROPIC, "message")
    assert (found["text"], found["stop"]) == (RED, "max_tokens")
    assert found["usage"] == [13, 8] and found["counted"] == 13
    streamed = client(*ANTHROPIC, "stream")
    assert streamed["text"] == streamed["whole"] != "" and streamed["usage"][1] == 8
    assert streamed["kinds"][0] == "message_start" and streamed["kinds"][-1] == "message_stop"
    tools = client(*ANTHROPIC, "tools")
    assert tools["calls"][0] == ["add", ADDED] and tools["streamed"] == tools["calls"]
    assert (tools["stop"], tools["after"]) == ("tool_use", ["text"])
    errors = client(*ANTHROPIC, "errors")
    assert {name: each["class"] for name, each in errors.items()} == {
        "model": "NotFoundError",
        "temperature": "BadRequestError",
        "tokens": "BadRequestError",
        "key": "AuthenticationError",
    }


# lm-eval


def test_lm_eval_finds_our_own_loglikelihoods(client: Client, smollm2: Path) -> None:
    found = client("lm-eval", "lm_eval_program.py", "evaluated")
    tokenizer = Tokenizer.load(smollm2)
    compared = 0
    for sample in found["interlock_choices"]:
        for asked, ((told, _),) in zip(
            sample["arguments"].values(), sample["responses"], strict=True
        ):
            context, answer = asked["arg_0"], asked["arg_1"]
            whole, before = tokenizer.encode(context + answer), tokenizer.encode(context)
            own = math.fsum(scores(smollm2, whole)[len(before) - 1 :])
            assert float(told) == pytest.approx(own, abs=1e-4)
            compared += 1
    assert compared == 11
    assert [sample["metrics"] for sample in found["interlock_choices"]] == [1, 1, 0, 1]
    texts = [sample["responses"][0][0] for sample in found["interlock_text"]]
    assert texts[0] == " Paris" and texts[3] == " Celsius" and not any("." in t for t in texts)


# inspect-ai


def test_inspect_evaluates(client: Client) -> None:
    found = client(*INSPECT, "plain")
    assert (found["status"], found["error"], found["scores"]) == ("success", None, ["C", "C"])
    assert found["accuracy"] == 1.0 and found["stops"] == ["max_tokens", "stop"]
    (usage,) = found["usage"].values()
    assert (usage["input_tokens"], usage["output_tokens"]) == (30, 24)
    assert client(*INSPECT, "streamed")["outputs"] == found["outputs"][:1]


def test_inspect_has_its_tool_called(client: Client) -> None:
    found = client(*INSPECT, "with_tool")
    assert (found["status"], found["called"], found["results"]) == ("success", [[12, 30]], ["42"])
    assert found["roles"] == ["user", "assistant", "tool", "assistant"]


# guidellm


@pytest.mark.parametrize(("route", "prompt"), [("chat", 57), ("text", 48)])
def test_guidellm_loads_without_a_failure(
    client: Client, smollm2: Path, monkeypatch: pytest.MonkeyPatch, route: str, prompt: int
) -> None:
    """`prompt`: its 48 tokens, and those of the chat template around them."""
    monkeypatch.setenv("INTERLOCK_TOKENIZER", str(smollm2))
    runs = client("guidellm", "guidellm_program.py", route)["runs"]
    assert len(runs) == 2
    for each in runs:
        assert (each["successful"], each["incomplete"], each["errored"]) == (16, 0, 0)
        assert (each["prompt"], each["output"]) == (prompt, 12)
        assert each["first_ms"] > 0 and each["between_ms"] > 0


# schemathesis


def test_schemathesis_finds_no_failure(tiny_model: Path, tmp_path: Path) -> None:
    """Short answers of a tiny model; "0" is among its names, for that is what is made up first."""
    settings = ["replica.dtype=float32", "replica.slots=32", "limits.max_tokens=8"]
    settings += ["limits.choices=16", 'names=["tiny","0"]']
    with serving(str(tiny_model), tmp_path / "log", *settings) as fuzzed:
        told = run("schemathesis", "schemathesis_program.py", fuzzed)
    for found in told.values():
        assert "failed" not in found, found
        assert found["failures"] == [] and found["errors"] == [], found["output"]
        assert found["tested"] == found["selected"]
    api, admin = told["api"], told["admin"]
    assert api["cases"] > 1000 and api["tested"] >= 19
    assert admin["cases"] > 50 and admin["tested"] == 4
    reached = {name for name, accepted in api["accepted"].items() if accepted}
    assert {"POST /v1/chat/completions", "POST /v1/completions", "POST /tokenize"} < reached


# behind all


def test_nothing_runs_once_all_clients_are_gone(client: Client, served: Served) -> None:
    """Those that left in the middle, too."""
    client(*OPENAI, "concurrent")
    replicas: list[dict[str, Any]] = served.get("/v1/models")["data"][0]["replicas"]
    assert [each["state"] for each in replicas] == ["ready"]
    assert [each["restarts"] for each in replicas] == [0]
    assert served.metric("vllm:num_requests_running") == 0
    assert served.metric("vllm:num_requests_waiting") == 0


_ENGINES: dict[Path, Any] = {}


def scores(model: Path, tokens: list[int]) -> list[float]:
    """Log-probabilities of tokens[1:], by an engine of ours in this process."""
    if model not in _ENGINES:
        settings = GeneratorSettings(dtype="float32")
        _ENGINES[model] = open_engine(settings, model, Tokenizer.load(model))
    return list(_ENGINES[model].score(tokens).logprobs)
