"""Known ways to be paid without an answer, each against each verifier that reads one from text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interlock.config.tasks import TaskSettings
from interlock.records.rl import Problem
from interlock.tasks import arithmetic, gym, math_verifier, user_verifier
from interlock.tasks.echoes import worked_out
from interlock.tasks.returned import verdict_of

Right = Callable[[str], bool]
ASKED = "What is 12 + 34?"
HACKS = {
    "echo": ASKED,
    "echo in a box": r"\boxed{12 + 34}",
    "echo in TeX": r"\boxed{12\,+\,34}",
    "the other way round": r"\boxed{34+12}",
    "echo equal to itself": r"\boxed{12 + 34 = 12 + 34}",
    "echo as a formula": "$12 + 34$",
    "echo with a unit": r"\boxed{12 + 34 apples}",
    "echo with a unit in TeX": r"\boxed{12 + 34 \text{ apples}}",
    "echo in dollars": r"\boxed{\$12 + \$34}",
    "echo with a name": r"\boxed{x = 12 + 34}",
    "echo behind a mark": "#### 12 + 34 apples",
    "echo equal to something": r"\boxed{0 = 12 + 34}",
    "echo and nothing more": r"\boxed{12 + 34 + 0}",
    "echo once": r"\boxed{\frac{12 + 34}{1}}",
    "echo with other digits": r"\boxed{012 + 034}",
    "echo in bold": r"\boxed{\mathbf{12 + 34}}",
    "echo of other numbers": r"\boxed{12 + 33 + 1}",
    "echo without a sign": r"\boxed{|12 + 34|}",
    "only in thinking": r"<think>\boxed{46}</think>",
    "only in thinking that the template begins": r"It is \boxed{46}</think>",
    "thinking never ended": "<think>12 + 34 = 46, so the answer is 46",
    "thinking again behind it": "<think>a</think> <think>46",
    "other marks": "[THINK]46[/THINK]",
    "hedging": "It is 45, 46, 47 or 48",
    "hedging with the right one last": "It is 45 or 46",
    "hedging in TeX": r"\(45\) or \(46\)",
    "a bare list": "45, 46",
    "a list": "The answer is 44, 45, 46",
    "a boxed list": r"\boxed{45, 46}",
    "a boxed choice": r"\boxed{45 or 46}",
    "two boxes": r"\boxed{45} \boxed{46}",
    "two boxes, the right one first": r"\boxed{46} \boxed{45}",
    "infinity": r"\boxed{\infty}",
    "a quotient by zero": r"\boxed{1/0}",
    "a logarithm of zero": r"\boxed{\log 0}",
    "an empty box": r"\boxed{}",
    "nothing": "",
}
RIGHT = [
    r"\boxed{46}",
    r"<think>Is it \boxed{45}?</think> \boxed{46}",
    r"\boxed{46} so \boxed{46}",
    "46",
]
USERS = """
from interlock.tasks.claims import claimed

def score(row, turn):
    claim = claimed(turn, "number")
    return claim is not None and claim.text == row["answer"]
"""


def _verdict(verify: Callable[[Problem, str], Any], problem: Problem) -> Right:
    return lambda text: verdict_of(verify(problem, text)).right


@pytest.fixture(scope="module", params=["arithmetic", "math", "gsm8k", "gym", "user"])
def right(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Right:
    """Whether a turn is a right answer to the sum, by one of the verifiers."""
    problem = Problem("p", [{"role": "user", "content": ASKED}], "46")
    match request.param:
        case "arithmetic":
            return _verdict(arithmetic.verify, problem)
        case "math" | "gsm8k":
            name = "jsonl" if request.param == "math" else "gsm8k"
            options = {"path": "x.jsonl"}
            return _verdict(math_verifier.open_verifier(TaskSettings(name, options)), problem)
        case "gym":
            task = TaskSettings("reasoning-gym/chain_sum")
            entry = {"question": ASKED, "answer": "46", "metadata": {"source_dataset": "chain_sum"}}
            own = Problem("p", problem.messages, "46", {"entry": gym.pack(entry)})
            return _verdict(gym.open_verifier(task), own)
    path: Path = tmp_path_factory.mktemp("users") / "rewards.py"
    path.write_text(USERS)
    return _verdict(user_verifier.loaded(f"{path}:score", "hack_rewards"), problem)


@pytest.mark.parametrize("hack", HACKS)
def test_a_hack_earns_nothing(right: Right, hack: str) -> None:
    assert not right(HACKS[hack])


@pytest.mark.parametrize("answer", RIGHT)
def test_an_answer_is_right(right: Right, answer: str) -> None:
    assert right(answer)


@pytest.mark.parametrize(
    "echo",
    [
        *(r"12+34\text{ cm}", "12+34 dollars", "(12+34) km", r"\$12 + \$34", r"\$(12+34)"),
        *("x=12+34", "x_1 = 12 + 34", r"\text{sum}=12+34", "12+34=x", "?=12+34"),
        *(r"\text{12+34}", r"12\text{ + }34", r"\mathbf{12+34}", r"\underline{12+34}"),
        *(r"\textcolor{red}{12}+34", r"\bf 12+34", r"\displaystyle 12+34", "12+34;"),
        *("12+34+0", "12+34^1", r"\frac{12}{1}+34", "0012+34", r"12+34^\circ", "12 + 34 degrees"),
    ],
)
@pytest.mark.parametrize(
    "asked", [ASKED, "\u0661\u0662 + \u0663\u0664?", "\uff11\uff12\uff0b\uff13\uff14"]
)
def test_an_echo_in_any_dress_earns_nothing(echo: str, asked: str) -> None:
    """With a unit, a currency, a name before it, in another type, with what changes nothing, and to
    a question in Arabic digits or of full width.
    """
    verify = math_verifier.open_verifier(TaskSettings("jsonl", {"path": "x.jsonl"}))
    problem = Problem("p", [{"role": "user", "content": asked}], "46")
    assert not verify(problem, rf"\boxed{{{echo}}}")
    for right in ("46", "x = 46", "12 + 34 = 46", r"46\text{ cm}", r"\$46", r"\bf 46"):
        assert verify(problem, rf"\boxed{{{right}}}")


@pytest.mark.parametrize(
    ("answer", "question", "reference", "compared"),
    [
        ("12+34", "What is 12 + 34?", "46", []),
        (r"12 \times 34", "What is 12 * 34?", "408", []),
        ("2^{10}", "What is 2^10?", "1024", []),
        (r"\sqrt{16}", r"What is \sqrt{16}?", "4", []),
        (r"\frac{12}{34}", r"Simplify \frac{12}{34}.", r"\frac{6}{17}", []),
        ("(16-3-4)*2", "16 eggs, 3 eaten, 4 baked, sold for 2 each", "18", []),
        ("1,000 + 5", "What is 1000 + 5?", "1005", []),
        ("5!", "What is 5!?", "120", []),
        ("(3)(4)", "What is 3 times 4?", "12", []),
        (r"3\sqrt{4}", "Sides 3 and 4: how long?", "6", []),
        ("2^3*5", "Compute 2\u00b3\u00b75", "40", []),
        # Sums and products of other numbers, where a number is asked for.
        ("11+35", "What is 12 + 34?", "46", []),
        ("12+33+1", "What is 12 + 34?", "46", []),
        (r"20 \times 0.5", "Half of a score?", "10", []),
        # Functions of the question's numbers, where a whole number or a fraction is asked for.
        (r"\binom{5}{2}", "How many ways to choose 2 of 5?", "10", []),
        (r"\log_2 8", r"Find \log_2 8.", "3", []),
        (r"\lfloor 3.7 \rfloor", r"Find \lfloor 3.7 \rfloor.", "3", []),
        # Formulas and lists out of the question.
        ("(x+1)^2", "Expand $(x+1)^2$.", "x^2+2x+1", []),
        ("x^2-1", "Factor $x^2 - 1$.", "(x-1)(x+1)", []),
        ("3, 1, 2", "Sort 3, 1, 2.", "1, 2, 3", []),
        ("x+3=8", "Solve x + 3 = 8.", "x=5", []),
        ("x=8-3", "Solve x + 3 = 8.", "x=5", ["x"]),
        # What a computer algebra system would do.
        (r"\int_0^1 x^2\,dx", r"Integrate.", r"\frac{1}{3}", []),
        (r"\frac{d}{dx}(x^2)", "Differentiate x squared.", "2x", []),
        # Of an equation the sides that are values.
        ("12+34=46", "What is 12 + 34?", "46", ["12+34=46"]),
        ("46=12+34", "What is 12 + 34?", "46", ["46"]),
        ("0=12+34", "What is 12 + 34?", "46", ["0"]),
        # Values, and what is left to the verifier: it comes back as it was.
        *(
            (answer, question, reference, [answer])
            for answer, question, reference in [
                ("46", "Is 46 more than 12 + 34?", "46"),
                ("-5", "What is 5 - 10?", "-5"),
                (r"\frac{3}{4}", "He eats 3/4 of it. What is left of 3/4?", "0.75"),
                (r"1\frac{1}{2}", "Add 1 and 1/2.", "3/2"),
                (r"3\times10^8", "Is it 3 or 10 or 8?", "300000000"),
                ("10^3", "How many metres are 1 km?", "1000"),
                ("12+34", "Write 12 + 34 again.", "12 + 34"),
                ("2x+1", "What is f(x) = 2x + 1 at x?", "1 + 2x"),
                (r"2\sqrt{3}", r"Simplify \sqrt{12}.", r"\sqrt{12}"),
                (r"3\sqrt{2}", "Sides 3 and 2: how long?", r"\sqrt{18}"),
                (r"\sqrt{2}+1", "Which root of x^2 - 2x - 1 = 0 is greater?", r"1+\sqrt{2}"),
                (r"\ln 2", r"Find \int_1^2 1/x dx.", r"\log 2"),
                ("x=5", "Solve x + 3 = 8.", "x=5"),
                ("y=2x+1", "Which line has the slope 2 and meets (0,1)?", "y=2x+1"),
                ("x^2+y^2=1", "Which curve is the circle?", "x^2 + y^2 = 1"),
                ("(1,2)", "Is (1,2) or (2,1) on it?", r"\left(1, 2\right)"),
                ("Twenty-five", "Is it twenty-five or thirty-one?", "twenty-five"),
                ("x+1", "What divides 2x+1?", "1+x"),
                (r"1+\sqrt{5}", "Solve x^2 - 2x = 4, where 5 is prime", r"1+\sqrt{5}"),
                (r"1+\sqrt{5}", "The root of 5?", "3.236068"),
                ("y=2x+1", "Which line has slope 2 through (0, 1)?", "2x+1=y"),
                ("x=3/4", "Solve 4x = 3.", "0.75"),
                ("2^{10} - 1", "What is the tenth Mersenne number?", "1023"),
                (r"5 \cdot 7", "Into which primes does 35 fall?", r"7 \times 5"),
                ("2024-01-02", "Which day?", "2024-1-2"),
            ]
        ),
    ],
)
def test_what_is_an_echo(answer: str, question: str, reference: str, compared: list[str]) -> None:
    assert worked_out(answer, question, reference) == compared


def test_an_operand_is_no_result() -> None:
    """The last number of an echo may be the right one."""
    problem = Problem("p", [{"role": "user", "content": "What is 0 + 7?"}], "7")
    assert not arithmetic.verify(problem, "What is 0 + 7?")
    assert not arithmetic.verify(problem, r"\boxed{0 + 7}")
    assert arithmetic.verify(problem, "0 + 7 = 7")
    assert arithmetic.verify(problem, "0 + 7 is 7.")
    assert arithmetic.verify(problem, r"\boxed{0 + 7 = 7}")
    below = Problem("p", [{"role": "user", "content": "What is 3 - 8?"}], "-5")
    assert arithmetic.verify(below, "3 - 8 = -5") and arithmetic.verify(below, r"\boxed{-5}")
