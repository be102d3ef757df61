"""The loss mask: by hand, and against transformers."""

from pathlib import Path

import pytest
import tokenizers
from chat_models import REPLY, TALK, oracle_chat, write_model
from chat_templates import CHATML, DEEPSEEK_R1, QWEN3
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer

from interlock.errors import ModelError
from interlock.models.tokenizer import Tokenizer

GENERATION = """\
{% for message in messages %}
{% if message.role == 'assistant' %}
<|im_start|>assistant
{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}

{% else %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}
"""


def test_mask_of_smollm2_by_hand(ours: Tokenizer) -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "3"},
        {"role": "assistant", "content": "57"},
    ]
    ids, mask = ours.assistant_mask(messages)
    assert ids == ours.chat(messages, add_generation_prompt=False)
    # "4", "5", "7" are 36, 37, 39; <|im_end|> is 2; the newline (198) behind it is the template's.
    learned = [i for i, mine in enumerate(mask) if mine]
    assert [ids[i] for i in learned] == [36, 2, 37, 39, 2]
    assert len(ids) == len(mask) and ids[-1] == 198 and not mask[-1]
    # What precedes the first learned token is exactly the prompt that generation would see.
    assert ids[: learned[0]] == ours.chat(messages[:2])


@settings(max_examples=100, deadline=None)
@given(question=st.text(), answer=st.text().filter(lambda text: not text[:1].isspace()))
def test_mask_splits_prompt_from_completion(ours: Tokenizer, question: str, answer: str) -> None:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    ids, mask = ours.assistant_mask(messages)
    prompt = ours.chat(messages[:1])
    assert mask == [False] * len(prompt) + [True] * (len(ids) - len(prompt) - 1) + [False]
    assert ids[len(prompt) : -1] == [*ours.encode(answer), 2]


def test_mask_counts_the_thinking_that_generation_writes(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_model(tmp_path, QWEN3))
    ids, mask = tokenizer.assistant_mask([TALK[1], REPLY])
    learned = [token for token, mine in zip(ids, mask, strict=True) if mine]
    text = tokenizer.decode(learned, skip_special=False)
    assert text == "<think>\nhm\n</think>\n\nYes.<|im_end|>"


def test_mask_leaves_out_a_token_shared_with_the_prompt(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_model(tmp_path, CHATML))
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\n\nb\n"}]
    ids, mask = tokenizer.assistant_mask(messages)
    # The line end of the prompt and the answer's first are one token (ĊĊ) to this tokenizer.
    learned = [token for token, mine in zip(ids, mask, strict=True) if mine]
    assert tokenizer.decode(learned, skip_special=False) == "\nb\n<|im_end|>"


def test_mask_when_the_tokenizer_trims_offsets(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role[0] + ': ' + m.content + eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'a: ' }}{% endif %}"
    write_model(tmp_path, template)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    ids, mask = tokenizer.assistant_mask(
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "7 8 "}]
    )
    # "a: 7" is a, :, Ġ, 7, and the trimmed Ġ is an empty span where the answer begins.
    learned = [token for token, mine in zip(ids, mask, strict=True) if mine]
    assert tokenizer.decode(learned, skip_special=False) == "7 8 <|im_end|>"


def test_mask_of_generation_blocks_as_transformers(tmp_path: Path) -> None:
    write_model(tmp_path, GENERATION)
    ours, oracle = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    messages = [*TALK, REPLY]
    ids, mask = ours.assistant_mask(messages)
    expected = oracle.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    assert ids == expected["input_ids"]
    assert [int(mine) for mine in mask] == expected["assistant_masks"]
    assert sum(mask) > 20
    assert ours.chat(messages) == oracle_chat(oracle, messages)


def test_mask_refuses_turns_that_change_once_they_are_history(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_model(tmp_path, QWEN3))
    with pytest.raises(ModelError, match="turn 3 differently"):
        tokenizer.assistant_mask([*TALK, REPLY])
    tokenizer = Tokenizer.load(write_model(tmp_path, DEEPSEEK_R1))
    with pytest.raises(ModelError, match="turn 2 differently"):
        tokenizer.assistant_mask([TALK[1], REPLY])
