"""Directories of a byte-level tokenizer with the chat templates of real models."""

# ruff: noqa: RUF001  DeepSeek spells its special tokens with a fullwidth bar

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase

SPECIAL = ["<|im_start|>", "<|im_end|>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"]
PLAIN_ADDED = ["<think>", "</think>", "<｜User｜>", "<｜Assistant｜>"]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "12 + 30?"},
    {"role": "assistant", "content": "<think>\nten and thirty\n</think>\n\n42"},
    {"role": "user", "content": "Sure?  😀"},
]
REPLY = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}


def write_model(directory: Path, template: Any, eos: str = "<|im_end|>", **config: Any) -> Path:
    """A model directory with a byte-level tokenizer: 256 bytes, a few merges, the added tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("h", "e"), ("Ġ", "t"), ("u", "s")]
    tokens = alphabet + ["".join(merge) for merge in merges]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    backend.add_tokens([AddedToken(token, normalized=False) for token in PLAIN_ADDED])
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<｜begin▁of▁sentence｜>",
        "eos_token": {"__type": "AddedToken", "content": eos, "normalized": False},
        "chat_template": template,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | config))
    return directory


def oracle_chat(oracle: PreTrainedTokenizerBase, messages: list, **more: Any) -> list[int]:
    more = {"add_generation_prompt": True} | more
    return oracle.apply_chat_template(messages, return_dict=False, **more)
