"""Log-probabilities as clients are told them, by hand from what the replicas say."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoints import Loopback, loopback, saying

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TALK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    directory = tmp_path_factory.mktemp("served")
    with loopback(directory, lambda tokenizer: saying(tokenizer, "Hé")) as running:
        yield running


def test_an_echo_has_the_prompts_own_before_the_answers(served: Loopback) -> None:
    ask = {"model": "tiny", "prompt": "abé", "echo": True, "logprobs": 1, "max_tokens": 2}
    (choice,) = served.post(TEXT, ask).json()["choices"]
    assert choice["text"] == "abéH"
    names = ["a", "b", "bytes:\\xc3", "bytes:\\xa9", "H", "bytes:\\xc3"]
    values = [None, -0.25, -0.5, -0.75, -0.5, -0.5]
    assert choice["logprobs"] == {
        "tokens": names,
        "token_logprobs": values,
        "top_logprobs": [None, *({n: v} for n, v in zip(names[1:], values[1:], strict=True))],
        "text_offset": [0, 1, 2, 2, 3, 4],
    }


def test_token_ids_one_token_and_echo_are_what_evaluations_send(served: Loopback) -> None:
    ids = served.endpoint.tokenizer.encode("abc")
    ask = {"model": "tiny", "prompt": [ids, ids[:2]], "echo": True, "logprobs": 1}
    choices = served.post(TEXT, ask | {"max_tokens": 1, "seed": 1234}).json()["choices"]
    assert [c["text"] for c in choices] == ["abcH", "abH"]
    sums = [sum(c["logprobs"]["token_logprobs"][1:-1]) for c in choices]
    assert sums == [-0.75, -0.25]
    assert [g.prompt for g in served.replicas.asked[-2:]] == [ids, ids[:2]]


@pytest.mark.parametrize("said", ["Hé", ""])
def test_echo_alone_draws_nothing_that_is_told(tmp_path: Path, said: str) -> None:
    ask = {"model": "tiny", "prompt": ["ab", "c"], "echo": True, "logprobs": 0, "max_tokens": 0}
    options = {"include_usage": True, "continuous_usage_stats": True}
    with loopback(tmp_path, lambda tokenizer: saying(tokenizer, said)) as served:
        tree = served.post(TEXT, ask).json()
        text = served.post(TEXT, ask | {"stream": True, "stream_options": options}).text
    told = [(c["text"], c["logprobs"]["tokens"], c["finish_reason"]) for c in tree["choices"]]
    assert told == [("ab", ["a", "b"], "length"), ("c", ["c"], "length")]
    chunks = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
    assert len(chunks) == 3
    for usage in (tree["usage"], *(chunk["usage"] for chunk in chunks)):
        counted = [usage[f"{kind}_tokens"] for kind in ("prompt", "completion", "total")]
        assert counted == [3, 0, 3]


def test_a_stream_tells_the_same_piece_by_piece(served: Loopback) -> None:
    ask = {"model": "tiny", "prompt": "ab", "echo": True, "logprobs": 2}
    whole = served.post(TEXT, ask).json()["choices"][0]
    text = served.post(TEXT, ask | {"stream": True}).text

    lines = [line[6:] for line in text.split("\n\n") if line.startswith("data: {")]
    told = [choice for line in lines for choice in json.loads(line)["choices"]]
    assert "".join(c["text"] for c in told) == whole["text"] == "abHé"
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [e for c in told for e in c["logprobs"][name]] == whole["logprobs"][name]


def test_a_chat_has_bytes_and_alternatives(served: Loopback) -> None:
    ask = TALK | {"logprobs": True, "top_logprobs": 2, "max_tokens": 2}
    content = served.post(CHAT, ask).json()["choices"][0]["logprobs"]["content"]
    assert content[0] == {
        "token": "H",
        "logprob": -0.5,
        "bytes": [72],
        "top_logprobs": [
            {"token": "H", "logprob": -0.5, "bytes": [72]},
            {"token": "!", "logprob": -2.0, "bytes": [33]},
        ],
    }
    assert (content[1]["token"], content[1]["bytes"]) == ("\ufffd", [0xC3])


def test_a_chats_tokens_join_to_its_bytes_in_a_stream_too(served: Loopback) -> None:

    text = served.post(CHAT, TALK | {"logprobs": True, "stream": True}).text
    lines = [line[6:] for line in text.split("\n\n") if line.startswith("data: {")]
    entries = [
        entry
        for line in lines
        for choice in json.loads(line)["choices"]
        for entry in (choice["logprobs"] or {"content": []})["content"]
    ]
    raw = b"".join(bytes(entry["bytes"]) for entry in entries)
    assert raw == "Hé<end>".encode()


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_prompt_logprobs_have_vllms_form(served: Loopback, path: str) -> None:
    ask = TALK if path == CHAT else {"model": "tiny", "prompt": "ab"}
    answer = served.post(path, ask | {"prompt_logprobs": 1}).json()
    told = answer["prompt_logprobs"] if path == CHAT else answer["choices"][0]["prompt_logprobs"]
    prompt = served.replicas.asked[-1].prompt
    assert told[0] is None and len(told) == len(prompt)
    of = served.endpoint.tokenizer.bytes_of.of
    second = {"logprob": -0.25, "rank": 1, "decoded_token": of(prompt[1]).decode()}
    assert told[1] == {str(prompt[1]): second}
    assert served.post(path, ask | {"prompt_logprobs": 1, "stream": True}).status_code == 400


def test_a_special_stop_ends_by_its_token(served: Loopback) -> None:
    served.post(CHAT, TALK | {"stop": ["<end>", "x"], "stop_token_ids": [7]})
    asked = served.replicas.asked[-1]
    assert asked.stop_ids == [7, 256] and asked.sampling.stop == ["<end>", "x"]


def test_what_a_request_asks_reaches_the_replicas(served: Loopback) -> None:
    served.post(
        CHAT,
        TALK
        | {"temperature": 0.5, "top_p": 0, "top_k": -1, "min_p": 0.1, "seed": -3, "n": 2}
        | {"max_tokens": 9, "max_completion_tokens": 4, "logit_bias": {"5": -100}}
        | {"ignore_eos": True},
    )
    asked = served.replicas.asked[-1]
    sampling = asked.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 1e-6, 0)
    assert (sampling.min_p, sampling.max_tokens, asked.seed, asked.choices) == (0.1, 4, -3, 2)
    assert asked.rules.logit_bias == {5: -100} and asked.rules.ignore_eos


def test_without_a_limit_a_chat_has_the_rest_of_the_context(served: Loopback) -> None:
    served.post(CHAT, TALK)
    assert served.replicas.asked[-1].sampling.max_tokens == 512 - len("user:hi\n")
    served.post(TEXT, {"model": "tiny", "prompt": [1] * 505})
    assert served.replicas.asked[-1].sampling.max_tokens == 7


def test_a_limit_of_the_server_caps_and_refuses(tmp_path: Path) -> None:
    with loopback(tmp_path, settings=["limits.max_tokens=5"]) as served:
        served.post(CHAT, TALK)
        assert served.replicas.asked[-1].sampling.max_tokens == 5
        assert served.post(CHAT, TALK | {"max_tokens": 6}).status_code == 400
