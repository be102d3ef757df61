"""Tokenizers out of GGUF metadata; the oracle is transformers, on the same tokens and merges."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from interlock.errors import ModelError
from interlock.models.from_gguf.vocabulary import tokenizer_of

MERGES = ["h e", "l l", "he ll", "1 2", "12 3", "Ġ t", "Ġ Ġ", "i n", "in g"]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = [*ALPHABET, *("".join(m.split(" ")) for m in MERGES), "<|end|>", "<tool>", "[PAD267]"]
KINDS = [1] * (len(ALPHABET) + len(MERGES)) + [3, 4, 5]
TEXTS = [
    "hello the 12345 things' I'LL you're",
    "  two  spaces\n\n\nand\tlines \r\n end  ",
    "x=1234567;y+=89 naïve e\u0301 日本語 😀 'S",
    "ing123hell<|end|>ing<tool>the",
    "",
]


def file(rule: str, **changed: Any) -> Any:
    """What tokenizer_of asks of a file."""
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rule,
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": np.array(KINDS, np.int32),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.eos_token_id": TOKENS.index("<|end|>"),
        "tokenizer.ggml.eot_token_id": TOKENS.index("<tool>"),
    }
    metadata |= changed
    kept = {key: value for key, value in metadata.items() if value is not None}
    return SimpleNamespace(
        path=Path("m.gguf"), metadata=kept, error=lambda told: ModelError(f"m.gguf: {told}")
    )


def plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_qwen_splits_as_transformers_does() -> None:
    ours, _, _ = tokenizer_of(file("qwen2"))
    vocabulary = {token: index for index, token in enumerate(TOKENS[:-3])}
    theirs = Qwen2Tokenizer(vocab=vocabulary, merges=[tuple(merge.split(" ")) for merge in MERGES])
    for text in TEXTS[:3]:
        assert plain(ours, text) == theirs.encode(text, add_special_tokens=False), text
        assert ours.decode(plain(ours, text)) == theirs.decode(plain(ours, text))


def test_llama_3_splits_as_transformers_converter_says() -> None:
    ours, _, _ = tokenizer_of(file("llama-bpe"))
    vocabulary = {token: index for index, token in enumerate(TOKENS[:-3])}
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    theirs = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    pattern = TikTokenConverter(vocab_file="none").pattern
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for text in TEXTS[:3]:
        assert plain(ours, text) == plain(theirs, text), text
    # Three digits at most go together, and one for Qwen.
    assert [TOKENS[i] for i in plain(ours, "12312")] == ["123", "12"]
    qwen, _, _ = tokenizer_of(file("qwen2"))
    assert [TOKENS[i] for i in plain(qwen, "12312")] == list("12312")


def test_kinds_roles_and_ends() -> None:
    tokenizer, settings, ids = tokenizer_of(file("smollm"))
    end, tool = TOKENS.index("<|end|>"), TOKENS.index("<tool>")
    assert end in plain(tokenizer, TEXTS[3]) and tool in plain(tokenizer, TEXTS[3])
    assert "[PAD267]" not in tokenizer.get_vocab()
    assert settings["added_tokens_decoder"][str(end)]["special"] is True
    assert settings["added_tokens_decoder"][str(tool)]["special"] is False
    assert settings["eos_token"] == "<|end|>" and "bos_token" not in settings
    assert ids == {"bos_token_id": None, "eos_token_id": [end, tool], "pad_token_id": None}


@pytest.mark.parametrize(
    ("rule", "said", "begun"),
    [("llama-bpe", None, True), ("smollm", None, False), ("smollm", True, True),
     ("llama-bpe", False, False)],
)  # fmt: skip
def test_whether_a_text_begins_with_bos(rule: str, said: bool | None, begun: bool) -> None:
    bos = TOKENS.index("<|end|>")
    keys = {"tokenizer.ggml.bos_token_id": bos, "tokenizer.ggml.add_bos_token": said}
    tokenizer, _, _ = tokenizer_of(file(rule, **keys))
    assert (tokenizer.encode("he").ids[0] == bos) is begun
    assert plain(tokenizer, "he") == [TOKENS.index("he")]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokenizer.ggml.model": "llama"}, r"\('llama', 'smollm'\) is not read"),
        ({"tokenizer.ggml.pre": ["x"]}, "is not read"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.tokens": [*TOKENS[:-2], "a", "[PAD267]"]}, "stands twice"),
        ({"tokenizer.ggml.token_type": np.array([1])}, "not as long as"),
        ({"tokenizer.ggml.token_type": ["x"] * len(TOKENS)}, "not as long as"),
        ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": ["odd"]}, "merge 'odd' is no pair"),
        ({"tokenizer.ggml.merges": ["h zz"]}, "merges do not fit its tokens"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, "eos_token_id is 1000000, no token"),
        ({"tokenizer.ggml.eot_token_id": -1}, "eot_token_id is -1, no token"),
        ({"tokenizer.ggml.bos_token_id": "x"}, "bos_token_id is 'x', which is not read here"),
        ({"tokenizer.ggml.eos_token_id": True}, "eos_token_id is True, which is not read here"),
        ({"tokenizer.ggml.model": np.array([1, 2])}, "is not read, only 'gpt2'"),
        ({"tokenizer.ggml.add_bos_token": np.array([1, 2])}, "add_bos_token is a list, which"),
        ({"tokenizer.chat_template": ["x"]}, "chat_template is a list, which is not read here"),
    ],
)
def test_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        tokenizer_of(file("smollm", **changed))
