import json
import os
from pathlib import Path

import pytest

from interlock.config.schema import TaskSettings
from interlock.records.rl import Problem
from interlock.tasks import open_task
from interlock.tasks.math_verifier import open_verifier

GSM8K = Path(os.environ.get("INTERLOCK_GSM8K", "../shared/data/gsm8k"))
verify = open_verifier(TaskSettings("gsm8k", {"path": "unused"}))
verify_unmarked = open_verifier(TaskSettings("jsonl", {"path": "unused"}))


def _problem(answer: str) -> Problem:
    return Problem(id="p", messages=[], answer=answer)


@pytest.mark.parametrize(
    ("reference", "text", "reward"),
    [
        ("18", "The answer is 18.", 1.0),
        ("18", "The answer is 19.", 0.0),
        ("18", "", 0.0),
        ("18", "It costs $18.00", 1.0),
        ("70000", "a profit of $70,000.", 1.0),
        ("2,125", "2125", 1.0),
        ("-7", "so it is -7", 1.0),
        ("-7", "so it is 7", 0.0),
        # What is boxed beats what is marked, which beats the last number.
        ("18", r"\boxed{18} after 3 tries", 1.0),
        ("18", "#### 18\n(took 3 tries)", 1.0),
        ("18", "\\boxed{17}\n#### 18", 0.0),
        ("18", "#### 18 dollars.", 1.0),
        ("18", r"\boxed{18\ \text{dollars}}", 1.0),
        ("18", r"\boxed{18 pi}", 0.0),
        # Naming several answers earns nothing; naming one twice is fine.
        ("18", r"\boxed{17} \boxed{18}", 0.0),
        ("18", r"\boxed{18} \boxed{17}", 0.0),
        ("18", r"\boxed{18} so \boxed{18.0}", 1.0),
        ("18", "#### 17\n#### 18", 0.0),
        ("18", r"\boxed{17, 18}", 0.0),
        ("18", r"\boxed{17 or 18}", 0.0),
        ("18", r"\boxed{\{17, 18\}}", 0.0),
        ("18", r"\boxed{}", 0.0),
        # Only what follows the thinking counts.
        ("18", r"<think>\boxed{17}</think>\boxed{18}", 1.0),
        ("18", r"<think>\boxed{18}</think>I do not know", 0.0),
        (r"\frac{1}{2}", r"\boxed{0.5}", 1.0),
        (r"\frac{1}{2}", r"\boxed{1/2}", 1.0),
        ("x^2+1", r"\boxed{1+x^2}", 1.0),
        ("x^2+1", r"\boxed{x^2-1}", 0.0),
        ("(1,2)", r"\boxed{(2,1)}", 0.0),
        ("Paris", r"\boxed{\text{paris}}", 1.0),
        ("Paris", r"\boxed{Pairs}", 0.0),  # the same product of letters
        (r"\frac{", "#### \\frac{", 1.0),  # no formula: compared as text
        (r"\frac{", "#### \\sqrt{", 0.0),
        ("B", r"\boxed{B}", 1.0),
        ("B", r"\boxed{A}", 0.0),
        ("18", "\x00 \ud800 18", 1.0),
        ("18", "\\boxed{\ud800}", 0.0),
    ],
)
def test_verdicts(reference: str, text: str, reward: float) -> None:
    assert verify(_problem(reference), text) == reward


def test_the_mark_counts_only_where_the_task_has_one() -> None:
    assert verify(_problem("18"), "#### 18\n3 tries") == 1.0
    assert verify_unmarked(_problem("18"), "#### 18\n3 tries") == 0.0


@pytest.mark.skipif(not GSM8K.is_dir(), reason="no GSM8K data; set INTERLOCK_GSM8K")
def test_gsm8k_solutions_score_one_and_wrong_numbers_zero() -> None:
    solutions = {}
    for line in (GSM8K / "test.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        solutions[row["question"]] = row["answer"]
    source = open_task(TaskSettings("gsm8k", {"path": str(GSM8K)}, held_out=200))
    for problem in source.held_out(200):
        solution = solutions[problem.messages[-1]["content"]]
        assert verify(problem, solution) == 1.0
        assert verify(problem, solution.replace("####", "So it is ")) == 1.0
        assert verify(problem, f"{solution}7") == 0.0
