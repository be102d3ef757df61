"""No chip takes part without a certificate: the learner's, the generator's, the workers'.

On the simulated device, whose processes end with each test.
"""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from certified import certify, simulated
from running import DEADLINE, ENVIRONMENT

from interlock.records.trust import Sizes, Stack, Trust
from interlock.rundir import RunDir

SHORT = ("stage.steps=2", "stage.eval.every=0", "checkpoint_every=1")
INLINE = "generator.device=sim"
RUN = "run: interlock qualify --device sim"


@pytest.fixture
def filing_cabinet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "certificates"
    monkeypatch.setitem(ENVIRONMENT, "INTERLOCK_CERTIFICATES", str(path))
    monkeypatch.setenv("INTERLOCK_CERTIFICATES", str(path))
    return path


@pytest.fixture(scope="module")
def healthy() -> Stack:
    """The stack of the simulated device here."""
    return simulated()


def train(recipe: Path, run: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "interlock.cli", "train", str(recipe), "--run", str(run)]
    return subprocess.run(
        [*command, *SHORT, *more], env=ENVIRONMENT, capture_output=True, text=True, timeout=DEADLINE
    )


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_a_device_of_the_learners_process(
    tiny_recipe: Path, tmp_path: Path, filing_cabinet: Path
) -> None:
    """Refused before anything is written; used, and recorded, when told to."""
    run = tmp_path / "run"
    line = complaint(train(tiny_recipe, run, INLINE))
    assert line.startswith("interlock: sim may not generate: there is no certificate for sim (")
    assert line.endswith(f"; {RUN}") and not run.exists()

    done = train(tiny_recipe, run, INLINE, "--unqualified")
    assert done.returncode == 0, done.stderr
    view = RunDir.read(run)
    assert view.config["unqualified"] is True
    (event,) = [event for event in view.events() if event.kind == "unqualified"]
    assert event.facts["device"] == "sim" and event.facts["reason"].startswith(
        "there is no certificate for "
    )
    assert event.message.startswith("sim is used unqualified to generate: there is no ")
    (facts,) = view.metrics()[-1].workers.values()
    assert facts.trust == "unqualified"
    assert "no certificate" in (run / "report.html").read_text()
    view.check_same_config(view.config | {"unqualified": False})  # a resumed run may change it


def test_a_model_larger_than_what_was_tried_is_said(
    tiny_recipe: Path, tmp_path: Path, filing_cabinet: Path, healthy: Stack
) -> None:
    enough = Sizes(*[1 << 20] * len(Sizes.__struct_fields__))
    for tried, told in ((enough, 0), (msgspec.structs.replace(enough, hidden=3), 1)):
        certify(healthy, Trust.TRAIN, tried)
        run = tmp_path / f"run-{told}"
        done = train(tiny_recipe, run, INLINE)
        assert done.returncode == 0, done.stderr
        events = [each for each in RunDir.read(run).events() if each.kind == "sizes_untried"]
        assert len(events) == told
    assert events[0].message.startswith("the certificate of sim was made at smaller sizes (hidden ")


def test_a_worker_without_a_certificate_stops_the_run(
    tiny_recipe: Path, tmp_path: Path, filing_cabinet: Path, healthy: Stack
) -> None:
    """Another, which needs none, may have trained a while by then; this one gave nothing.

    Where it had not, the mistake leaves no run behind.
    """
    run = tmp_path / "run"
    recipe = tmp_path / "two.toml"
    good = '[[generator]]\nname = "good"\n'
    recipe.write_text(tiny_recipe.read_text().replace("[[generator]]\n", f"{good}[[generator]]\n"))
    fleet = ("fleet.kind=local", "generator.1.device=sim", "generator.1.name=sim")
    line = complaint(train(recipe, run, *fleet, "stage.steps=10000"))
    assert line.startswith("interlock: sim may not generate on sim: there is no certificate for ")
    assert line.endswith(f"; {RUN}")
    if run.exists():
        view = RunDir.read(run)
        steps = view.metrics()
        assert view.status == "failed" and steps
        assert not any(logged.workers["sim"].groups for logged in steps if logged.workers)

    certify(healthy, Trust.TRAIN)
    done = train(recipe, tmp_path / "second", *fleet)
    assert done.returncode == 0, done.stderr
    workers = RunDir.read(tmp_path / "second").metrics()[-1].workers
    assert {name: facts.trust for name, facts in workers.items()} == {
        "good": "cpu",
        "sim": "train",
    }
