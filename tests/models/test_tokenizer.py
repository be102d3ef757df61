"""Tokenizer against transformers, token for token; special tokens, ends, damaged files."""

import json
from pathlib import Path

import pytest
from chat_models import oracle_chat, write_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from interlock.errors import ModelError, TaskError
from interlock.models.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def oracle(smollm2: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(smollm2)


def test_special_tokens_and_digits_of_smollm2(ours: Tokenizer) -> None:
    assert ours.eos_ids == {2} and ours.eos_id == 2 and ours.vocab_size == 49152
    # Each digit is a token of its own: the byte tokens of "0"… begin at id 32.
    assert ours.encode("907") == [41, 32, 39]
    assert ours.document("907") == [41, 32, 39, 2]
    assert ours.encode("<|im_end|>") == [2]
    assert ours.decode([1, 41, 2]) == "9"
    assert ours.decode([1, 41, 2], skip_special=False) == "<|im_start|>9<|im_end|>"


def test_its_definition_is_that_of_the_same_tokenizer(ours: Tokenizer) -> None:
    again = Backend.from_str(ours.definition())
    text = "Who?<|im_end|>\n907 don't \u00e9<repo_name>"
    assert again.encode(text, add_special_tokens=False).ids == ours.encode(text)
    assert 1 + max(again.get_vocab(with_added_tokens=True).values()) == ours.vocab_size


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
