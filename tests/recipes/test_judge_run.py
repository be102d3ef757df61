"""A GRPO run whose answers a model scores: a service on loopback, which fails on some of them."""

import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from rude_service import RudeService, completion, grade

from interlock import thinking
from interlock.config.reading import load_recipe
from interlock.errors import ConfigError, TaskError
from interlock.recipes.train import train
from interlock.records.rl import Verdict, VerdictStatus
from interlock.rundir import RunDir
from interlock.tasks.judge.questions import broken_marks


def _digest(text: str) -> int:
    return sha256(text.encode()).digest()[0]


def _answer(request: Any) -> None:
    """Scores by the answer's bytes; is not there for a fifth of them, and babbles over others."""
    user = request.body["messages"][1]["content"]
    told = re.search(r"<answer-(\w+)>\n(.*)\n</answer-\1>", user, re.DOTALL)
    assert told
    kind = _digest(told[2]) if "What is 1 + 1?" not in user else 255
    if kind < 51:
        request.reply(503, b"{}")
    elif kind < 102:
        request.reply(200, completion("Ten out of ten!"))
    else:
        request.reply(200, completion(grade(kind % 11)))


@pytest.fixture
def judged(tiny_recipe: Path) -> Path:
    text = tiny_recipe.read_text()
    path = tiny_recipe.with_name("judged.toml")
    path.write_text(re.sub(r', verifier = "[^"]*"', "", text))
    return path


def _settings(service: RudeService) -> list[str]:
    judge = {"url": service.url, "model": "judge", "attempts": 1, "price_in": 1.0}
    told = [f"stage.task.judge.{name}={value}" for name, value in judge.items()]
    return ["stage.steps=2", "stage.eval.every=0", *told]


def test_a_model_scores_a_run(judged: Path, tmp_path: Path) -> None:
    with RudeService(_answer) as service:
        train(load_recipe(judged, _settings(service)), tmp_path / "run")
        asked = len(service.asked)
    view, statuses, counted = RunDir.read(tmp_path / "run"), set(), 0.0
    for line in view.metrics()[1:]:
        counted += line.rollout.judge["requests"]
        judge = line.rollout.judge
        assert (
            judge["money"] == pytest.approx(judge["prompt_tokens"] / 1e6) and judge["seconds"] > 0
        )
        rewards = []
        for scored in view.ledger.read(0, line.step):
            for verdict, answer in zip(scored.verdicts, scored.group.completions, strict=True):
                kind = _kind(answer.text)
                statuses.add(verdict.status)
                if kind < 51:
                    assert verdict.status is VerdictStatus.UNAVAILABLE
                elif kind < 102:
                    assert verdict.status is VerdictStatus.ERROR
                    rewards.append(0.0)
                else:
                    assert verdict == Verdict(kind % 11 / 10, kind % 11 == 10)
                    rewards.append(verdict.reward)
        assert line.rollout.reward == pytest.approx(sum(rewards) / len(rewards))
    assert len(statuses) == 3
    # All but the evaluation after the last step: five answers, of which some are asked for twice.
    assert 5 <= asked - counted <= 12


def _kind(text: str) -> int:
    return _digest(broken_marks(thinking.after(text).strip()))


def test_a_judge_is_tried_before_anything_is_written(judged: Path, tmp_path: Path) -> None:
    service = RudeService(lambda request: request.reply(401, b"who?"))
    with service, pytest.raises(TaskError, match="HTTP 401: who"):
        train(load_recipe(judged, _settings(service)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_who_score_are_refused(tiny_recipe: Path) -> None:
    with RudeService(_answer) as service, pytest.raises(ConfigError, match="remove one"):
        load_recipe(tiny_recipe, _settings(service))
