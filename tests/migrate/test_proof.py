"""What a device has to show, and what is made of one that does not."""

from pathlib import Path

import pytest
import silent_repeat
from msgspec.structs import replace

from interlock.errors import TrainingError, UserError
from interlock.migrate import bands, proof
from interlock.migrate.proof import prove
from interlock.mismatch import Mismatch
from interlock.records.metrics import StepMetrics, UpdateMetrics
from interlock.records.moves import Repeat
from interlock.records.trust import Result, Role
from interlock.rundir import RunDir, RunView

EXACT, OWN = silent_repeat.repeated("exact"), silent_repeat.repeated("own")


@pytest.fixture
def run(tmp_path: Path) -> RunView:
    """At stage 0 step 3, with nothing in its metrics."""
    made = RunDir.create(tmp_path / "run", {"stage": [{"kind": "grpo", "steps": 9}]}, {}, {})
    with made.checkpoint(0, 3, keep=1) as directory:
        (directory / "state.json").write_text("{}")
    made.close()
    return RunDir.read(made.path)


def asked(run: RunView, monkeypatch: pytest.MonkeyPatch, how: str, seconds: float) -> proof.Proof:
    monkeypatch.setattr(proof, "_MODULE", "silent_repeat")
    monkeypatch.setenv("REPEAT_AS", how)
    monkeypatch.setenv("PYTHONPATH", str(Path(silent_repeat.__file__).parent), prepend=":")
    return prove(run, Repeat(str(run.path), "cpu"), Role.TRAIN, False, seconds, lambda _: None)


def test_a_sound_device_is_let(run: RunView, monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(run, monkeypatch, "works always", 30)
    assert found.refused(False) == [] and found.trust == "cpu"
    results = {each.check: each.result for each in found.findings}
    passed = dict.fromkeys(("certificate", "updates", "canary"), Result.PASS)
    assert results == passed | {"recorded": Result.UNKNOWN}


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("hangs", "no answer within"),
        ("dies", "its process died: signal 6"),
        ("raises", "it raised out of memory"),
        ("babbles", "it sent what is no answer"),
    ],
)
def test_a_device_that_fails_is_refused_with_the_reason(
    run: RunView, monkeypatch: pytest.MonkeyPatch, quiet: None, how: str, why: str
) -> None:
    found = asked(run, monkeypatch, f"{how} target", 1.0 if how == "hangs" else 30)
    (line,) = found.refused(False)
    assert line.startswith("updates: 1 update on cpu in float32: ") and why in line


def test_a_cpu_that_fails_is_no_fault_of_the_device(
    run: RunView, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        TrainingError, match="1 update on the CPU in float64, for float32: it raised out of"
    ):
        asked(run, monkeypatch, "raises exact", 30)
    with pytest.raises(TrainingError, match=r"no answer within .*; raise --timeout"):
        asked(run, monkeypatch, "hangs exact", 1.0)


def test_a_damaged_run_is_the_users_to_mend(run: RunView, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="it is damaged"):
        asked(run, monkeypatch, "blames exact", 30)


def test_a_machine_without_memory_is_no_fault_of_the_device(
    run: RunView, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingError, match="1 update on cpu in float32: the process was killed"):
        asked(run, monkeypatch, "killed target", 30)


def test_limits_are_a_multiple_of_what_rounding_does() -> None:
    """16 in float32: own errors are 1e-6, so that 15e-6 passes and 17e-6 does not."""
    for off, wrong in ((14e-6, False), (16.5e-6, True)):
        found = bands.updates(EXACT, OWN, silent_repeat.repeated("target", off))
        over = {each.name: each.value > each.limit for each in found}
        del over["float32, step 4: k3 of the log-probabilities"]  # by 16^2: as near to it
        assert len(found) == 7 and set(over.values()) == {wrong}


def test_a_figure_that_is_right_by_luck_is_no_limit() -> None:
    """The loss of the CPU is exact, its tokens are off by 1e-6 and weigh 1."""
    lucky = replace(OWN, updates=[replace(OWN.updates[0], loss=0.5, grad_norm=2.0)])
    loss, norm = bands.update_limits(EXACT, lucky)
    assert loss == pytest.approx(16e-6) and norm == pytest.approx(16e-6)


def test_what_is_no_number_is_beyond_every_limit() -> None:
    broken = replace(OWN.updates[0], loss=float("nan"), logprobs=[float("nan"), -2.0])
    target = replace(OWN, side="target", updates=[broken], gradients={"": float("inf")}, moved=None)
    found = bands.updates(EXACT, OWN, target)
    failed = [each.name for each in found if not each.value <= each.limit]
    assert len(failed) == 6  # the gradient's norm alone is a number


def test_what_the_run_logged_is_a_doubt_and_no_reason() -> None:
    """Twice the limit, as both sides round; another loss than all that were computed is the old
    device's."""
    logged = UpdateMetrics(loss=0.5 + 30e-6, grad_norm=2.0, mismatch=Mismatch(2, 4e-12))
    target = replace(OWN, side="target", updates=[replace(OWN.updates[0], k3=4e-12)])
    line = StepMetrics(stage=0, step=4, update=logged)
    found = bands.recorded({4: line}, EXACT, OWN, target)
    assert [each.value <= each.limit for each in found] == [True, True, True]
    assert found[0].limit == pytest.approx(32e-6)
    # (sqrt(4e-12) + 2 * 16 * sqrt(rounding))^2, whose k3 is 1e-6 squared over 2
    assert found[2].limit == pytest.approx((2e-6 + 32 * 0.5**0.5 * 1e-6) ** 2, rel=1e-3)
    wrong = replace(line, update=replace(logged, loss=0.5 + 40e-6))
    assert bands.recorded({4: wrong}, EXACT, OWN, target)[0].value > found[0].limit
    assert bands.recorded({}, EXACT, OWN, target) == []
