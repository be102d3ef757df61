"""Tokens that think and tokens that answer: a token per byte, so that characters count them."""

import pytest
from byte_model import write_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from interlock import thinking
from interlock.models.tokenizer import Tokenizer
from interlock.recipes.lengths import Lengths, lengths, mean_lengths
from interlock.records.rl import Completion, FinishReason, Group, Problem, Segment


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("bytes")
    write_tokenizer(directory)
    return Tokenizer.load(directory)


def group_of(tokenizer: Tokenizer, *texts: str, opening: str = "") -> Group:
    """Each text with the token that ends it."""
    drawn = []
    for text in texts:
        tokens = [*tokenizer.encode(text), tokenizer.eos_id or 0]
        logprobs = [-1.0] * len(tokens)
        drawn.append(Completion.sampled(tokens, logprobs, FinishReason.STOP, text, 0))
    return Group(Problem("p", [], ""), [1], drawn, "w", opening)


@pytest.mark.parametrize(
    ("opening", "text", "thinks", "answers", "open_"),
    [
        ("", "46", 0, 3, False),
        ("", "<think>ab</think>46", 17, 3, False),
        ("", "[THINK]ab[/THINK]46", 17, 3, False),
        ("<think>\n", "ab</think>46", 10, 3, False),  # R1's template begins it
        ("<think>\n\n</think>\n\n", "46", 0, 3, False),  # Qwen3's, told not to think
        ("", "<think>ab", 10, 0, True),
        ("<think>\n", "ab", 3, 0, True),
        ("", "<think>ab</think>46<think>cd", 27, 2, True),
        ("", "<think>ab</think> \n", 20, 0, False),  # an answer of nothing is none
        ("", "<think>gr\u00fc\u00df</think>\u00fc46", 21, 5, False),  # two bytes each
    ],
)
def test_by_hand(
    tokenizer: Tokenizer, opening: str, text: str, thinks: int, answers: int, open_: bool
) -> None:
    [found] = lengths(group_of(tokenizer, text, opening=opening), tokenizer.decode)
    assert found == Lengths(thinks, answers, open_)


def test_what_was_given_is_no_length(tokenizer: Tokenizer) -> None:
    texts = ["<think>ab</think>", "RESULT", "46"]
    first, given_, last = ([*tokenizer.encode(text)] for text in texts)
    segments = [Segment(first, [-1.0] * 17, 0), Segment(given_), Segment(last, [-1.0] * 2, 0)]
    answer = Completion(segments, FinishReason.STOP, "".join(texts))
    group = Group(Problem("p", [], ""), [1], [answer], "w")
    assert lengths(group, tokenizer.decode) == [Lengths(17, 2, False)]


def test_means_over_groups(tokenizer: Tokenizer) -> None:
    groups = [group_of(tokenizer, "46", "<think>ab"), group_of(tokenizer, "<think>a</think>4")]
    assert mean_lengths(groups, tokenizer.decode) == Lengths(26 / 3, 5 / 3, 1 / 3)


@given(st.lists(st.sampled_from(["<think>", "</think>", "a", "\u00fc ", "46"]), max_size=9))
def test_both_are_all_and_the_answer_is_what_was_judged(
    tokenizer: Tokenizer, parts: list[str]
) -> None:
    text = "".join(parts)
    [found] = lengths(group_of(tokenizer, text), tokenizer.decode)
    assert found.thinking + found.answer == len(text.encode()) + 1
    answer = thinking.after(text)
    at_the_end = thinking.answer_span(text)[1] == len(text)
    spoken = bool(answer.strip()) or answer == text
    assert found.answer == (len(answer.encode()) + at_the_end if spoken else 0)
