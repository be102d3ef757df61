"""What a turn claims, by hand; and that no turn which names several answers claims one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.tasks.claims import Kind, claimed, kind_of, tidied, wordings


def says(turn: str, kind: Kind) -> list[str]:
    claim = claimed(turn, kind)
    return [] if claim is None else wordings(claim, kind)


@pytest.mark.parametrize(
    ("turn", "form"),
    [
        ("<answer>12</answer>", "tag"),
        ("<answer>\n 12 \n</answer>.", "tag"),
        ("so <ANSWER>12</ANSWER>", "tag"),
        ("<answer>12", "tag"),  # the closing tag was the stop, or was cut
        ("<answer>12</answer> I mean <answer>12</answer>", "tag"),
        ("<answer>12</answer>\n\\boxed{13}\n14", "tag"),
        ("<answer>\\boxed{12}</answer>", "tag"),
        ("<answer>12 legs</answer>", "tag"),
        ("<think><answer>13</answer></think><answer>12</answer>", "tag"),
        ("it is \\boxed{12}, and not 13", "boxed"),
        ("3 + 9\n**Answer:** 12", "marked"),
        ("The final answer is 12.\nI added 3 and 9.", "marked"),
        ("So the answer is: $12$", "marked"),
        ("12", "line"),
        ("**12**.", "line"),
        ("3 + 9 = 12", "line"),
        ("1 + 2 + 9 = 3 + 9 = 12", "line"),
        ("The GCD of 36 and 24 is 12.", "line"),
        ("There are 12 legs.", "line"),
        ("3 and 9\nmake\n12\n\n", "line"),
        pytest.param("\n" * 50_000 + "12", "line", id="many lines"),
        pytest.param("answer" + "\n" * 50_000 + "12", "line", id="many lines behind a mark"),
    ],
)
def test_a_number_is_read(turn: str, form: str) -> None:
    claim = claimed(turn, "number")
    assert claim is not None and claim.form == form
    assert "12" in wordings(claim, "number")


@pytest.mark.parametrize(
    "turn",
    [
        "",
        "  \n",
        "<answer></answer>",
        "<answer>12</answer><answer>13</answer>",
        "<answer>13</answer> or rather <answer>12",
        "\\boxed{12} \\boxed{13}",
        "Answer: 12\nAnswer: 13",
        "<think>12",
        "11\n12",  # a column of numbers
    ],
)
def test_no_claim(turn: str) -> None:
    assert claimed(turn, "number") is None


@pytest.mark.parametrize(
    "turn",
    [
        "11 or 12",
        "It is 11, 12 or 13",
        "10, 11, 12, 13",
        "x = 11, x = 12",
        "It is 11. It is 12.",
        "<answer>11, 12</answer>",
        "The answer is 11 or 12",
        "Perhaps it is 12",
        "12 13",
    ],
)
def test_several_answers_are_no_answer(turn: str) -> None:
    assert "12" not in says(turn, "number")


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ("<answer>talps</answer>", "talps"),
        ('The word "splat" backward is "talps".', "talps"),
        ("Sorted: a, b, c", "a, b, c"),
        ("`a, b, c`", "a, b, c"),
        ("['1', '2']", "['1', '2']"),
    ],
)
def test_a_text_is_read(turn: str, expected: str) -> None:
    assert expected in says(turn, "text")


def test_several_lines_are_read_whole() -> None:
    assert says("1 2\n3 4\n", "lines") == ["1 2\n3 4"]
    assert says("<answer>\n1 2\n3 4\n</answer>", "lines") == ["1 2\n3 4"]


def test_the_kind_is_all_that_is_known_of_the_right_answer() -> None:
    kinds = [kind_of(each) for each in ("-12", "1.5", "1/2", "a, b", "1 2\n3 4", "")]
    assert kinds == ["number", "number", "text", "text", "lines", "lines"]


_NUMBERS = st.lists(st.integers(0, 10**6), min_size=2, max_size=6, unique=True)
_JOINS = st.sampled_from([", ", " or ", " and ", "; ", " / ", "\n", ". ", " "])
_FRAMES = st.sampled_from(["{}", "It is {}", "Answer: {}", "<answer>{}</answer>", "\\boxed{{{}}}"])


@given(_NUMBERS, _JOINS, _FRAMES)
def test_a_list_claims_none_of_its_numbers(found: list[int], join: str, frame: str) -> None:
    if join == " ":
        found = [each % 100 for each in found]  # else "1 234" is one number
        if len(set(found)) < 2:
            return
    turn = frame.format(join.join(map(str, found)))
    named = {str(each) for each in found}
    if join == "\n" and frame != "{}":
        return  # a line of its own is not in the frame: the frame's own line claims
    assert not named & set(says(turn, "number"))


@given(st.text(max_size=60))
def test_any_text_is_read_without_an_error(turn: str) -> None:
    for kind in ("number", "text", "lines"):
        claim = claimed(turn, kind)
        if claim is not None:
            assert claim.text.strip() and all(wordings(claim, kind))
    assert tidied(tidied(turn)) == tidied(turn)
