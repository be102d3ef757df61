"""recipes/bad-chip.toml on a tiny model: its chip is found out, stays out, and the run finishes."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from running import ENVIRONMENT, start

from interlock.recipes import shipped
from interlock.rundir import RunDir

RECIPE = Path(shipped.__file__).parent / "bad-chip.toml"
# The logits of random weights are almost flat, and every difference is that much smaller.
TINY = ["guard.warn=1e-13", "guard.quarantine=1e-12", "fleet.backoff_s=0.1"]
SHORT = ["stage.problems_per_step=2", "stage.completions=2", "stage.sampling.max_tokens=6"]


def run(tiny_model: Path, directory: Path, moment: str, *more: str) -> Any:
    """The good worker starts when the words `moment` stand in the events: it would be too fast."""
    python = directory.with_name("late-python")
    events = directory / "events.jsonl"
    python.write_text(
        f'#!/bin/sh\nuntil grep -q "{moment}" "{events}"; do sleep 0.1; done\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    settings = [f"model.path={tiny_model}", *TINY, *SHORT, "stage.steps=3", "stage.eval.problems=1"]
    settings += [f"generator.0.python={python}", "fleet.start_s=1200", *more]
    process = start(RECIPE, directory, *settings)
    _, errors = process.communicate(timeout=1000)  # the real checks take minutes on a busy machine
    # So small a model may find no right answer in three steps: 3 says that it learned nothing.
    assert process.returncode in (0, 3), errors.decode()
    return RunDir.read(directory)


def told(view: Any, worker: str) -> list[tuple[str, str]]:
    """Kind and message of every event of a worker."""
    found = [event for event in view.events() if event.worker == worker]
    return [(event.kind, event.message) for event in found]


def check_it_was_kept_out(view: Any) -> None:
    assert view.status == "finished"
    last = view.metrics()[-1].workers
    assert (last["bad"].state, last["bad"].trust) == ("quarantined", "unqualified")
    assert last["good"].trust == "cpu"
    makers = {scored.group.worker for step in (1, 2, 3) for scored in view.ledger.read(0, step)}
    assert makers == {"good"}


def test_it_is_quarantined_and_the_run_finishes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "INTERLOCK_CERTIFICATES", str(tmp_path / "certificates"))
    view = run(tiny_model, tmp_path / "run", "is quarantined", "fleet.requalify=0")
    check_it_was_kept_out(view)
    (_, why), (_, up), (kind, message) = told(view, "bad")
    assert why.startswith("bad generates unqualified on sim:matmul-bf16: there is no certificate")
    assert up.startswith("bad is up: torch ") and up.endswith(" on sim:matmul-bf16, float32")
    assert kind == "worker_quarantined" and "against the learner on the canary" in message
    run_again = "run: interlock qualify --device sim:matmul-bf16 --only engine-parity"
    assert message.endswith(run_again)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_is_qualified_and_stays_out_for_what_was_found(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the real checks, in their smallest form."""
    cabinet = tmp_path / "certificates"
    monkeypatch.setitem(ENVIRONMENT, "INTERLOCK_CERTIFICATES", str(cabinet))
    view = run(tiny_model, tmp_path / "run", "stays in quarantine", "fleet.qualify_s=900")
    check_it_was_kept_out(view)
    kinds, messages = zip(*told(view, "bad"), strict=True)
    assert kinds[-3:] == ("worker_quarantined", "worker_qualifying", "worker_quarantined")
    assert re.match(r"bad stays in quarantine: k3 .*; failed [^:]*forward.*: ", messages[-1])
    (filed,) = cabinet.iterdir()
    assert '"trust": "reject"' in filed.read_text()
