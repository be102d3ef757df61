"""The simulated device, operator by operator; its cases stand in sim_operators.py."""

import subprocess
import sys
from pathlib import Path

import on_sim
import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_a_sound_device_computes_as_the_cpu_does() -> None:
    on_sim.check(HERE / "sim_operators.py")


def test_defects_of_memory_software_and_gradients_show() -> None:
    on_sim.check(HERE / "sim_planted.py")


def test_a_real_plugin_keeps_its_place() -> None:
    script = """
import torch
torch.utils.rename_privateuse1_backend("npu")
from interlock.chips import device
from interlock.errors import ConfigError
try:
    device.claim("sim")
except ConfigError as error:
    print(error)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert "'sim'" in ran.stdout and "'npu'" in ran.stdout
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in ran.stdout
