"""Chat templates against transformers, and what none of them may do."""

# ruff: noqa: RUF001  DeepSeek spells its special tokens with a fullwidth bar

from datetime import datetime
from pathlib import Path

import pytest
from chat_models import REPLY, TALK, oracle_chat, write_model
from chat_templates import CHATML, DEEPSEEK_R1, QWEN3
from transformers import AutoTokenizer

from interlock.errors import ModelError
from interlock.models.tokenizer import Tokenizer

THOUGHT_NOTHING = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize("template", [QWEN3, DEEPSEEK_R1], ids=["qwen3", "deepseek-r1"])
@pytest.mark.parametrize("messages", [TALK, [*TALK, REPLY], TALK[1:2]], ids=len)
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("more", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
def test_thinking_templates_as_transformers(
    tmp_path: Path, template: str, messages: list, prompt: bool, more: dict[str, bool]
) -> None:
    write_model(tmp_path, template)
    ours, oracle = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    rendered = oracle.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=prompt, **more
    )
    assert ours.render(messages, prompt, **more) == rendered
    expected = oracle_chat(oracle, messages, add_generation_prompt=prompt, **more)
    assert ours.chat(messages, prompt, **more) == expected


def test_thinking_templates_by_hand(tmp_path: Path) -> None:
    qwen3 = Tokenizer.load(write_model(tmp_path / "q", QWEN3))
    assert qwen3.render([*TALK[1:], REPLY], False) == (
        "<|im_start|>user\n12 + 30?<|im_end|>\n<|im_start|>assistant\n42<|im_end|>\n"
        "<|im_start|>user\nSure?  😀<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nhm\n</think>\n\nYes.<|im_end|>\n"
    )
    assert qwen3.render(TALK[1:2], enable_thinking=False).endswith(
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    reasoned = {"role": "assistant", "content": "Yes.", "reasoning_content": "hm"}
    assert qwen3.chat([*TALK, reasoned]) == qwen3.chat([*TALK, REPLY])
    r1 = Tokenizer.load(write_model(tmp_path / "r", DEEPSEEK_R1, eos="<｜end▁of▁sentence｜>"))
    assert r1.render(TALK[1:]) == (
        "<｜begin▁of▁sentence｜><｜User｜>12 + 30?<｜Assistant｜>\n\n42<｜end▁of▁sentence｜>"
        "<｜User｜>Sure?  😀<｜Assistant｜><think>\n"
    )


@pytest.mark.parametrize(
    ("template", "opening"),
    [
        (DEEPSEEK_R1, "<think>\n"),
        (QWEN3, ""),
        (CHATML, ""),
        (CHATML.replace("assistant\n", "assistant\n<thinking>\n"), "<thinking>\n"),
        (QWEN3.replace("enable_thinking is false", "false"), ""),
        (QWEN3.replace("defined and enable_thinking is false", "undefined"), THOUGHT_NOTHING),
    ],
)
def test_the_thinking_that_a_template_begins(tmp_path: Path, template: str, opening: str) -> None:
    tokenizer = Tokenizer.load(write_model(tmp_path, template))
    asks = [{"role": "user", "content": "What does <think> do? <think>"}]  # that is no template
    assert tokenizer.opening(asks) == opening
    assert tokenizer.opening([*TALK, REPLY, *asks]) == opening


def test_absent_and_empty_keys_are_the_same(tmp_path: Path) -> None:
    write_model(tmp_path, "{% for m in messages %}{{ m.content }}{{ 'x' in m }}{% endfor %}")
    ours, oracle = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "a", "x": None}, {"role": "user", "content": "b"}]
    assert ours.render(messages) == "aFalsebFalse"
    assert ours.chat(messages) == oracle_chat(oracle, messages)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | tojson }} {{ messages | tojson(indent=2) }}",
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}\n"
        "{% endfor %}",
        "  {% if true %}\n  x\n  {% endif %}\n{{ dict(a=1) }}{{ tools is none }}",
        "{{ strftime_now('%Y') }}{{ unk_token is defined }}{{ eos_token }}{{ bos_token }}",
    ],
)
def test_environment_as_transformers(tmp_path: Path, template: str) -> None:
    write_model(tmp_path, template)
    ours, oracle = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "<b>é & 'x'</b>"}, *TALK[2:]]
    assert ours.render(messages, False) == oracle.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ ('%s' | attr('format')).__globals__ }}{{ ''['__class__']['__mro__'] }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{% set ns = namespace(__call__=1) %}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{% include '/etc/passwd' %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'content': 'x'}) }}",
        "{% for i in range(999999999) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages[0].content.missing.attribute }}",
        "{{ raise_exception('roles must\nalternate') }}",
        "{{ 1 / 0 }}",
    ],
)
def test_sandbox_refuses_and_names_the_model(tmp_path: Path, template: str) -> None:
    messages = [{"role": "user", "content": "a"}]
    tokenizer = Tokenizer.load(write_model(tmp_path / "evil-model", template))
    with pytest.raises(ModelError, match="evil-model") as caught:
        tokenizer.render(messages)
    assert messages == [{"role": "user", "content": "a"}]
    assert "\n" not in str(caught.value)


def test_template_that_does_not_parse(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not parse") as caught:
        Tokenizer.load(write_model(tmp_path, "a\n{% if %}\n"))
    assert "\n" not in str(caught.value)


def test_templates_may_stand_in_other_places(tmp_path: Path) -> None:
    message = [{"role": "user", "content": "a"}]
    named = [{"name": "rag", "template": "rag"}, {"name": "default", "template": "named"}]
    write_model(tmp_path, named)
    assert Tokenizer.load(tmp_path).render(message) == "named"
    (tmp_path / "chat_template.jinja").write_text("file\n")
    assert Tokenizer.load(tmp_path).render(message) == "file"
    (tmp_path / "mine.jinja").write_text("mine {{ eos_token }}")
    replaced = Tokenizer.load(tmp_path, chat_template=str(tmp_path / "mine.jinja"))
    assert replaced.render(message) == "mine <|im_end|>"
    (tmp_path / "saved").mkdir()
    replaced.save(tmp_path / "saved")
    oracle = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert oracle.apply_chat_template(message, tokenize=False) == "mine <|im_end|>"
    assert Tokenizer.load(tmp_path / "saved").chat(message) == oracle_chat(oracle, message)


def test_a_template_is_told_the_time_that_is_given(tmp_path: Path) -> None:
    write_model(tmp_path, "{{ strftime_now('%d %b %Y %H:%M:%S') }}")
    tokenizer = Tokenizer.load(tmp_path, clock=datetime(2024, 2, 29, 23, 59, 58))
    assert tokenizer.render([{"role": "user", "content": ""}]) == "29 Feb 2024 23:59:58"
