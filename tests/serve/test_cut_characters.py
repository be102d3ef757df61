"""An answer that ends in the middle of a character: its bytes are no text, streamed or whole."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoints import Loopback, loopback, saying

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASK: dict[str, Any] = {"model": "tiny", "logprobs": True}
BYTES = [0x61, *"😀".encode()]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    directory: Path = tmp_path_factory.mktemp("served")
    with loopback(directory, lambda tokenizer: saying(tokenizer, "a😀")) as running:
        yield running


def choices(text: str) -> list[dict[str, Any]]:
    frames = [line.removeprefix("data: ") for line in text.split("\n\n") if line.strip()]
    return [choice for each in frames[:-1] for choice in json.loads(each)["choices"]]


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5])
def test_a_chat_drops_half_a_character_alike(served: Loopback, most: int) -> None:
    """As vLLM does; its bytes are with the log-probabilities."""
    ask = ASK | {"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": most}
    (whole,) = served.post(CHAT, ask).json()["choices"]
    parts = choices(served.post(CHAT, ask | {"stream": True}).text)
    text = "a😀" if most == 5 else "a"
    assert whole["message"]["content"] == text
    assert "".join(each["delta"].get("content") or "" for each in parts) == text
    assert whole["finish_reason"] == parts[-1]["finish_reason"] == "length"
    told = whole["logprobs"]["content"]
    streamed = [t for each in parts if each["logprobs"] for t in each["logprobs"]["content"]]
    assert streamed == told
    assert [byte for each in told for byte in each["bytes"]] == BYTES[:most]


@pytest.mark.parametrize("most", [1, 3, 5])
def test_a_completion_drops_half_a_character_alike(served: Loopback, most: int) -> None:
    ask: dict[str, Any] = {"model": "tiny", "prompt": "b", "max_tokens": most}
    (whole,) = served.post(TEXT, ask).json()["choices"]
    parts = choices(served.post(TEXT, ask | {"stream": True}).text)
    text = "a😀" if most == 5 else "a"
    assert whole["text"] == "".join(each["text"] for each in parts) == text
