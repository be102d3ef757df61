"""Real processes that pass, fail, raise, die and hang, and what the runner makes of them."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from remains import gone

from interlock.chips import certificates, vendors
from interlock.errors import ConfigError
from interlock.models.catalogue import catalogue, largest, most
from interlock.processes import deadline
from interlock.processes.child import Child
from interlock.qualify import probe, runner
from interlock.qualify.check import Check, Level
from interlock.records.trust import Certificate, Finding, Measure, Result, Role, Sizes, Trust

BOTH = frozenset(Role)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Check]]:
    """Checks of tests/support/planted_checks.py under ids of the table."""
    support = Path(__file__).parents[1] / "support"
    monkeypatch.setenv("PYTHONPATH", str(support), prepend=os.pathsep)

    def make(deadline: float = 60.0, **functions: str) -> list[Check]:
        return [
            Check(
                id=name.replace("_", "-"),
                function=f"planted_checks:{function}",
                classes=(1,),
                proves="",
                deadline_s=dict.fromkeys(Level, deadline),
                remedy="",
            )
            for name, function in functions.items()
        ]

    return make


def by_check(certificate: Certificate) -> dict[str, Finding]:
    return {finding.check: finding for finding in certificate.findings}


def test_what_a_check_shows_is_in_the_certificate(planted: Callable[..., list[Check]]) -> None:
    seen: list[str] = []

    class Watch(runner.Watch):
        def begins(self, check: Check) -> None:
            seen.append(f"begins {check.id}")

        def ended(self, finding: Finding) -> None:
            seen.append(f"ended {finding.check}")

    checks = planted(forward="fails", sampler="passes", memory="cannot_run")
    found = runner.qualify("cpu", Level.QUICK, checks=checks, seed=3, watch=Watch())
    forward, sampler, memory = found.findings
    assert forward.result is Result.FAIL
    assert forward.summary == "1 of 2 are wrong, worst mm"
    assert forward.measures[0] == Measure("mm", 0.5, 0.1, 0.01)
    assert forward.figures == {"cases": 2, "cases beyond their limit": 1}
    assert sampler.result is Result.PASS
    assert sampler.figures == {"level": "quick", "seed": 3}
    assert memory.result is Result.UNKNOWN and "no compiler" in memory.summary
    assert (found.device, found.level, found.world_size, found.trust) == (
        "cpu",
        "quick",
        2,
        "reject",
    )
    assert found.stack.kind == "cpu" and found.stack.torch and found.stack.chip
    certificates.verify(found)
    assert seen[:3] == ["begins forward", "ended forward", "begins sampler"]


def test_the_models_whose_sizes_were_tried(planted: Callable[..., list[Check]]) -> None:
    mine = Sizes(vocab=300_000, context=8192, hidden=256)
    for function, model, names in (
        ("passes", None, [each.name for each in catalogue()]),
        ("passes", ("mine", mine), [*(each.name for each in catalogue()), "mine"]),
        ("fails", ("mine", mine), []),
    ):
        found = runner.qualify("cpu", Level.QUICK, checks=planted(forward=function), model=model)
        assert found.models == names
        assert found.tried == (largest([most(), *([mine] if model else [])]) if names else Sizes())


def test_an_exception_and_a_death_are_findings(planted: Callable[..., list[Check]]) -> None:
    found = runner.qualify("cpu", checks=planted(forward="raises", memory="dies"))
    forward, memory = found.findings
    assert forward.result is memory.result is Result.FAIL
    assert "507035" in forward.summary and "second line" not in forward.summary
    assert str(forward.figures["fault"]) == "507035"
    assert "planted_checks" in str(forward.figures["last words"])
    assert "signal 11" in memory.summary
    assert "about to die" in str(memory.figures["last words"])
    assert memory.figures["a new process can use the device"] == "yes"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Child]:
    """The processes that the runner has started by itself."""
    children: list[Child] = []

    def start(*args: Any, **kwargs: Any) -> Child:
        children.append(Child(*args, **kwargs))
        return children[-1]

    monkeypatch.setattr(runner, "Child", start)
    return children


def test_one_process_is_started_for_all_checks_and_one_after_each_death(
    planted: Callable[..., list[Check]], started: list[Child]
) -> None:
    passing = planted(forward="passes", backward="prints", memory="in_threads")
    found = runner.qualify("cpu", checks=passing)
    assert [finding.result for finding in found.findings] == ["pass"] * 3
    assert len(started) == 1

    checks = planted(forward="prints", memory="exits", sampler="dies", random="prints")
    found = runner.qualify("cpu", checks=checks)
    assert [finding.result for finding in found.findings] == ["pass", "fail", "fail", "pass"]
    _, exited, died, _ = found.findings
    assert "its process died: exit code 7: about to exit" in exited.summary
    assert exited.figures["last words"] == "about to exit\n"
    assert "its process died: signal 11" in died.summary
    assert "about to exit" not in str(died.figures["last words"])
    assert len(started) == 1 + 3
    assert gone(*(child.pid for child in started))


def test_checks_have_the_users_environment_and_their_own_plugins(
    planted: Callable[..., list[Check]],
    started: list[Child],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "planted_plugin.py").write_text("import os\npid = os.getpid()\nload = int\n")
    about = tmp_path / "planted_plugin-1.dist-info"
    about.mkdir()
    about.joinpath("METADATA").write_text("Name: planted_plugin\nVersion: 1\n")
    about.joinpath("entry_points.txt").write_text("[torch.backends]\nx = planted_plugin:load\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    strict_cpu = msgspec.structs.replace(vendors.of("cpu"), strict_env={"PLANTED_STRICT": "1"})
    monkeypatch.setattr(vendors, "of", lambda kind: strict_cpu)
    plain, strict, again = planted(
        forward="surroundings", training_operators="surroundings", memory="surroundings"
    )
    for user in ("unset", "0"):
        started.clear()
        monkeypatch.delenv(autoload := "TORCH_DEVICE_BACKEND_AUTOLOAD", raising=False)
        if user != "unset":
            monkeypatch.setenv(autoload, user)
        checks = [plain, replace(strict, strict=True), again]
        found = runner.qualify("cpu", checks=checks).findings
        assert [finding.figures["strict"] for finding in found] == ["", "1", ""]
        assert {finding.figures["autoload"] for finding in found} == {user}
        plugin = "" if user == "0" else "ours"
        assert {finding.figures["plugin"] for finding in found} == {plugin}
        assert len(started) == 2


@pytest.mark.parametrize(("fit", "variable"), [(1, "1"), (2, "")])
def test_checks_take_the_threads_that_others_leave(
    fit: int, variable: str, planted: Callable[..., list[Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(runner.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(runner.threads, "now", lambda place: fit)
    found = runner.qualify("cpu", checks=planted(forward="surroundings"))
    assert found.findings[0].figures["threads"] == variable


@pytest.mark.usefixtures("quiet")
def test_a_hang_ends_what_generation_needs(planted: Callable[..., list[Check]]) -> None:
    checks = planted(60.0, forward="passes") + planted(1.0, sampler="hangs")
    found = runner.qualify("cpu", checks=checks + planted(60.0, memory="passes"))
    results = [finding.result for finding in found.findings]
    assert results == [Result.PASS, Result.FAIL, Result.UNKNOWN]
    assert "no answer within 1 s" in found.findings[1].summary
    assert found.findings[2].summary == "not tried after sampler hung"
    assert found.trust is Trust.REJECT


@pytest.mark.parametrize(
    ("waited", "results", "trust"),
    [
        (0.2, ["pass", "fail", "unknown"], Trust.REJECT),
        (0.5, ["pass", "unknown", "unknown"], Trust.UNKNOWN),
        (9.0, ["pass", "unknown", "unknown"], Trust.UNKNOWN),
    ],
)
def test_a_deadline_on_a_busy_machine_is_no_hang(
    waited: float,
    results: list[str],
    trust: Trust,
    planted: Callable[..., list[Check]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Delay:
        seconds = waited

        def __init__(self, pids: list[int]) -> None: ...

    monkeypatch.setattr(deadline, "RunDelay", Delay)
    checks = planted(60.0, forward="passes") + planted(1.0, sampler="hangs")
    found = runner.qualify("cpu", checks=checks + planted(60.0, memory="passes"))
    assert [finding.result for finding in found.findings] == results
    _, sampler, memory = found.findings
    busy = "unknown" in results[1]
    assert ("the device hangs" in sampler.summary) != busy
    assert ("the machine is too busy" in sampler.summary) == busy
    why = "met its deadline on a busy machine" if busy else "hung"
    assert memory.summary == f"not tried after sampler {why}"
    assert found.trust is trust


def test_fail_fast_stops_once_the_device_is_rejected(
    planted: Callable[..., list[Check]],
) -> None:
    checks = planted(backward="fails", forward="fails", memory="passes")
    found = runner.qualify("cpu", checks=checks, fail_fast=True)
    assert [finding.result for finding in found.findings] == ["fail", "fail", "unknown"]
    assert found.findings[2].summary == "not tried after forward failed"
    assert found.trust is Trust.REJECT


@pytest.mark.usefixtures("quiet")
def test_a_hang_in_training_leaves_the_rest(planted: Callable[..., list[Check]]) -> None:
    checks = planted(1.0, collectives="hangs") + planted(60.0, memory="passes")
    results = [finding.result for finding in runner.qualify("cpu", checks=checks).findings]
    assert results == [Result.FAIL, Result.PASS]


def test_a_device_that_is_not_there_is_the_users_mistake() -> None:
    with pytest.raises(ConfigError, match="warp"):
        runner.qualify("warp:7", checks=[])


def test_a_device_that_does_not_say_what_it_is_is_rejected(
    planted: Callable[..., list[Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_OPENING_S", 0.0)
    found = runner.qualify("cpu", checks=planted(versions="passes", forward="passes"))
    assert [(f.check, f.result) for f in found.findings] == [
        ("versions", "fail"),
        ("forward", "unknown"),
    ]
    assert "no answer within 0 s" in found.reasons[0]
    assert found.trust is Trust.REJECT


def test_a_device_that_can_no_longer_be_opened_is_a_finding() -> None:
    asked = probe.ProbeRequest("warp:7", Level.QUICK, function="planted_checks:passes")
    answer = probe._answer(asked)
    assert isinstance(answer, probe.Raised) and "'warp:7' cannot be used" in answer.error
    first = probe._answer(msgspec.structs.replace(asked, function=""))
    assert isinstance(first, probe.NotRun)


def test_an_unknown_check_is_named_with_the_others() -> None:
    with pytest.raises(ConfigError, match=r"'fast'.*forward"):
        runner.chosen(["forward", "fast"])
    assert [check.id for check in runner.chosen(["soak", "forward"])] == ["forward", "soak"]
