"""What `make bench` runs, and what it leaves out because its figures are there."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLES = re.findall(r"^<!-- end (.+) -->$", (ROOT / "bench" / "RESULTS.md").read_text(), re.M)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with an environment that is up to date, no vLLM, and no figures yet."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    for name in ("bin/python", ".bench"):
        (tmp_path / "venv" / name).touch()
    (tmp_path / "figures").mkdir()
    return tmp_path


def to_measure(installed: Path, *more: str) -> list[str]:
    """What `make bench` would measure; the tables come after it."""
    settings = [f"{name.upper()}={installed / name}" for name in ("venv", "vllm", "figures")]
    output = subprocess.check_output(
        ["make", "--dry-run", "--no-print-directory", "bench", *settings, *more],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        text=True,
    )
    *lines, last = (line for line in output.splitlines() if "/bin/python bench/" in line)
    assert last.split()[1:] == ["bench/tables.py", str(installed / "figures")]
    return [Path(line.split(" --json ")[1]).stem for line in lines]


def test_make_bench_writes_every_file_that_is_known(installed: Path) -> None:
    assert sorted(to_measure(installed)) == sorted(TABLES)


def test_make_bench_goes_on_where_it_was_interrupted(installed: Path) -> None:
    done = ["time_to_half", "rollout", "rollout-bfloat16", "decode-groups"]
    for name in done:
        (installed / "figures" / f"{name}.json").touch()
    assert sorted([*to_measure(installed), *done]) == sorted(TABLES)


def test_make_bench_measures_again_what_has_changed(installed: Path) -> None:
    for name in TABLES:
        (installed / "figures" / f"{name}.json").touch()
    assert to_measure(installed) == []
    assert to_measure(installed, "-W", "bench/tables.py") == []
    for changed in ("src/interlock/rollout/engine.py", "bench/learner.py", "constraints.txt"):
        assert len(to_measure(installed, "-W", changed)) == len(TABLES)


def test_make_bench_measures_again_beside_a_vllm_installed_later(installed: Path) -> None:
    for name in TABLES:
        (installed / "figures" / f"{name}.json").touch()
    (installed / "vllm").mkdir()
    for name in (".installed", "pyvenv.cfg"):
        (installed / "vllm" / name).touch()
    newer = ("-W", str(installed / "vllm" / "pyvenv.cfg"))
    assert to_measure(installed, *newer) == ["rollout", "rollout-bfloat16"]
