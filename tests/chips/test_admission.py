"""Who may take which role: every refusal in its words, and what is admitted."""

import subprocess
import sys
from typing import Any

import pytest
from findings import findings_for
from msgspec.structs import fields, replace

from interlock.chips.admission import admit, distrust, needs_certificate
from interlock.chips.certificates import seal
from interlock.chips.verdict import NEEDED
from interlock.records.trust import Certificate, Role, Stack, Trust

NPU = Stack("npu", "Chip 1", "25.1", "7.7", "CANN 9", "2.13.0", "torch_npu 2.13.0", "0.1")
CPU = Stack("cpu", "a chip", "", "", "", "2.13.0", "", "0.1")


def certificate(stack: Stack = NPU, **changes: Any) -> Certificate:
    trust = changes.get("trust", Trust.TRAIN)
    whole = Certificate(stack, "npu:0", 2, "quick", trust, [], findings_for(trust), 10.0)
    return seal(replace(whole, **changes))


REFUSED: list[tuple[Certificate | None, Role, int, str]] = [
    (None, Role.GENERATE, 1, "there is no certificate for npu (Chip 1, torch_npu 2.13.0)"),
    (
        replace(certificate(), trust=Trust.GENERATE),
        Role.GENERATE,
        1,
        "the certificate of npu (Chip 1, torch_npu 2.13.0) was changed or damaged: its checksum "
        "is not that of its content",
    ),
    (
        certificate(replace(NPU, torch="2.12.0", plugin="torch_npu 2.12.0")),
        Role.GENERATE,
        1,
        "its certificate is for another stack: torch '2.12.0', and here it is '2.13.0'",
    ),
    (
        certificate(trust=Trust.GENERATE),
        Role.TRAIN,
        1,
        "its certificate says generate, which is not enough to train (backward failed: wrong)",
    ),
    (
        certificate(trust=Trust.REJECT),
        Role.GENERATE,
        1,
        "its certificate says reject, which is not enough to generate (forward failed: wrong)",
    ),
    (
        certificate(trust=Trust.UNKNOWN),
        Role.GENERATE,
        1,
        "its certificate says unknown, which is not enough to generate "
        "(forward did not run: nobody asked)",
    ),
    (  # as one that was edited
        certificate(findings=[]),
        Role.GENERATE,
        1,
        f"its certificate says train, and its findings unknown ({', '.join(NEEDED)} did not run)",
    ),
    (  # of a suite without that check
        certificate(findings=[f for f in findings_for(Trust.TRAIN) if f.check != "sampler"]),
        Role.GENERATE,
        1,
        "its certificate says train, and its findings unknown (sampler did not run)",
    ),
    (
        certificate(findings=findings_for(Trust.REJECT)),
        Role.GENERATE,
        1,
        "its certificate says train, and its findings reject (forward failed: wrong)",
    ),
    (
        certificate(replace(NPU, suite="0123456789ab")),
        Role.GENERATE,
        1,
        "its certificate is for another stack: suite '0123456789ab', and here it is ''",
    ),
    (
        certificate(),
        Role.TRAIN,
        3,
        "its collectives are proven with 2 processes, but 3 are asked",
    ),
]


@pytest.mark.parametrize(("shown", "role", "world_size", "why"), REFUSED)
def test_what_is_refused_and_what_to_do(
    shown: Certificate | None, role: Role, world_size: int, why: str
) -> None:
    told = admit(NPU, shown, role, world_size, device="npu:0")
    assert told == ("unqualified", f"{why}; run: interlock qualify --device npu:0")
    told = admit(NPU, shown, role, world_size, python="/opt/npu/bin/python")
    command = "/opt/npu/bin/python -m interlock.cli qualify --device npu"
    assert told == ("unqualified", f"{why}; run: {command}")


@pytest.mark.parametrize(
    ("shown", "role", "world_size"),
    [
        (certificate(), Role.TRAIN, 2),
        (certificate(), Role.GENERATE, 2),
        (certificate(world_size=8), Role.TRAIN, 16),  # more than are ever tried on one machine
        (certificate(trust=Trust.GENERATE), Role.GENERATE, 1),
    ],
)
def test_what_is_admitted(shown: Certificate, role: Role, world_size: int) -> None:
    assert admit(NPU, shown, role, world_size) == (shown.trust, None)


def test_every_field_of_the_stack_counts() -> None:
    for field in fields(Stack):
        other = replace(NPU, **{field.name: "x"})
        told = distrust(certificate(), other, Role.GENERATE)
        assert told is not None and f"another stack: {field.name} " in told


def test_the_cpu_needs_none_but_is_not_trusted_against_the_evidence() -> None:
    assert admit(CPU, None, Role.TRAIN, 4) == ("cpu", None)
    rejected = certificate(CPU, trust=Trust.REJECT)
    assert distrust(rejected, CPU, Role.GENERATE) is not None
    assert [needs_certificate(kind) for kind in ("cpu", "sim", "npu")] == [False, True, True]


def test_no_torch_is_imported() -> None:
    code = "import sys, interlock.chips.admission; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.strip() == b"False"
