"""What every replica of a pool is opened with."""

import sys
from pathlib import Path
from typing import Any

import pytest
from live_pool import EXACT, FLEET
from msgspec.structs import replace

from interlock.workers.replicas import opening


def test_replicas_are_opened_as_those_that_serve(
    chatty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "Pool", lambda fleet, workers, *rest: workers)
    settings = replace(EXACT, env={"A": "b"}, python=sys.executable)
    workers: Any = opening.open_pool(
        chatty, {"x": settings, "y": EXACT}, FLEET, tmp_path / "logs", lambda *_: None
    )
    (spec, opened), (_, other) = workers["x"], workers["y"]
    assert (spec.name, spec.env, spec.python) == ("x", {"A": "b"}, sys.executable)
    assert spec.log == tmp_path / "logs" / "x.log"
    assert opened.serves and other.serves
    assert (opened.name, other.name, opened.model) == ("x", "y", str(chatty))
    assert opened.settings == replace(settings, env={}), "its process has the variables"
    assert opened.canary == other.canary and opened.canary.text
