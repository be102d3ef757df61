"""Rows for supervised fine-tuning: what is learned, what is refused, in which order."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from interlock.config.reading import load_recipe
from interlock.config.schema import GeneratorSettings
from interlock.errors import TaskError
from interlock.models.tokenizer import Tokenizer
from interlock.recipes.sft import Row, draw, read, training_groups
from interlock.recipes.train import train
from interlock.records.rl import FinishReason, Problem, Sampling
from interlock.workers.generator import open_generator

CHAT = {
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
}


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer.load(smollm2)


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def test_only_the_assistant_is_learned(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows, left_out = read(write(tmp_path / "a.jsonl", CHAT), tokenizer, 100)
    (row,) = rows
    learned = [token for token, flag in zip(row.tokens, row.learned, strict=True) if flag]
    assert tokenizer.decode(learned, skip_special=False) == "Hello there<|im_end|>"
    assert left_out == 0


def test_plain_text_is_learned_to_its_end(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows, _ = read(write(tmp_path / "a.jsonl", {"text": "One two"}), tokenizer, 100)
    assert all(rows[0].learned)
    assert rows[0].tokens[: len(tokenizer.encode("One two"))] == tokenizer.encode("One two")
    assert rows[0].tokens[-1] in tokenizer.eos_ids


def test_only_a_newline_ends_a_row(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\u2028two\u0085three"}\r\n{"text": "four"}', encoding="utf-8")
    rows, _ = read(path, tokenizer, 100)
    assert len(rows) == 2 and "\u2028" in tokenizer.decode(rows[0].tokens)


def test_long_rows_are_left_out_and_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "a b c d e f g h"}, {"text": "a"}, "")
    rows, left_out = read(path, tokenizer, 3, "leave_out")
    assert (len(rows), left_out) == (1, 1)
    with pytest.raises(
        TaskError, match=r"a\.jsonl:1: 9 tokens are more than the 3 that max_tokens"
    ):
        read(path, tokenizer, 3)
    with pytest.raises(TaskError, match="all 1 are longer than 3"):
        read(write(path, {"text": "a b c d e f g h"}), tokenizer, 3, "leave_out")


def test_a_byte_order_mark_is_no_part_of_the_first_row(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(CHAT).encode() + b"\r\n\r\n")
    assert len(read(path, tokenizer, 100)[0]) == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "not valid JSON"),
        ([1], "expected a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"text": "a", "n": NaN}', "NaN is no number"),
        ('{"text": "\\ud800"}', "half of a surrogate pair"),
        ({"messages": CHAT["messages"][::-1]}, "the first turn is the assistant's"),
        ({"text": 3}, "the column 'text' is 3"),
        ({"text": ""}, "the text is empty"),
        ({"text": "a b", "messages": []}, "messages or text, not both"),
        ({"messages": [{"role": "user"}]}, "a message needs a role and a content"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "no assistant turn"),
    ],
)
def test_a_bad_row_is_named(
    tmp_path: Path, tokenizer: Tokenizer, line: object, expected: str
) -> None:
    path = write(tmp_path / "rows.jsonl", CHAT, line)
    with pytest.raises(TaskError) as caught:
        read(path, tokenizer, 100)
    assert "rows.jsonl:2: " in str(caught.value) and expected in str(caught.value)


def test_missing_and_empty_files_are_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(TaskError, match="there is no"):
        read(tmp_path / "none.jsonl", tokenizer, 10)
    with pytest.raises(TaskError, match=r"empty\.jsonl: the file is empty"):
        read(write(tmp_path / "empty.jsonl"), tokenizer, 10)


def test_weights_cover_the_learned_tokens_and_sum_to_one() -> None:
    rows = [
        Row([1, 2, 3, 4, 5], [False, False, True, False, True]),
        Row([6, 7, 8], [True, True, True]),  # nothing predicts the first token
    ]
    groups = training_groups(rows)
    assert (groups[0].prompt, groups[0].completions) == ([1, 2], [[3, 4, 5]])
    assert groups[0].weights == [pytest.approx([0.25, 0, 0.25])]
    assert (groups[1].prompt, groups[1].completions) == ([6], [[7, 8]])
    assert groups[1].weights == [pytest.approx([0.25, 0.25])]
    assert groups[0].sampler_logprobs is None


def test_each_epoch_draws_every_row_once_in_a_new_order() -> None:
    rows = [Row([number], [True]) for number in range(7)]
    drawn = [row.tokens[0] for step in range(1, 8) for row in draw(rows, 3, step, seed=1)]
    epochs = [drawn[start : start + 7] for start in (0, 7, 14)]
    assert all(Counter(epoch) == Counter(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert draw(rows, 3, 5, seed=1) == draw(rows, 3, 5, seed=1) != draw(rows, 3, 5, seed=2)


@pytest.mark.slow
def test_a_base_model_learns_to_end_its_turn(tiny_model: Path, tmp_path: Path) -> None:
    """Its own files end a text with <|endoftext|>, its template a turn with <|im_end|>."""
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    for name, change in (
        ("tokenizer_config.json", {"eos_token": "<|endoftext|>"}),
        ("config.json", {"eos_token_id": 0}),
        ("generation_config.json", {"eos_token_id": 0}),
    ):
        known = json.loads((base / name).read_text()) if (base / name).exists() else {}
        (base / name).write_text(json.dumps(known | change))
    question = {"role": "user", "content": "What is the answer?"}
    row = {"messages": [question, {"role": "assistant", "content": "42"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (tmp_path / "sft.toml").write_text(
        f'model.path = "{base}"\nlearner.dtype = "float32"\n[[stage]]\nkind = "sft"\nsteps = 60\n'
        f'data = "{tmp_path}/rows.jsonl"\noptimizer = {{ lr = 2e-2, warmup_steps = 2 }}\n'
    )
    train(load_recipe(tmp_path / "sft.toml", ["name=base"]), tmp_path / "run")
    settings = GeneratorSettings(dtype="float32", slots=1)
    generator = open_generator(settings, tmp_path / "run" / "weights", None, "chat")
    asked = [Problem("p", [question], "42")]
    ((answer,),) = (g.completions for g in generator.generate(asked, 1, Sampling(0.0), seed=0))
    assert (answer.text, answer.finish) == ("42", FinishReason.STOP)
    assert answer.tokens[-1:] == generator.tokenizer.encode("<|im_end|>")
