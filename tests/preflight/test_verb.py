"""The command as a user types it, on the CPU and on the simulated device."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def preflight(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "interlock.cli", "preflight", "--out", str(out), *arguments]
    environment = {"INTERLOCK_CERTIFICATES": str(out.parent / "certificates")}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=1200, env=os.environ | environment
    )


def sections(out: Path) -> dict[str, dict[str, Any]]:
    kept = json.loads((out / "preflight.json").read_text())
    return {section["name"]: section for section in kept["sections"]}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--device", "cpu", "--only", "speed"], "there is no section 'speed'"),
        (["--device", "cpu", "--minutes", "0"], "--minutes 0"),
        (["--device", "cpu", "--shapes", "gpt"], "there is no shape 'gpt'"),
        (["--device", "cpu", "--model", "smollm2"], "has no config.json; preflight fetches"),
        (["--device", "cuda:99", "--only", "decode"], "'cuda:99' cannot be used here"),
        (["--device", "cpu", "--out", "/dev/null/x", "--only", "decode"], "cannot make /dev/null"),
        (["--device", "cpu", "--out", "/proc", "--only", "decode"], "/proc: "),
        ([], "--device"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, arguments: list[str], expected: str) -> None:
    done = preflight(tmp_path / "out", *arguments)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert expected in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(1300)
@pytest.mark.parametrize("device", ["sim", "cpu"])
def test_every_section_but_qualify(tmp_path: Path, device: str) -> None:
    out = tmp_path / "out"
    asked = ["--device", device, "--skip", "qualify", "--shapes", "tiny", "--minutes", "15"]
    done = preflight(out, *asked)
    found = sections(out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: section["status"] for name, section in found.items()} == dict.fromkeys(
        ("parity", "tests", "decode", "learner", "demo"), "done"
    )
    assert found["parity"]["figures"]["verdict"] == "same"
    assert found["tests"]["headline"] == "3 passed, 0 failed, 0 skipped"
    assert found["decode"]["figures"]["tiny, 1 rows: tokens/s"] > 0
    assert found["learner"]["figures"]["tiny, 16 rows: tokens/s"] > 0
    assert found["demo"]["figures"]["steps"] == 3
    assert sum(path.stat().st_size for path in out.rglob("*")) < 4 << 20
    again = preflight(out, *asked)
    assert again.returncode == 0 and again.stdout.count("done before") == 5


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_a_bad_chip_fails_one_section_and_not_the_others(tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ["--device", "sim:mask-512", "--only", "qualify,decode", "--shapes", "tiny"]
    done = preflight(out, *asked, "--minutes", "4")  # in which qualify has time for its quick form
    found = sections(out)
    assert done.returncode == 1, done.stderr
    assert found["qualify"]["status"] == "failed"
    assert "forward" in found["qualify"]["headline"]
    assert found["decode"]["status"] == "done"
    assert (out / "qualify/certificate.json").is_file()
