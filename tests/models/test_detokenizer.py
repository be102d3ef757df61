"""Text of tokens that arrive one by one: that of decoding them together, and never an error."""

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from interlock.models.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def ours(smollm2: Path) -> Tokenizer:
    return Tokenizer.load(smollm2)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 49151) | st.integers(17, 300), max_size=40))
def test_stream_is_decode_less_an_unfinished_character(ours: Tokenizer, ids: list[int]) -> None:
    stream = ours.stream()
    streamed = "".join(stream.push(token) for token in ids)
    whole = ours.decode(ids)
    assert whole.startswith(streamed)
    assert set(whole[len(streamed) :]) <= {"\ufffd"} or whole.endswith("\ufffd")


def test_stream_holds_an_emoji_back(ours: Tokenizer) -> None:
    stream, ids = ours.stream(), ours.encode("a😀b")
    pieces = [stream.push(token) for token in ids]
    assert len(ids) == 5 and pieces[0] == "a" and pieces[1:3] == ["", ""]
    assert pieces[3:] == ["😀", "b"]


@pytest.fixture(scope="module")
def fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Llama's kind: bytes that no token stands for are tokens of their own."""
    directory = tmp_path_factory.mktemp("fallback")
    names = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"abc▁", "▁hi"]
    vocabulary = {name: number for number, name in enumerate(names)}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens(["</s>"])
    backend.save(str(directory / "tokenizer.json"))
    return Tokenizer.load(directory)


def streamed(tokenizer: Tokenizer, tokens: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join(map(stream.push, tokens))


def test_a_prefix_that_a_later_byte_breaks_ends_no_stream(fallback: Tokenizer) -> None:
    def byte(value: int) -> int:
        return 2 + value

    a, hi = 258, 262
    assert streamed(fallback, [byte(0x78), byte(0xF0), a, hi, hi]) == "x\ufffda hi hi"
    emoji = [byte(value) for value in "😀".encode()]
    text = streamed(fallback, [hi, *emoji, hi, byte(0x79), byte(0xFF), *emoji])
    assert text.startswith("hi😀 hiy")
    # Bytes that never become text do not pile up.
    assert streamed(fallback, [byte(0xF0)] * 200 + [a]).endswith("a")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(-2, 2**33), max_size=6) | st.lists(st.integers(0, 264), max_size=12))
def test_no_tokens_at_all_end_the_token_loop(fallback: Tokenizer, tokens: list[int]) -> None:
    assert "<0x" not in streamed(fallback, tokens)
    assert isinstance(fallback.decode(tokens), str)
