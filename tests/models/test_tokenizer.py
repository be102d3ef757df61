"""Tokenizer and chat templates against transformers, token for token, and the loss mask by hand."""

# ruff: noqa: RUF001  DeepSeek spells its special tokens with a fullwidth bar

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from interlock.errors import ModelError, TaskError
from interlock.models.tokenizer import Tokenizer

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
THOUGHT_NOTHING = "<think>\n\n</think>\n\n"
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


@pytest.fixture(scope="module")
def ours(smollm2: Path) -> Tokenizer:
    return Tokenizer.load(smollm2)


@pytest.fixture(scope="module")
def oracle(smollm2: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(smollm2)


def oracle_chat(oracle: PreTrainedTokenizerBase, messages: list, **more: Any) -> list[int]:
    more = {"add_generation_prompt": True} | more
    return oracle.apply_chat_template(messages, return_dict=False, **more)


def test_special_tokens_and_digits_of_smollm2(ours: Tokenizer) -> None:
    assert ours.eos_ids == {2} and ours.eos_id == 2 and ours.vocab_size == 49152
    # Each digit is a token of its own: the byte tokens of "0"… begin at id 32.
    assert ours.encode("907") == [41, 32, 39]
    assert ours.document("907") == [41, 32, 39, 2]
    assert ours.encode("<|im_end|>") == [2]
    assert ours.decode([1, 41, 2]) == "9"
    assert ours.decode([1, 41, 2], skip_special=False) == "<|im_start|>9<|im_end|>"


SNIPPETS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<|im_", "system", "\n"]
SNIPPETS += [
    "  ",
    "\t",
    "\r\n",
    "don't",
    " 1234",
    "٣४½",
    "😀",
    "👩\u200d👧",
    "e\u0301",
    "\u00a0",
    ".",
]
texts = st.one_of(st.text(), st.lists(st.sampled_from(SNIPPETS)).map("".join))


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_encode_decode_as_transformers(
    ours: Tokenizer, oracle: PreTrainedTokenizerBase, text: str
) -> None:
    ids = ours.encode(text)
    assert ids == oracle.encode(text, add_special_tokens=False)
    assert ours.document(text) == [*oracle.encode(text), 2][: len(ids) + (ids[-1:] != [2])]
    assert ours.decode(ids, skip_special=False) == oracle.decode(ids)
    assert ours.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


@settings(max_examples=150, deadline=None)
@given(
    turns=st.lists(texts, min_size=1, max_size=4), system=st.none() | texts, prompt=st.booleans()
)
def test_smollm2_chat_as_transformers(
    ours: Tokenizer,
    oracle: PreTrainedTokenizerBase,
    turns: list[str],
    system: str | None,
    prompt: bool,
) -> None:
    roles = ["user", "assistant"] * 2
    messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    expected = oracle_chat(oracle, messages, add_generation_prompt=prompt)
    assert ours.chat(messages, add_generation_prompt=prompt) == expected


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


def test_eos_is_the_union_of_three_files(tmp_path: Path) -> None:
    write_model(tmp_path, None)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 9, "vocab_size": 300}')
    tokenizer = Tokenizer.load(tmp_path)
    # 256 bytes and 4 merges come first, then <|im_start|> 260 and <|im_end|> 261.
    assert tokenizer.eos_ids == {5, 7, 9, 261} and tokenizer.eos_id == 261


CLOSED_BY = "{% for m in messages %}<|im_start|>{{ m.content }}END\n{% endfor %}"


@pytest.mark.parametrize("special", [True, False])
def test_what_closes_a_turn_in_training_stops_generation(tmp_path: Path, special: bool) -> None:
    """A base model: its own end is another token than the one its chat template closes with."""
    added = {"268": {"content": "<close>", "special": special, "normalized": False}}
    template = CLOSED_BY.replace("END", "<close>")
    write_model(tmp_path, template, eos="<|im_end|>", added_tokens_decoder=added)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_ids == {261, 268} and tokenizer.eos_id == 261
    assert tokenizer.unclosed is None
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    ids, mask = tokenizer.assistant_mask(chat)
    learned = [token for token, flag in zip(ids, mask, strict=True) if flag]
    assert learned[-1] == 268, "the newline behind it is not learned"
    assert tokenizer.decode(learned) == "b"
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [261, 268]
    assert Tokenizer.load(tmp_path / "saved").eos_ids == {261, 268}


def test_turns_that_close_with_no_token_are_told_of(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_model(tmp_path, CLOSED_BY.replace("END", "<over>")))
    assert tokenizer.unclosed == "<over>" and tokenizer.eos_ids == {261}
    plain = Tokenizer.load(write_model(tmp_path, CLOSED_BY.replace("END", "")))
    assert plain.unclosed is None  # the next turn begins with a token


def test_special_tokens_match_in_stop(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_model(tmp_path, None))
    stops = ["<|im_start|>", "<|im_end|>\n", "<think>", "text", ""]
    assert tokenizer.special_ids(stops) == {260, 261}  # <think> is text, and found there


def test_a_text_that_begins_or_ends_as_texts_are_framed_is_not_framed_twice(
    tmp_path: Path,
) -> None:
    tokenizer = Tokenizer.load(write_model(tmp_path, None))
    tokenizer._backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 260)]
    )
    framed = tokenizer.document("ab")
    assert framed[0] == 260 and framed[-1] == 261 and framed.count(260) == 1
    for text in ("<|im_start|>ab", "ab<|im_end|>", "<|im_start|>ab<|im_end|>"):
        assert tokenizer.document(text) == framed


def test_a_template_is_told_the_time_that_is_given(tmp_path: Path) -> None:
    write_model(tmp_path, "{{ strftime_now('%d %b %Y %H:%M:%S') }}")
    tokenizer = Tokenizer.load(tmp_path, clock=datetime(2024, 2, 29, 23, 59, 58))
    assert tokenizer.render([{"role": "user", "content": ""}]) == "29 Feb 2024 23:59:58"


def test_older_files_name_the_special_tokens_apart(tmp_path: Path) -> None:
    write_model(tmp_path, "{{ pad_token }}")
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": {"content": "<|im_start|>"}}')
    assert Tokenizer.load(tmp_path).render([{"role": "user", "content": ""}]) == "<|im_start|>"


def test_added_tokens_of_the_config_count(tmp_path: Path) -> None:
    added = {"268": {"content": "<tool>", "special": True, "normalized": False}}
    write_model(tmp_path, None, added_tokens_decoder=added)
    tokenizer, oracle = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("a<tool>") == oracle.encode("a<tool>", add_special_tokens=False)
    assert tokenizer.encode("<tool>") == [268] and tokenizer.vocab_size == 269
    write_model(tmp_path, None, added_tokens_decoder={"999": added["268"]})
    with pytest.raises(ModelError, match="999"):
        Tokenizer.load(tmp_path)


def test_a_role_makes_its_token_special(tmp_path: Path) -> None:
    write_model(tmp_path, None, eos="<think>")  # in tokenizer.json it is not special
    tokenizer, oracle = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.encode("a</think><think>")
    assert tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=True) == "a</think>"


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("tokenizer.json", "{", "tokenizer.json"),
        ("tokenizer_config.json", "{", "tokenizer_config.json"),
        ("tokenizer_config.json", "[]", "no JSON object"),
        ("tokenizer_config.json", '{"eos_token": "<nope>"}', "'<nope>'"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "added_tokens_decoder"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": "a"}}', "added_tokens_decoder"),
        ("tokenizer_config.json", '{"chat_template": 5}', "is no text"),
        ("tokenizer_config.json", '{"chat_template": ["a"]}', "no default"),
        ("config.json", '{"vocab_size": 268}', None),
        ("config.json", '{"vocab_size": 267}', "267 embedding rows"),
        ("config.json", '{"vocab_size": 268, "eos_token_id": 268}', "token id 268"),
        ("config.json", '{"eos_token_id": "2"}', "'2'"),
        ("generation_config.json", '{"eos_token_id": [true]}', "eos_token_id"),
    ],
)
def test_damaged_directories(tmp_path: Path, name: str, text: str, complaint: str | None) -> None:
    write_model(tmp_path, None)
    (tmp_path / name).write_text(text)
    if complaint is None:
        assert Tokenizer.load(tmp_path).vocab_size == 268
        return
    with pytest.raises(ModelError, match=complaint):
        Tokenizer.load(tmp_path)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    write_model(tmp_path, None)
    with pytest.raises(ModelError, match="no chat template"):
        Tokenizer.load(tmp_path).render([{"role": "user", "content": "a"}])
    with pytest.raises(ModelError, match=r"nowhere\.jinja"):
        Tokenizer.load(tmp_path, chat_template="nowhere.jinja")
    write_model(tmp_path, [{"name": "rag", "template": "x"}])
    with pytest.raises(ModelError, match="'rag'"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ModelError, match="at least one message"):
        Tokenizer.load(write_model(tmp_path, "x")).render([])


def test_half_a_surrogate_pair_is_refused(ours: Tokenizer) -> None:
    with pytest.raises(TaskError, match="ud83d"):
        ours.encode("a\ud83d")
