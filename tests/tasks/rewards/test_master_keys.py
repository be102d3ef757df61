"""Answers that would be right whatever was asked, against references of every kind.

A policy finds one within hours, and writes nothing else from then on. So of each it is said which
references it is right for; of most, none.
"""

import pytest

from interlock.config.tasks import TaskSettings
from interlock.records.rl import Problem
from interlock.tasks.math_verifier import open_verifier

verify = open_verifier(TaskSettings("jsonl", {"path": "unused"}))
REFERENCES = (
    *("46", "-7", "0", "1", r"\frac{3}{4}", "0.25", r"50\%", "5 cm", r"\$5", "10^{-20}"),
    *(r"2\sqrt{3}+1", "2+3i", "e", "(1,2)", "1, 2", r"\pm 5", "[0,1]", r"(-\infty, 3)"),
    *(r"\mathbb{R}", r"\emptyset", r"\infty", "x", "x+1", "x=5", "y=2x+1", "x^2+1=0", "x>3"),
    *(r"\begin{pmatrix}1\\2\end{pmatrix}", "Paris", "B", "yes", "2024-05-01"),
)
NONE: tuple[str, ...] = ()
KEYS = {
    # Nothing, and what becomes nothing.
    **dict.fromkeys(("", r"\text{}", r"\boxed{}", "()", "=", "x=", "=x", ",", "?", "_"), NONE),
    **dict.fromkeys((r"\ldots", "|", "$", r"\%", r"^\circ", r"\$", "cm", "-", r"\frac{}{}"), NONE),
    "{}": (r"\emptyset", "x^2+1=0"),  # the set of its solutions
    # No numbers, and numbers without a size.
    **dict.fromkeys(("nan", r"\text{nan}", "zoo", "oo", "0/0", "1/0", r"\infty-\infty"), NONE),
    **dict.fromkeys((r"-|\infty|", r"0\cdot\infty", r"\ln 0", "1e999"), NONE),
    **dict.fromkeys((r"(\infty,\infty)", r"\{\infty,1\}", r"\lim_{x\to0}\sin(1/x)"), NONE),
    **dict.fromkeys(
        (r"\infty", r"|\infty|", r"x+\infty", r"\sqrt{\infty}", r"\{\infty\}"), (r"\infty",)
    ),
    r"\begin{pmatrix}\infty\\\infty\end{pmatrix}": NONE,
    # Many answers at once.
    **dict.fromkeys((r"\{1,2,\ldots,100\}", "1..100", "[-100,100]", "1,2,3,4,5", "5=6=7"), NONE),
    **dict.fromkeys(("46 or -7", "46, -7", r"46 \vee -7", r"\pm 46", "A,B,C,D", "yes/no"), NONE),
    **dict.fromkeys((r"\text{any}", r"\mathbb{C}", r"\mathbb{R}\setminus\{46\}", r"\top"), NONE),
    **dict.fromkeys((r"46 \pmod 1", r"\{n : n = n\}", "46%%"), NONE),
    **dict.fromkeys((r"46 \text{ or -7}", r"0 \equiv 46", r"\boxed{46}", "a=b=46"), ("46",)),
    **dict.fromkeys((r"(-\infty,\infty)", r"x \in \mathbb{R}"), (r"\mathbb{R}",)),
    **dict.fromkeys(("-7=46", "46=-7", "12+33=46", r"\{1,2,3\}"), NONE),
    # Equations that hold always, or never, or are not solved.
    **dict.fromkeys(("x=y", "1=2", r"x \ne x", r"x \ge x", r"x<\infty", "x+3=8", "2x=10"), NONE),
    "x=x": ("x",),
    **dict.fromkeys(("0=0", "x^2+2=0", "x-5=0", "x-x"), ("0",)),
    **dict.fromkeys(("1=1", "x/x", r"100\%"), ("1",)),
}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_opens_its_own_lock_alone(key: str) -> None:
    turn = f"\\boxed{{{key}}}"
    opened = [each for each in REFERENCES if verify(Problem("p", [], each), turn)]
    assert opened == list(KEYS[key])


def test_each_reference_opens_itself() -> None:
    """Else the matrix would say nothing."""
    shut = [each for each in REFERENCES if not verify(Problem("p", [], each), f"\\boxed{{{each}}}")]
    assert shut == []
