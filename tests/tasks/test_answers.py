import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.tasks import answers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("46", "46"),
        ("12 + 34 = 46.", "46"),
        ("The answer is **46**!", "46"),
        ("1,234", "1234"),
        ("1{,}234", "1234"),
        ("12,34", "34"),  # not a thousands separator: a list of two
        ("1,2345", "2345"),
        ("1,234,567.50 dollars", "1234567.50"),
        ("5 - 12 = -7", "-7"),
        ("\N{MINUS SIGN}7", "-7"),
        ("12-5", "5"),  # a minus between operands is no sign
        ("(3)-5", "5"),
        ("-$5", "-5"),
        ("46.5", "46.5"),
        ("46. Done", "46"),
        ("007", "007"),
        (r"1\,234\,567", "1234567"),
        ("1\u202f000 and", "1000"),
        ("12 345", "12345"),
        ("2024 100", "100"),
        ("1e3", "1e3"),
        ("it is -2.5E-4.", "-2.5E-4"),
        ("2e", "2"),
        (".5", ".5"),
        ("so...5", "5"),
        ("\u0664\u0666", None),  # Arabic-Indic digits are not read
        ("no number", None),
        ("", None),
        ("\x00 4\ud8006", "6"),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert answers.last_number(text) == number


@given(st.integers(), st.text(alphabet=st.characters(exclude_categories=["N"]), max_size=30))
def test_last_number_finds_an_integer_after_any_words(value: int, words: str) -> None:
    assert answers.last_number(f"{words} {value:,}") == str(value)


@given(st.text())
def test_extraction_never_raises(text: str) -> None:
    answers.last_number(text)
    answers.boxed(text)
    answers.marked(text, "####")


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        (r"so \boxed{18}", ["18"]),
        (r"\boxed{\frac{1}{2}} then \boxed {x^{2}}", [r"\frac{1}{2}", "x^{2}"]),
        (r"\boxed{17} \boxed{18", ["17"]),  # the second is not closed
        (r"\boxed{}", [""]),
        (r"\boxed{\boxed{5}}", [r"\boxed{5}", "5"]),
        ("18", []),
    ],
)
def test_boxed(text: str, contents: list[str]) -> None:
    assert answers.boxed(text) == contents


def test_marked_reads_to_the_end_of_the_line() -> None:
    assert answers.marked("a\n#### 18 \nmore\n####19", "####") == ["18", "19"]
    assert answers.marked("18", "####") == []
