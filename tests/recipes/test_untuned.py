"""The benchmark of the recipe that nobody tuned: its figures by hand, and its 60-second form."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from byte_model import make_model, write_tokenizer

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def untuned(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("untuned")


def test_the_interval_by_hand(untuned: ModuleType) -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, 15 of 148, 0 of 20.
    for right, of, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
    ):
        assert untuned.interval(right / of, of) == pytest.approx((low, high), abs=5e-5)


def test_learned_is_that_the_intervals_are_apart(untuned: ModuleType) -> None:
    def learned(before: float, after: float) -> bool:
        ends = [untuned.Measured(earned, 0.0) for earned in (before, 0.5, after)]
        return untuned.Result("spell_backward", 256, *ends, 0.6, 5.0, []).learned

    # Of 256: 26 right have [7.0 %, 14.4 %], 53 [16.2 %, 26.1 %], 47 [14.1 %, 23.5 %].
    assert learned(26 / 256, 53 / 256)
    assert not learned(26 / 256, 47 / 256)
    assert not learned(53 / 256, 26 / 256)


def test_to_say_the_commonest_answer_always_is_told_apart(
    untuned: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of 256, 92 right have [30.3 %, 42.0 %].
    ends = [untuned.Measured(share, share) for share in (0.1, 0.2, 92 / 256)]
    rows = [untuned.Result("gcd", 256, *ends, commonest, 5.0, []) for commonest in (0.30, 0.31)]
    untuned.show(rows)
    told = [line.split(" | ")[4] for line in capsys.readouterr().out.splitlines()[2:]]
    assert told == ["yes", "yes, no more than the commonest answer earns"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_one_generator_of_a_model_that_knows_nothing(tmp_path: Path) -> None:
    """Weights at random never meet the form: nothing is learned, and the run says why."""
    write_tokenizer(tmp_path)
    model, told = make_model(tmp_path, max_position_embeddings=2048), tmp_path / "told.json"
    command = [sys.executable, str(BENCH / "untuned.py"), "--generators", "letter_counting"]
    command += ["--runs", str(tmp_path / "runs"), "--json", str(told), f"model.path={model}"]
    command += ["stage.0.worked=4", "stage.0.steps=5", "stage.1.steps=6", "stage.1.extra_groups=0"]
    command += ["stage.0.optimizer.lr=1e-12"]
    for stage in ("stage.0", "stage.1"):
        command += [f"{stage}.task.held_out=16", f"{stage}.eval.problems=16"]
        command += [f"{stage}.sampling.max_tokens=8"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=360)
    assert ran.returncode == 0, ran.stderr[-4000:]
    [row] = json.loads(told.read_text())["results"]
    nothing = {"earned": 0, "right": 0}
    assert [row[when] for when in ("before", "between", "after")] == [nothing] * 3
    assert row["learned"] is False
    assert any("answers are cut off at max_tokens = 8" in line for line in row["said"])
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert again.stdout.splitlines()[-1] == ran.stdout.splitlines()[-1]  # it is not run again
