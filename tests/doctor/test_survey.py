"""What is found out of this machine, whatever it is."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from interlock.chips import vendors
from interlock.doctor import survey as looking
from interlock.doctor.machine import Torch


@pytest.fixture(autouse=True)
def busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's import may take minutes beside other tests."""
    monkeypatch.setattr(looking, "_TORCH_S", 280.0)


@pytest.fixture
def fake_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a torch that processes started from here import."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(vendors, "built", lambda: {"__version__": "9.9"})
    return tmp_path / "torch.py"


def test_a_survey_brings_no_torch_and_keeps_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys, msgspec; from interlock.doctor import survey\n"
        "survey._torch = lambda asked: survey.Torch()\n"
        "machine = survey.survey()\n"
        "print('torch' in sys.modules, machine.env, machine.cores, machine.runs_free > 0)\n"
        "print(msgspec.json.encode(machine).decode())"
    )
    env = os.environ | {
        "HF_TOKEN": "hf_word",
        "OMP_NUM_THREADS": "1",
        "HSA_OVERRIDE_GFX_VERSION": "",
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    first, _, rest = done.stdout.partition("\n")
    assert first.startswith("False {") and "'OMP_NUM_THREADS': '1'" in first
    assert first.endswith(" True") and "hf_word" not in rest


def test_torch_tells_its_devices_and_whether_one_computes() -> None:
    found = looking._torch("cpu")
    assert found.version and "cpu" in found.devices and not (found.error or found.refused)
    refused = looking._torch("cuda:99").refused
    assert "cuda:99" in refused


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("raise RuntimeError('Failed to load the backend extension')", "backend extension"),
        ("import os; os.abort()", "signal 6"),
        ("import sys; sys.exit(3)", "3"),
    ],
)
def test_a_torch_that_fails_is_a_fact(fake_torch: Path, source: str, told: str) -> None:
    fake_torch.write_text(source)
    found = looking._torch(None)
    assert found.version == "9.9" and told in found.error and found.devices == []


def test_a_torch_that_hangs_is_a_fact(fake_torch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch.write_text("import time; time.sleep(600)")
    monkeypatch.setattr(looking, "_TORCH_S", 0.3)
    assert "not imported within 0.3 s" in looking._torch(None).error


def test_no_torch_is_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vendors, "built", dict)
    assert looking._torch("cpu") == Torch()


GROUPS = {
    "2": {
        "/proc/self/cgroup": "0::/a/b\n",
        "/sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
        "/sys/fs/cgroup/a/cpu.max": "250000 100000\n",
        "/sys/fs/cgroup/a/b/memory.max": "8000000\n",
        "/sys/fs/cgroup/a/b/memory.current": "3000000\n",
        "/proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable:   32000000 kB\n",
    },
    "1": {
        "/proc/self/cgroup": "3:memory:/x\n2:cpu,cpuacct:/docker/y\n1:name=systemd:/\n",
        "/sys/fs/cgroup/cpu,cpuacct/docker/y/cpu.cfs_quota_us": "250000\n",
        "/sys/fs/cgroup/cpu,cpuacct/docker/y/cpu.cfs_period_us": "100000\n",
        "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "/sys/fs/cgroup/memory/x/memory.limit_in_bytes": "8000000\n",
        "/sys/fs/cgroup/memory/x/memory.usage_in_bytes": "3000000\n",
        "/proc/meminfo": "MemAvailable:   32000000 kB\n",
    },
}


@pytest.mark.parametrize("version", GROUPS)
def test_limits_of_control_groups(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "_text", lambda file: GROUPS[version].get(str(file), ""))
    assert looking._quota() == 2.5
    assert looking._memory() == 5_000_000


def test_no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"/proc/self/cgroup": "0::/\n", "/proc/meminfo": "MemAvailable: 3 kB\n"}
    monkeypatch.setattr(looking, "_text", lambda file: told.get(str(file), ""))
    assert (looking._quota(), looking._memory()) == (0.0, 3072)
    told.clear()
    assert (looking._quota(), looking._memory()) == (0.0, 0)


def test_room_is_that_of_the_first_directory_that_exists(tmp_path: Path) -> None:
    assert looking._free(tmp_path / "not" / "made") > 0


def test_facts_are_plain() -> None:
    machine = looking.Machine(
        torch=Torch(version="2.13.0", built={"cuda": "13.0"}),
        files=[looking.DeviceFile("kfd", opens=False)],
        software={"rocm": vendors.Software("6.12")},
        env={"A": "b"},
    )
    again = msgspec.json.decode(msgspec.json.encode(machine), type=looking.Machine)
    assert again == machine
