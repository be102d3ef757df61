"""What no answer can have caused: never a zero, in no figure, and the run goes on."""

from fractions import Fraction
from hashlib import sha256
from math import isnan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ticking_generators import FakeGenerators, constant, group_of, open_stage

from interlock.config.reading import load_recipe
from interlock.errors import TrainingError
from interlock.recipes.evaluate import score
from interlock.recipes.train import train
from interlock.records.rl import Problem, Score, ScoredGroup, Verdict, VerdictStatus
from interlock.report import write_report
from interlock.rundir import RunDir

GONE = Verdict.failed(VerdictStatus.UNAVAILABLE, "the judge is down")

# A fifth of the answers is never judged, whatever is tried; which ones is a function of them.
PLANTED = """
from hashlib import sha256
from interlock.errors import Unavailable

def reward(problem, answer):
    if sha256(answer.encode()).digest()[0] < 51:
        raise Unavailable("the judge is down")
    return sum(map(ord, answer)) % 17 / 16
"""
SHORT = (
    "stage.steps=4",
    "stage.eval.every=2",
    "stage.task.retries=1",
    "stage.optimizer.schedule=constant",
)


def _planted(answer: str) -> bool:
    return sha256(answer.encode()).digest()[0] < 51


def _group(*verdicts: Verdict) -> ScoredGroup:
    group = group_of(Problem("p", [], ""), 0, "w0")
    return ScoredGroup(group, list(verdicts))


def test_a_score_is_of_what_counts() -> None:
    failed = Verdict.failed(VerdictStatus.TIMEOUT, "late")  # the answer's own doing: a zero
    groups = [_group(Verdict(1.0), GONE), _group(Verdict(0.5), failed), _group(GONE, GONE)]
    assert Score.of(groups) == Score(1 / 3, 0.5, 3)
    nothing = Score.of([_group(GONE, GONE)])
    assert nothing.completions == 0 and isnan(nothing.accuracy) and isnan(nothing.reward)


def test_where_nothing_could_be_judged_the_run_stops_and_says_how_to_go_on() -> None:
    groups = [group_of(Problem("p", [], ""), 0, "w0")] * 2
    lost: Any = SimpleNamespace(verify=lambda pairs: [GONE] * len(pairs))
    with pytest.raises(TrainingError, match=r"none of 4 answers .* the judge is down; .* --resume"):
        score(groups, lost)
    partly: Any = SimpleNamespace(verify=lambda pairs: [GONE] * 3 + [Verdict(1.0)])
    assert [each.counted for each in score(groups, partly)] == [[False, False], [False, True]]
    nobody: Any = SimpleNamespace(verify=lambda pairs: [])
    assert score([], nobody) == []


def test_zeros_and_what_is_left_out_are_told_apart(run: RunDir) -> None:
    stage = open_stage(run, FakeGenerators(constant(0)), steps=1, problems=1, cap=0)
    crashed = Verdict.failed(VerdictStatus.CRASHED, "signal 9")
    stage.note_not_judged(3, [_group(GONE, crashed), _group(GONE, Verdict(1.0))])
    assert [(event.kind, event.message) for event in run.events()] == [
        ("verifier_error", "step 3: 1 answers score 0: signal 9"),
        ("answers_discarded", "step 3: 2 answers are left out: the judge is down"),
    ]


def _train(recipe: Path, directory: Path, *settings: str, resume: bool = False) -> RunDir:
    (recipe.parent / "reward.py").write_text(PLANTED)
    train(load_recipe(recipe, [*SHORT, *settings]), directory, resume=resume)
    return RunDir.read(directory)


def test_planted_faults_are_no_zeros_and_in_no_figure(tiny_recipe: Path, tmp_path: Path) -> None:
    view = _train(tiny_recipe, tmp_path / "run")
    lost = 0
    for line in view.metrics():
        scored = view.ledger.read(0, line.step) if line.step else []
        judged = [
            (verdict, answer.text)
            for each in scored
            for verdict, answer in zip(each.verdicts, each.group.completions, strict=True)
        ]
        for verdict, text in judged:
            if _planted(text):
                assert verdict == GONE
            else:
                assert verdict == Verdict(sum(map(ord, text)) % 17 / 16)
        others = [Fraction(verdict.reward) for verdict, text in judged if not _planted(text)]
        if line.step:
            assert line.rollout.reward == float(sum(others) / len(others))
            assert line.rollout.discarded == len(judged) - len(others) == line.rollout.retried
            assert line.rollout.completions == 12 and line.rollout.verifier_errors == 0
            lost += len(judged) - len(others)
        held_out = view.ledger.read_evaluation(0, line.step)
        if held_out:
            rewards = [
                sum(map(ord, each.group.completions[0].text)) % 17 / 16
                for each in held_out
                if not _planted(each.group.completions[0].text)
            ]
            assert line.held_out_reward == pytest.approx(sum(rewards) / len(rewards), abs=1e-12)
            assert line.accuracy == sum(reward >= 1 for reward in rewards) / len(rewards)
    assert lost > 0
    kinds = [event.kind for event in view.events()]
    assert "answers_discarded" in kinds and "verifier_error" not in kinds
    assert "not judged" in write_report(tmp_path / "run").read_text()


def test_a_resumed_run_leaves_out_the_same_ones(tiny_recipe: Path, tmp_path: Path) -> None:
    whole = _train(tiny_recipe, tmp_path / "whole")
    _train(tiny_recipe, tmp_path / "parts", "stage.steps=2")
    parts = _train(tiny_recipe, tmp_path / "parts", "stage.steps=4", resume=True)
    for step in range(1, 5):
        assert parts.ledger.read(0, step) == whole.ledger.read(0, step)
    assert (tmp_path / "parts/weights/model.safetensors").read_bytes() == (
        tmp_path / "whole/weights/model.safetensors"
    ).read_bytes()
