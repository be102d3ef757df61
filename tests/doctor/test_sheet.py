"""The lines as a terminal shows them."""

from interlock.doctor.finding import Diagnosis, State
from interlock.doctor.sheet import sheet


def test_each_line_with_its_remedy_and_the_count() -> None:
    lines = [
        Diagnosis("memory", State.OK, "64 GB [bold]free"),
        Diagnosis("memory", State.MISSING, "no /dev/shm", "docker run"),
        Diagnosis("npu", State.WRONG, "no plugin", "pip install 'torch_npu==2.13.*'"),
    ]
    assert sheet(lines).plain.splitlines() == [
        "memory     ✓ ok       64 GB [bold]free",
        "           – missing  no /dev/shm",
        "                      → docker run",
        "npu        ✗ wrong    no plugin",
        "                      → pip install 'torch_npu==2.13.*'",
        "",
        "wrong: 1, missing: 1, ok: 1",
    ]
