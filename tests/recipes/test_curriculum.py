"""The problems of bench/curriculum.py, by an oracle that reads them, and its shortest form."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCH)
    return pytest.importorskip("curriculum")


def solved(question: str) -> tuple[int, int]:
    """What the story comes to, and how many steps it has."""
    story, _, _ = question.partition(" How many")
    first, *rest = re.findall(r"[^.]+\.", story)
    have = int(re.search(r"\d+", first)[0])  # type: ignore[index]
    for sentence in rest:
        (number,) = map(int, re.findall(r"\d+", sentence))
        if "more" in sentence:
            have += number
        elif "lost" in sentence:
            have -= number
        elif "times" in sentence:
            have *= number
        else:
            assert have % number == 0
            have //= number
    return have, len(rest)


def test_word_problems_have_the_answers_that_they_tell(bench: Any) -> None:
    rng = Random(3)
    problems = [bench.word_problem(rng) for _ in range(500)]
    read = [solved(problem["question"]) for problem in problems]
    assert [str(have) for have, _ in read] == [problem["answer"] for problem in problems]
    assert min(have for have, _ in read) > 0
    assert {steps for _, steps in read} == {1, 2, 3, 4, 5}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_minute_of_it_goes_on_where_it_stopped(smollm2: Path, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    command = [sys.executable, str(BENCH / "curriculum.py"), "--brief", "--arms", "none", "labels"]
    command += ["--runs", str(tmp_path / "runs"), "--json", str(told)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for _ in range(2):
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
        assert ran.returncode == 0, ran.stderr[-4000:]
    assert "problems, " not in ran.stderr  # nothing was labelled again
    found = json.loads(told.read_text())
    assert found["labels"]["problems"] == 24 and sum(found["labels"]["rates"].values()) == 24
    none, labels = found["arms"]
    assert none["pools"] is None and labels["pools"]["problems"] == 16
    assert none["groups"] == labels["groups"] == 4 and len(labels["teach"]) == 2
