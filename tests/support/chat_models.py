"""Directories of a byte-level tokenizer with the chat templates of real models."""

# ruff: noqa: RUF001  DeepSeek spells its special tokens with a fullwidth bar

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase

# Qwen3's behaviour in brief: past reasoning is dropped, the latest kept, and enable_thinking=False
# opens the answer with an empty think block.
QWEN3 = """\
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {%- set ns.last = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role != "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- else %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
# DeepSeek-R1's: no line ends, every past thought cut off, and generation begins inside <think>.
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + message['content'].split('</think>')[-1] + eos_token }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
CHATML = """\
{% for message in messages %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}
"""
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
