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


@pytest.mark.parametrize(
    ("text", "is_undecided"),
    [
        ("45 or 46", True),
        ("45, 47 or 46.", True),
        ("It is **45**, or perhaps **46**", True),
        ("$45$ or $46$", True),
        ("45? Or 46?", False),  # a new sentence may correct the one before it
        ("1,000 or 2,000", True),
        ("4 or -4", True),
        ("$5 or $6", True),
        ("46 or 46", False),
        ("1,000 or 1000", False),
        ("1000 or 10^3", False),
        ("1/2 or 0.5", False),
        ("12.5 or 13", False),
        ("12 + 34 or 46", False),
        ("12 * 34 or 408", False),
        (r"12 \times 34 or 408", False),
        ("12-5 or 7", False),
        ("x^2 or 4", False),
        ("a_2 or 4", False),
        ("1 hour or 60 minutes", False),
        ("$5 or 500 cents", False),
        ("60 minutes, or 1 hour", False),
        ("45 or 46, so 47", False),
        ("for 4 it is 46", False),
        ("46", False),
        ("or 46", False),
        ("9" * 5000 + " or 1", False),
        ("", False),
    ],
)
def test_undecided(text: str, is_undecided: bool) -> None:
    assert answers.undecided(text) is is_undecided


@pytest.mark.parametrize(
    ("text", "is_list"),
    [
        ("45, 46", True),
        ("45; 46.", True),
        ("so the answers are $45$, $46$ and **47**", True),
        ("x = 45, 46", True),
        ("46, 46", False),
        ("1,234", False),
        ("They pay $5, $7 and $9.", False),
        ("12 16", False),
        ("In 2023, 46", False),
        ("It is 45, 46 in all", False),
        ("1, 2, 3 gives 6", False),
    ],
)
def test_a_bare_list_chooses_none(text: str, is_list: bool) -> None:
    assert answers.undecided(text) is is_list
    assert answers.undecided("\n1," * 20_000 + "x") is False  # and takes no time that grows
