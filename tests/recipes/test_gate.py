"""Who of this process may do what, with devices that are only said to be there."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from findings import findings_for
from msgspec.structs import replace

from interlock.chips import certificates
from interlock.errors import ConfigError
from interlock.learner.distributed.ranks import Ranks
from interlock.recipes import gate
from interlock.records.trust import Certificate, Role, Stack, Trust

NPU = Stack("npu", "Chip 1", "25.1", "7.7", "CANN 9", "2.13.0", "torch_npu 2.13.0", "0.1")
RUN = "run: interlock qualify --device npu"
ALONE = Ranks(torch.device("cpu"))


@pytest.fixture(autouse=True)
def _npu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INTERLOCK_CERTIFICATES", str(tmp_path))
    pretended = SimpleNamespace(claim=lambda _: torch.device("cpu"), stack=lambda _: NPU)
    monkeypatch.setattr(gate, "device", pretended)


def certify(trust: Trust, world_size: int = 1) -> None:
    made = Certificate(NPU, "npu", world_size, "quick", trust, [], findings_for(trust), 1.0)
    certificates.keep(certificates.seal(made))


class Several(Ranks):
    """Rank 0 of several, of which the others say `whys`."""

    def __init__(self, *whys: str) -> None:
        super().__init__(torch.device("cpu"), size=1 + len(whys))
        self.whys = whys

    def all_gather(self, value: Any) -> list[Any]:
        others = [
            replace(value, why=why, chip=replace(value.chip, serial=f"{rank}", place=f"{rank}"))
            for rank, why in enumerate(self.whys, 1)
        ]
        return [value, *others]


def test_the_cpu_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = Stack("cpu", "", "", "", "", "", "", "")
    monkeypatch.setattr(gate.device, "stack", lambda _: cpu)
    use = gate.learner("cpu", ALONE)
    assert use[:5] == ("cpu", Role.TRAIN, "cpu", "", None)
    (chip,) = use.chips
    assert (chip.device, chip.place) == ("cpu", f"{chip.host}/cpu") and chip.host
    gate.check([gate.inline("cpu")], unqualified=False)


@pytest.mark.parametrize(
    ("trust", "train", "generate"),
    [
        (None, "unqualified", "unqualified"),
        (Trust.TRAIN, "train", "train"),
        (Trust.GENERATE, "unqualified", "generate"),
        (Trust.REJECT, "unqualified", "unqualified"),
        (Trust.UNKNOWN, "unqualified", "unqualified"),
    ],
)
def test_what_each_trust_allows(trust: Trust | None, train: str, generate: str) -> None:
    if trust is not None:
        certify(trust)
    uses = [gate.learner("npu", ALONE), gate.inline("npu")]
    assert [use.trust for use in uses] == [train, generate]
    for use in uses:
        gate.check([use], unqualified=True)
        if use.trust != "unqualified":
            gate.check([use], unqualified=False)
            continue
        with pytest.raises(ConfigError, match=f"^npu may not {use.role}: .*; {RUN}$"):
            gate.check([use], unqualified=False)


def test_as_many_processes_as_the_collectives_were_proven_with() -> None:
    certify(Trust.TRAIN, world_size=2)
    use = gate.learner("npu", Several(""))
    assert use.why == "" and [chip.place for chip in use.chips][1:] == ["1"]
    assert use.chips[0].chip == "Chip 1"
    refused = gate.learner("npu", Several("", ""))
    expected = "its collectives are proven with 2 processes, but 3 are asked"
    assert refused.why == f"{expected}; {RUN}"


def test_one_process_that_may_not_train_is_enough() -> None:
    certify(Trust.TRAIN, world_size=8)
    use = gate.learner("npu", Several("", "no certificate here"))
    assert (use.trust, use.why) == ("unqualified", "no certificate here")


def test_a_damaged_certificate_refuses_and_can_be_overruled(tmp_path: Path) -> None:
    certify(Trust.TRAIN)
    (filed,) = tmp_path.iterdir()
    filed.write_text("{")
    use = gate.learner("npu", ALONE)
    assert (use.trust, "is no certificate" in use.why) == ("unqualified", True)
    gate.check([use], unqualified=True)
