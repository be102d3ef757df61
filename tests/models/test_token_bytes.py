"""The bytes of single tokens add up to the text, in vocabularies of each kind."""

from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from interlock.models.token_bytes import TokenBytes
from interlock.models.tokenizer import Tokenizer
from interlock.preflight import random_model

TEXTS = ["", "plain", " two  words\n", "é😀 ütf", "\x00\x7f\xa0\xad", "a<end>b"]


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_tokens(text: str, tmp_path: Path) -> None:
    random_model.write_tokenizer(tmp_path, "")
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.encode(text)
    assert b"".join(map(tokenizer.bytes_of.of, ids)) == text.encode()
    assert tokenizer.bytes_of.of(9999) == b""


@pytest.mark.parametrize("text", ["hello", "a b", "😀", "a é"])
def test_byte_fallback_and_marked_words(text: str) -> None:
    fallback = {f"<0x{byte:02X}>": byte for byte in range(256)}
    letters = ["▁", *"abehlo"]
    vocabulary = fallback | {letter: 256 + n for n, letter in enumerate(letters)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    of = TokenBytes(backend).of
    ids = backend.encode(text).ids
    assert b"".join(map(of, ids)) == text.encode()


def test_words_of_their_own_are_what_decoding_gives() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"one": 0, "two": 1}, unk_token="one"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    assert [TokenBytes(backend).of(token) for token in (0, 1, 2)] == [b"one", b"two", b""]
