from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.records.coding import from_bytes, to_bytes
from interlock.records.rl import Problem
from interlock.tasks import math_verifier, open_task
from interlock.tasks.arithmetic import verify
from interlock.tasks.claims import claimed, wordings


def _open(seed: int = 0, held_out: int = 128, **options: Any) -> Any:
    return open_task(TaskSettings("arithmetic", options, seed=seed, held_out=held_out))


def _problem(answer: int) -> Problem:
    return Problem(id="arithmetic", messages=[], answer=str(answer))


def test_a_problem_says_what_it_asks() -> None:
    [problem] = _open().train(step=3, count=1)
    a, b = problem.meta["a"], problem.meta["b"]
    assert 10 <= a <= 99 and 10 <= b <= 99
    assert problem.id == f"arithmetic:{a}+{b}"
    assert problem.messages == [{"role": "user", "content": f"What is {a} + {b}?"}]
    assert problem.answer == str(a + b)
    assert from_bytes(to_bytes(problem), Problem) == problem


def test_steps_are_reproducible_in_any_order_and_differ() -> None:
    first, second = _open(), _open()
    forward = [first.train(step, 8) for step in range(5)]
    backward = [second.train(step, 8) for step in reversed(range(5))]
    assert forward == backward[::-1]
    assert len({problem.id for step in forward for problem in step}) > 30
    assert first.held_out(128) == second.held_out(128)
    assert _open(seed=1).train(0, 8) != forward[0]
    assert _open(seed=1).held_out(8) != first.held_out(8)


def test_the_draws_are_pinned() -> None:
    """A change here changes every run that is resumed after it."""
    assert [problem.id for problem in _open().train(0, 3)] == [
        "arithmetic:64+31",
        "arithmetic:65+82",
        "arithmetic:47+22",
    ]


@given(seed=st.integers(0, 100), step=st.integers(0, 10**6))
def test_no_family_is_on_both_sides(seed: int, step: int) -> None:
    def families(problems: list[Problem]) -> list[tuple[int, int]]:
        return [tuple(sorted((p.meta["a"], p.meta["b"]))) for p in problems]

    source = _open(seed=seed, held_out=300)
    held_out, training = families(source.held_out(300)), families(source.train(step, 64))
    assert len(set(held_out)) == 300 and len(set(training)) == 64
    assert not set(held_out) & set(training)


def test_operators_and_digits() -> None:
    source = _open(digits=[1, 3], operators=["+", "-", "*"])
    problems = [problem for step in range(30) for problem in source.train(step, 32)]
    seen = {(p.meta["op"], len(str(p.meta["a"])), len(str(p.meta["b"]))) for p in problems}
    assert len(seen) == 3 * 3 * 3
    for p in problems:
        expected = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[p.meta["op"]]
        assert p.answer == str(expected(p.meta["a"], p.meta["b"]))
        assert p.messages[0]["content"] == f"What is {p.meta['a']} {p.meta['op']} {p.meta['b']}?"


def test_one_digit_starts_at_zero_and_has_55_families() -> None:
    source = _open(digits=1, held_out=5)
    problems = source.train(0, 50)
    assert min(p.meta["a"] for p in problems) == 0
    with pytest.raises(
        TaskError, match="51 different problems and 5 held out are more than the 55"
    ):
        source.train(0, 51)


def test_a_template_of_ones_own() -> None:
    [problem] = _open(template="{a}{op}{b}=").train(0, 1)
    assert problem.messages[0]["content"] == problem.id.removeprefix("arithmetic:") + "="


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"digts": 2}, "'digts'; did you mean digits?"),
        ({"digits": 7}, "digits = 7: expected int <= 6"),
        ({"digits": 0}, "digits = 0: expected int >= 1"),
        ({"digits": "2"}, "digits = '2': expected int | array, got str"),
        ({"digits": [3, 1]}, "put the smaller first"),
        ({"digits": [1, 2, 3]}, "digits = [1, 2, 3]: expected array of length <= 2"),
        ({"operators": ["/"]}, "operators.0 = '/': choose one of *, +, -"),
        ({"operators": []}, "operators = []: expected array of length >= 1"),
        ({"template": "{a} and {c}"}, "use {a}, {b} and, if wanted, {op}"),
        ({"template": "{a.__class__} {b}"}, "use {a}, {b}"),
        ({"template": "{a} {b"}, "template = '{a} {b'"),
        ({"template": "{a:>1000}{b}"}, "write widths up to 999"),
        ({"template": "{a:{b}}{b}"}, "write widths up to 999"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(TaskError) as caught:
        _open(**options)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("46", 1.0),
        ("12 + 34 = 46.", 1.0),
        ("12 + 34 = 46.0", 1.0),
        ("46 is the sum of 12 and 34", 0.0),  # the last number counts
        ("12 + 34 is\n12 +\n34", 0.0),
        ("Steps done: 2\n- 46", 1.0),  # a bullet
        ("46 or 47", 0.0),
        ("47 or 46", 0.0),  # it decides for none
        ("-46", 0.0),
        ("4.6e1", 1.0),
        ("<think> 46", 0.0),  # it never answered
        ("<think> 45</think> 46", 1.0),
        ("46.5", 0.0),
        ("", 0.0),
        ("forty-six", 0.0),
        ("twelve plus thirty-four", 0.0),
        (r"\boxed{twelve plus thirty-four}", 0.0),
        ("0 plus 46", 0.0),
        ("2 times 46", 0.0),
        ("92 divided by 46", 0.0),
        ("100 minus 46", 0.0),
        ("12 plus 34 is 46", 1.0),
        ("\u0664\u0666", 1.0),  # Arabic-Indic digits
        ("it is \u096a\u096c", 1.0),  # Devanagari
        ("\uff14\uff16", 1.0),  # of full width
        ("\u0664\u0667", 0.0),
        ("92/46", 0.0),  # a quotient that is not worked out
        ("9" * 10_000, 0.0),
        ("\x00\ud800 46", 1.0),
    ],
)
def test_verdicts_for_46(text: str, reward: float) -> None:
    assert verify(_problem(46), text) == reward


@pytest.mark.parametrize(
    "text",
    [
        "\u22125",
        "\u20135",
        "it is \u20105",
        "\u20115",
        "\ufe635",
        "\uff0d5",
        "x = - 5",
        r"\boxed{- 5}",
    ],
)
def test_a_minus_of_any_typography_is_a_sign(text: str) -> None:
    assert verify(_problem(-5), text) and not verify(_problem(5), text)


IN_WORDS = [
    "negative 5",
    "Minus 5.",
    "7 - 12 = minus 5",
    "7 minus 12 is negative 5",
    "7 - 12 is 3 - 8, so\nminus 5",
    "it is negative **5**",
    "minus $5$",
    r"negative \(5\)",
    r"\boxed{negative 5}",
    r"\boxed{\text{negative }5}",
    r"\boxed{\text{minus 5}}",
    r"\boxed{\text{minus}~5}",
    r"negative \boxed{5}",
]


@pytest.mark.parametrize("text", IN_WORDS)
def test_a_sign_in_words_is_one(text: str) -> None:
    """For math-verify's verifier and for reasoning-gym's reading, too."""
    mathematics = math_verifier.open_verifier(TaskSettings("jsonl", {"path": "unused"}))
    for judge in (verify, mathematics):
        assert judge(_problem(-5), text) and not judge(_problem(5), text)


def test_a_claim_has_its_sign_in_words() -> None:
    claim = claimed("<answer>negative 5</answer>", "number")
    assert claim is not None and "5" not in wordings(claim, "number")
    assert "-5" in wordings(claim, "number")


@pytest.mark.parametrize("text", ["12 minus 5", "(12) minus 5", "x minus 5", "surplus 5"])
def test_a_difference_in_words_is_no_negative_number(text: str) -> None:
    assert not verify(_problem(-5), text)


@pytest.mark.parametrize("text", ["2\u20135", "(2) \u2013 5", "2\u20115 = 5"])
def test_a_dash_between_numbers_is_none(text: str) -> None:
    assert not verify(_problem(-5), text)


def test_a_negative_last_line_below_a_digit_is_a_value() -> None:
    assert verify(_problem(-167), "345-500=-155\n-155-12=-167\n-167") == 1.0


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(-(10**7), 10**7))
def test_a_sum_is_right_exactly_when_it_equals(a: int, b: int, claim: int) -> None:
    assert verify(_problem(a + b), f"{a} + {b} = {a + b:,}.") == 1.0
    assert verify(_problem(a + b), f"It is {claim}") == float(claim == a + b)
    assert verify(_problem(a - b), f"{a} - {b} = {a - b}") == 1.0


@pytest.mark.parametrize(
    ("options", "families"),
    [
        ({"digits": 1}, 55),  # of 10 numbers: 10 with themselves, 45 with another
        ({"digits": 2, "operators": ["+", "+"]}, 90 * 91 // 2),
        ({"digits": [1, 2], "operators": ["+", "-"]}, 2 * 100 * 101 // 2),
    ],
)
def test_it_knows_how_many_different_problems_there_are(
    options: dict[str, Any], families: int
) -> None:
    with pytest.raises(TaskError, match=f"more than the {families} that"):
        _open(held_out=families + 1, **options)
