"""Sections that are planted: what a preflight makes of their ends, and when it runs them again."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from interlock.errors import ConfigError, RunError
from interlock.preflight import folder, runner, sections
from interlock.preflight.folder import Identity, SectionRecord, Status
from interlock.preflight.sections import Job, PreflightSection, PreflightSetting, SectionResult
from interlock.records.trust import Stack

SETTING = PreflightSetting("sim", Path("/nowhere/model"), given=False)
IDENTITY = Identity(Stack("sim"), {"sources": "a"})


def planted(name: str, program: str, **more: object) -> PreflightSection:
    """A section that runs `program` and finds what is in the file "found"."""
    command = [sys.executable, "-S", "-c", program]
    job = Job(command, ("found",), **more)  # type: ignore[arg-type]
    return PreflightSection(
        name,
        "",
        1,
        lambda setting, seconds: job,
        lambda where: SectionResult((where / "found").read_text(), {"figure": 1.0}),
        least_s=0.1,
    )


def says(text: str) -> str:
    return f"open('found', 'w').write({text!r}); print('a word')"


def run(
    tmp_path: Path, *given: PreflightSection, minutes: float = 5.0, identity: Identity = IDENTITY
) -> list[tuple[SectionRecord, bool]]:
    ended: list[tuple[SectionRecord, bool]] = []
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    runner.run(SETTING, identity, given, minutes, out, lambda r, before: ended.append((r, before)))
    return ended


def test_no_end_of_a_section_stops_the_others(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        planted("hangs", "import time; time.sleep(600)"),
        planted("crashes", "import os; os.abort()"),
        planted("raises", "raise ValueError('too\\x1b hot')"),
        planted("finds", says("a bad chip") + "; raise SystemExit(1)"),
        planted("says-nothing", "pass"),
        replace(planted("cannot", ""), job=lambda setting, seconds: "no checkout"),
        planted("works", says("all is well")),
        minutes=0.2,
    )
    found = {record.name: record for record, _ in ended}
    assert [str(record.status) for record in found.values()] == [
        *(["failed"] * 5),
        "not run",
        "done",
    ]
    assert found["hangs"].headline.startswith("killed: not at its end after 2 s")
    assert found["crashes"].headline.startswith("signal 6")
    assert found["raises"].headline == "exit code 1: ValueError: too␛ hot"
    assert found["finds"].headline == "a bad chip"
    assert found["says-nothing"].headline.startswith("it left no results")
    assert (tmp_path / "out/works/found").read_text() == "all is well"
    assert "a word" in (tmp_path / "out/works/log").read_text()
    kept = json.loads((tmp_path / "out/preflight.json").read_text())
    assert [each["name"] for each in kept["sections"]] == list(found)
    assert "| works | done |" in (tmp_path / "out/README.md").read_text()


def test_damaged_results_do_not_stop_the_others(tmp_path: Path) -> None:
    program = "open('parity.json', 'w').write('null')"
    parity = replace(sections.SECTIONS["parity"], job=planted("", program).job)
    ended = run(tmp_path, parity, planted("works", says("all is well")))
    assert [str(record.status) for record, _ in ended] == ["failed", "done"]
    assert ended[0][0].headline.startswith("it left no results")


def test_a_difference_that_is_not_finite_is_not_told_as_zero(tmp_path: Path) -> None:
    apart = [{"mismatch": {"k3": k3}} for k3 in (1e-3, None)]
    found = {"verdict": "different", "headline": "", "differences": apart}
    (tmp_path / "parity.json").write_text(json.dumps(found))
    assert sections.SECTIONS["parity"].told(tmp_path).figures["largest k3"] == "not finite"


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    good, bad = planted("good", says("well")), planted("bad", "raise SystemExit(1)")
    assert [before for _, before in run(tmp_path, good, bad)] == [False, False]
    assert [before for _, before in run(tmp_path, good, bad)] == [True, False]
    other = Identity(Stack("sim", driver="2"), {"sources": "a"})
    assert [before for _, before in run(tmp_path, good, identity=other)] == [False]
    # One that was not asked for stays in the folder.
    kept = json.loads((tmp_path / "out/preflight.json").read_text())["sections"]
    assert [each["name"] for each in kept] == ["bad", "good"]


def test_what_was_shortened_is_done_again_once_there_is_time(tmp_path: Path) -> None:
    short = planted("s", says("well"), shortened="quick")
    assert run(tmp_path, short)[0][1] is False
    assert run(tmp_path, short)[0][1] is True
    assert run(tmp_path, planted("s", says("well")))[0][1] is False


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    ((record, _),) = run(tmp_path, replace(planted("long", says("")), least_s=45), minutes=0.5)
    assert record.status is Status.NOT_RUN
    assert record.headline == "30 s are left for it, it takes at least 45"


def test_a_killed_one_goes_on_after_what_was_done(tmp_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_runner import planted, run, says
slow = planted("b", "import time; time.sleep(600)")
run(Path({str(tmp_path)!r}), planted("a", says("well")), slow)
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    kept = tmp_path / "out/preflight.json"
    deadline = time.monotonic() + 120
    while not (kept.exists() and '"done"' in kept.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    ended = run(tmp_path, planted("a", says("well")), planted("b", says("too")))
    assert [(record.status, before) for record, before in ended] == [
        (Status.DONE, True),
        (Status.DONE, False),
    ]


def test_no_path_of_the_machine_is_kept(tmp_path: Path) -> None:
    print_paths = "import os, sys; print(os.getcwd(), sys.prefix, os.path.expanduser('~'))"
    run(tmp_path, planted("s", f"{print_paths}; open('found', 'w').write(os.getcwd())"))
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            text = path.read_text()
            for private in (sys.prefix, str(Path.home()) + "/", "/tmp/"):
                assert private not in text, path


def test_another_devices_folder_is_refused(tmp_path: Path) -> None:
    run(tmp_path, planted("s", says("well")))
    with (
        pytest.raises(ConfigError, match="holds results of 'sim'"),
        folder.opened(tmp_path / "out", "cpu"),
    ):
        pass
    (tmp_path / "out/preflight.json").write_text("{")
    with (
        pytest.raises(RunError, match=r"preflight\.json is damaged"),
        folder.opened(tmp_path / "out", "sim"),
    ):
        pass


def test_two_at_a_time_are_refused(tmp_path: Path) -> None:
    with (
        folder.opened(tmp_path, "sim"),
        pytest.raises(RunError, match="another preflight"),
        folder.opened(tmp_path, "sim"),
    ):
        pass


def test_the_time_is_shared_by_weight(tmp_path: Path) -> None:
    """Of 60 s a section of weight 1 beside one of 3 has 15; what it leaves goes to the other."""
    seen: list[float] = []

    def job(setting: PreflightSetting, seconds: float) -> str:
        seen.append(seconds)
        return "not here"

    first = replace(planted("a", ""), job=job)
    run(tmp_path, first, replace(first, name="b", weight=3), minutes=1.0)
    assert seen[0] == pytest.approx(15, abs=1) and seen[1] == pytest.approx(60, abs=2)


def test_sections_are_chosen_by_name() -> None:
    assert [s.name for s in sections.chosen("demo,parity", None)] == ["parity", "demo"]
    assert "tests" not in [s.name for s in sections.chosen(None, "tests")]
    with pytest.raises(ConfigError, match="no section 'speed'"):
        sections.chosen("speed", None)
    with pytest.raises(ConfigError, match="leave no section"):
        sections.chosen("demo", "demo")
