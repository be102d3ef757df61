"""Whatever a worker says of its tokens, their text and end are those that the tokenizer finds."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import Completion, FinishReason, Problem, Sampling, Segment
from interlock.workers.reading import Reader

SAMPLING = Sampling(max_tokens=8, stop=["\n"])
PROBLEM = Problem("p", [{"role": "user", "content": "1 + 3?"}], "4")


@pytest.fixture(scope="module")
def tokenizer(chatty: Path) -> Tokenizer:
    return Tokenizer.load(chatty)


def claimed(tokens: list[int], text: str = "42", finish: str = "stop") -> Completion:
    half = len(tokens) // 2  # new weights came under it
    parts = [(tokens[:half], 3), (tokens[half:], 4)]
    segments = [Segment(part, [-1.0] * len(part), version) for part, version in parts if part]
    return Completion(segments, FinishReason(finish), text)


def read(tokenizer: Tokenizer, claim: Completion) -> Completion | None:
    found = Reader(tokenizer, tokenizer.vocab_size).read([claim], SAMPLING, PROBLEM)
    return None if found is None else found[0]


def test_a_lying_text_is_replaced_by_what_the_tokens_say(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("no 7\n")
    honest = read(tokenizer, claimed(tokens, "no 7"))
    for claim in (claimed(tokens), claimed(tokens, finish="length"), claimed(tokens, "\ud800")):
        assert read(tokenizer, claim) == honest
    assert honest is not None
    assert (honest.text, honest.finish, honest.tokens) == ("no 7", FinishReason.STOP, tokens)
    assert [part.weight_version for part in honest.segments] == [3, 4]


def test_tokens_behind_an_end_or_without_one_are_refused(tokenizer: Tokenizer) -> None:
    (eos, *_) = tokenizer.eos_ids
    body = tokenizer.encode("12345678")
    assert len(body) == 8, "one token a byte"
    assert read(tokenizer, claimed(body)) is not None  # max_tokens
    assert read(tokenizer, claimed([*body[:3], eos])) is not None
    for tokens in (body[:7], [eos, eos], [*tokenizer.encode("\n"), 5], [eos, *body[:2]]):
        assert read(tokenizer, claimed(tokens)) is None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_tokens_are_read_or_refused(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = st.integers(0, tokenizer.vocab_size + 3)  # models have rows that no token stands for
    tokens = data.draw(st.lists(ids, min_size=1, max_size=8))
    found = read(tokenizer, claimed(tokens))
    if found is not None:
        assert found.tokens == tokens and "\n" not in found.text


def test_given_tokens_are_those_that_its_budget_wants_or_the_answer_is_refused(
    tokenizer: Tokenizer,
) -> None:
    rule = Sampling(max_tokens=60, thinking_budget=4)
    reader = Reader(tokenizer, tokenizer.vocab_size)
    close = tokenizer.encode("\n</think>\n\n")

    def read(*parts: tuple[list[int], bool], sampling: Sampling = rule) -> bool:
        segments = [
            Segment(part, [-1.0] * len(part), 3) if drawn else Segment(part)
            for part, drawn in parts
        ]
        answer = Completion(segments, FinishReason.STOP, "")
        return reader.read([answer], sampling, PROBLEM) is not None

    (eos, *_) = tokenizer.eos_ids
    thought, rest = tokenizer.encode("<think>1234"), [*tokenizer.encode("42"), eos]
    assert read((thought, True), (close, False), (rest, True))
    assert read((tokenizer.encode("<think>12</think>"), True), (rest, True))
    assert read((rest, True))
    # Given too late, too early, in part, otherwise, as if drawn, or twice.
    assert not read(([*thought, 50], True), (close, False), (rest, True))
    assert not read((thought[:-1], True), (close, False), (rest, True))
    assert not read((thought, True), (close[:-1], False), (rest, True))
    assert not read((thought, True), ([*close[:-1], 50], False), (rest, True))
    assert not read(([*thought, *close, *rest], True))
    assert not read((thought, True), ([*close, *close], False), (rest, True))
    assert not read((thought, True), (close, False), (rest, True), sampling=Sampling(max_tokens=60))
