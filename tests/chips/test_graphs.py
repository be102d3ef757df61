"""Recording work and replaying it, with a stand-in for an accelerator (support/recorder.py)."""

import pytest
import torch
from recorder import Recorder, recording

from interlock.chips import device, graphs, speeds
from interlock.chips.graphs import RecordedWork

CPU = torch.device("cpu")


def test_what_is_replayed_reads_and_writes_the_same_places() -> None:
    x, total = torch.tensor([1.0, 2.0]), torch.zeros(2)
    host = 10.0
    with recording() as made:
        recorded = RecordedWork(CPU, lambda: total.add_(x) * host)
        total.zero_()  # an accelerator computes nothing meanwhile; the stand-in does
        where, host = recorded.out.data_ptr(), 99.0
        assert recorded.replay().tolist() == [10.0, 20.0]
        x.copy_(torch.tensor([5.0, 7.0]))
        assert recorded.replay().tolist() == [60.0, 90.0]
        assert (recorded.out.data_ptr(), host) == (where, 99.0)
        assert total.tolist() == [6.0, 9.0]
        second = RecordedWork(CPU, lambda: x + 1, beside=recorded)
        assert made[1].pool() is made[0].pool() and second.replay().tolist() == [6.0, 8.0]


def test_what_asks_the_host_is_refused_and_recording_ends() -> None:
    x = torch.ones(1)
    with recording():
        with pytest.raises(RuntimeError, match="not permitted"):
            RecordedWork(CPU, lambda: x * x.item())
        assert (x * x.item()).item() == 1.0


def test_neither_the_cpu_nor_the_simulated_device_records() -> None:
    assert not graphs.offered(CPU)
    assert not graphs.offered(torch.device("meta"))  # nothing computed: no result to read


def test_a_device_is_believed_when_it_has_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes the calls and replays nothing, or that lacks them, is not offered."""

    class Idle(Recorder):
        def replay(self) -> None:
            pass

    class Lacking:
        def __init__(self, pool: object) -> None:
            raise RuntimeError("Graph is not supported on device type: npu")

    for graph, found in ((Recorder, True), (Idle, False), (Lacking, False)):
        with recording():
            monkeypatch.setattr(graphs, "_graph", graph)
            assert graphs._tried(CPU) is found


def test_a_step_is_measured_both_ways_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    with recording():
        steps = speeds._steps(CPU, ["float32", "bfloat16"])
    assert list(steps) == ["float32", "bfloat16"]
    for step in steps.values():
        assert step.eager > 0 and step.recorded > 0 and step.apart == 0.0
    assert speeds._steps(CPU, ["float32"]) == {}  # the CPU itself
    with recording():
        monkeypatch.setattr(device, "synchronize", _refuses)
        assert speeds._steps(CPU, ["float32"]) == {}


def _refuses(place: torch.device) -> None:
    raise RuntimeError("operation not permitted when stream is capturing")
