"""What counts as an answer beside marked thinking; begun and ended in any order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock import thinking


@pytest.mark.parametrize(
    ("turn", "answer"),
    [
        ("<think>5</think>6</think>7", "7"),
        ("5</think>6", "6"),
        ("<think>5", ""),
        ("<think>5</think>6<think>7", "6"),
        ("6<Thinking>7", "6"),
        ("<think>5</think><think>6", ""),
        ("<think >5", ""),
        ("<reasoning>5</reasoning>6", "6"),
        ("[THINK]5", ""),
        ("[THINK]5[/THINK]6", "6"),
        ("◁think▷5", ""),
        ("◁think▷5◁/think▷6", "6"),
        ("<|begin_of_thought|>5", ""),
        ("<|begin_of_thought|>5<|end_of_thought|>6", "6"),
        ("I <thoughtfully> say 5", "I <thoughtfully> say 5"),
        ("5", "5"),
    ],
)
def test_after(turn: str, answer: str) -> None:
    assert thinking.after(turn) == answer


@pytest.mark.parametrize(
    ("turn", "open_"),
    [
        ("<think>5", True),
        ("<think>5</think>6<think>7", True),
        ("5</think>6", False),
        ("<think>5</think>", False),
        ("5", False),
    ],
)
def test_is_open(turn: str, open_: bool) -> None:
    assert thinking.is_open(turn) is open_


def test_since() -> None:
    assert thinking.since("<|assistant|>\n<think>\nSo") == "<think>\nSo"
    assert thinking.since("<think>\n\n</think>\n\n") == "<think>\n\n</think>\n\n"
    assert thinking.since("<|assistant|>\n") == ""


@given(st.text(st.sampled_from("<>/think 5")))
def test_parts_of_any_text_are_in_it(text: str) -> None:
    assert thinking.after(text) in text and text.endswith(thinking.since(text))
