"""Runs that are moved: to a sound device and back in their middle, and not to a defective one."""

import sys
from pathlib import Path

import msgspec
import pytest
from a_move import a_move
from certified import certify, simulated
from running import ENVIRONMENT, kill_during, start, weights
from stopping import train_until

from interlock.cli import main
from interlock.config.schema import Recipe
from interlock.errors import ConfigError, MoveRefused
from interlock.migrate import moving
from interlock.migrate.moving import MoveWish
from interlock.records.trust import Result, Trust
from interlock.rundir import RunDir


def quiet_tell(line: str) -> None:
    print(line, file=sys.stderr)


def test_to_a_simulated_accelerator_and_back_in_the_middle_of_a_run(
    recipe: Recipe,
    recipe_file: Path,
    stopped: Path,
    tmp_path: Path,
    certificates_here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The curve is that of the run that stayed. (The sound device computes by the CPU's operators:
    here even the weights are the same.)
    """
    monkeypatch.setitem(ENVIRONMENT, "INTERLOCK_CERTIFICATES", str(certificates_here))
    stayed = tmp_path / "stayed"
    train_until(recipe, stayed, 99)

    with pytest.raises(MoveRefused, match=r"certificate: there is no certificate for sim \("):
        moving.move(stopped, MoveWish("sim"), quiet_tell)
    assert RunDir.read(stopped).config["learner"]["device"] == "cpu"
    certify(simulated(), Trust.TRAIN)

    there = moving.move(stopped, MoveWish("sim"), quiet_tell)
    assert (there.step, there.trust, there.after.device) == (3, "train", "sim")
    assert {each.check: each.result for each in there.findings} == dict.fromkeys(
        ("certificate", "updates", "canary", "recorded"), Result.PASS
    )
    assert there.before.stack is not None and there.before.stack.kind == "cpu"
    assert there.after.stack is not None and there.after.stack.driver == "healthy"
    # By the recipe that names the CPU, as before.
    settings = ("stage.eval.every=0", "stage.eval.problems=2", "--resume")
    kill_during(start(recipe_file, stopped, *settings), stopped, 7, 0.0)
    assert RunDir.read(stopped).manifest.sessions[-1].learner == there.after.stack

    home = moving.back(stopped, MoveWish(), False, quiet_tell)
    assert (home.step, home.undoes, home.trust, home.after.device) == (6, 1, "cpu", "cpu")
    train_until(recipe, stopped, 99, resume=True)

    moved, whole = RunDir.read(stopped), RunDir.read(stayed)
    assert moved.status == "finished"
    for ours, theirs in zip(moved.metrics()[1:], whole.metrics()[1:], strict=True):
        assert ours.update.loss == pytest.approx(theirs.update.loss, abs=1e-6)
        assert ours.update.grad_norm == pytest.approx(theirs.update.grad_norm, rel=1e-4)
    assert weights(stopped) == weights(stayed)
    kinds = [event.kind for event in moved.events()]
    assert kinds.count("moved") == 2 and kinds.count("move_refused") == 1


@pytest.mark.parametrize(
    ("defect", "figure"),
    [("wrong-backward", "gradient of"), ("optimizer-drift", "how the weights moved")],
)
def test_a_defective_device_is_refused_with_what_is_wrong(
    stopped: Path, certificates_here: Path, defect: str, figure: str
) -> None:
    """Where no certificate would have told."""
    before = (stopped / "manifest.json").read_bytes()
    with pytest.raises(MoveRefused) as refused:
        moving.move(stopped, MoveWish(f"sim:{defect}", unqualified=True), quiet_tell)
    line = str(refused.value)
    assert f"stays where it is: sim:{defect}: updates: " in line and "\n" not in line
    assert f"worst: float32: {figure}" in line
    assert line.endswith(f"run: interlock qualify --device sim:{defect}")
    assert (stopped / "manifest.json").read_bytes() == before
    assert not (stopped / "moves").exists()
    last = RunDir.read(stopped).events()[-1]
    assert last.kind == "move_refused" and figure in last.message


def test_mistakes(stopped: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is on cpu already"):
        moving.move(stopped, MoveWish("cpu"), quiet_tell)
    with pytest.raises(ConfigError, match=r"learner\.dtype=bfloat16 is not for a move to change"):
        moving.move(stopped, MoveWish("sim", ["learner.dtype=bfloat16"]), quiet_tell)
    with pytest.raises(ConfigError, match=r"learner\.kernel = 'fast': choose one of"):
        moving.move(stopped, MoveWish("sim", ["learner.kernel=fast"]), quiet_tell)
    with pytest.raises(Exception, match="has no move to take back"):
        moving.back(stopped, MoveWish(), False, quiet_tell)
    assert msgspec.json.decode((stopped / "manifest.json").read_bytes())["moves"] == []


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--back", "learner.kernel=torch"], "learner.kernel=torch is of a device that the"),
        (["--bundle", "b.tar", "learner.kernel=torch"], "learner.kernel=torch is of a device"),
        (["--learner", ""], "argument --learner: '' names nothing"),
    ],
)
def test_nothing_that_is_given_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], line: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["migrate", str(tmp_path), *given])
    assert end.value.code == 2 and line in capsys.readouterr().err


@pytest.mark.parametrize(("trust", "more"), [("train", ""), ("unqualified", " --unqualified")])
def test_the_command_that_goes_on_is_one_that_does(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    trust: str,
    more: str,
) -> None:
    monkeypatch.setattr(moving, "move", lambda *_: a_move(trust=trust))
    with pytest.raises(SystemExit) as end:
        main(["migrate", str(tmp_path), "--learner", "sim"])
    assert end.value.code == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == f"to go on: interlock train {tmp_path} --resume{more}"


def test_what_is_not_there_is_called_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["migrate", str(tmp_path / "b.tar"), "--into", str(tmp_path / "run")])
    assert end.value.code == 2 and "there is no " in capsys.readouterr().err
