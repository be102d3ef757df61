"""Sources that contradict one another are all shown, and what is missing is told."""

import json
from pathlib import Path

import msgspec
from sources_of_evidence import (
    REAL,
    SIMULATED,
    certificate,
    parity,
    plan,
    run,
)

from interlock.evidence.at_odds import at_odds
from interlock.evidence.identity import worker_at
from interlock.evidence.lacking import lacking
from interlock.evidence.reading import read
from interlock.evidence.record import Sentence
from interlock.records.metrics import StepMetrics, WorkerMetrics
from interlock.records.sealing import resealed
from interlock.records.trust import Trust


def words(said: list[Sentence]) -> list[str]:
    return [
        "".join(piece if isinstance(piece, str) else piece.shown for piece in each.pieces)
        for each in said
    ]


def odds(*paths: Path) -> list[str]:
    return words(at_odds(read(paths)).sentences)


def missing(*paths: Path) -> str:
    return "\n".join(words(lacking(read(paths))))


def test_two_certificates_of_one_chip_with_other_verdicts(tmp_path: Path) -> None:
    newer = msgspec.structs.replace(REAL, driver="1.3")
    paths = [
        certificate(tmp_path / "b.json", Trust.REJECT, newer, issued=90000.0),
        certificate(tmp_path / "a.json", Trust.TRAIN),
    ]
    [said] = odds(*paths)
    assert said == (
        "Two certificates of Chip 9 differ in their verdict: the older one says may train and "
        "generate, the newer one rejected: may neither train nor generate; between them changed "
        "driver 1.2 → 1.3."
    )
    other = msgspec.structs.replace(REAL, serial="another")
    assert odds(paths[1], certificate(tmp_path / "c.json", Trust.REJECT, other)) == []
    # Without serial numbers, two devices of one machine are two chips.
    assert odds(paths[1], certificate(tmp_path / "d.json", Trust.REJECT, device="npu:1")) == []


def test_a_certificate_of_older_software_proves_nothing_of_the_newer(tmp_path: Path) -> None:
    newer = msgspec.structs.replace(REAL, torch="2.14.0")
    older, new = certificate(tmp_path / "a.json"), tmp_path / "b.json"
    [said] = odds(older, certificate(new, stack=newer, issued=90000.0))
    assert "torch 2.13.0 → 2.14.0. It proves nothing of the newer." in said


def test_a_certificate_that_says_more_than_its_findings(tmp_path: Path) -> None:
    path = certificate(tmp_path / "a.json", Trust.REJECT, claimed=Trust.TRAIN)
    [said] = odds(path)
    assert "says train; by the rules of this version its findings give reject." in said


def test_parity_against_the_certificate_of_the_same_device(tmp_path: Path) -> None:
    bad = certificate(tmp_path / "a.json", Trust.REJECT)
    same = parity(tmp_path / "same", 1e-9, "torch:npu:0")
    assert "says same, and the certificate of Chip 9 says reject" in odds(bad, same)[0]
    good = certificate(tmp_path / "b.json", Trust.TRAIN)
    apart = parity(tmp_path / "apart", 0.5, "torch:npu:0")
    assert "says different, and the certificate of Chip 9 says train" in odds(good, apart)[0]
    assert odds(good, same) == odds(bad, apart) == []
    host = msgspec.structs.replace(REAL, kind="cpu", chip="a CPU")
    reference = certificate(tmp_path / "c.json", Trust.TRAIN, host, device="cpu")
    assert odds(reference, apart) == []  # the CPU is what others are held against


def test_a_quarantine_against_a_certificate(tmp_path: Path) -> None:
    path = certificate(tmp_path / "a.json", stack=SIMULATED, device="sim:matmul-bf16")
    said = odds(path, run(tmp_path / "run"))
    assert len(said) == 2 and "put the worker bad in quarantine" in said[0]
    assert "simulated device" in said[0]
    assert said[0].endswith(
        "says generate; the former tells no serial number: the device is known by its name."
    )


A, B = (msgspec.structs.replace(REAL, serial=serial) for serial in "AB")


def test_a_chip_is_known_by_its_serial_number_where_that_is_told(tmp_path: Path) -> None:
    of_a = certificate(tmp_path / "a.json", Trust.TRAIN, A)
    # npu:0 of this machine is not npu:0 of that; and A is A wherever it is put.
    assert odds(of_a, parity(tmp_path / "1", 0.5, "torch:npu:0", B)) == []
    [said] = odds(of_a, parity(tmp_path / "2", 0.5, "torch:npu:3", A))
    assert said.endswith("says different, and the certificate of Chip 9, A says train.")
    assert odds(of_a, run(tmp_path / "3", "npu:0", None, "Chip 9", "B")) == []
    said = odds(of_a, run(tmp_path / "4", "npu:3", None, "Chip 9", "A"))[0]
    assert said.endswith("the certificate of its device, Chip 9, A, says train.")
    # Another chip of that name, or none with such a number.
    assert odds(of_a, run(tmp_path / "5", "npu:0", None, "Chip 8")) == []
    assert odds(of_a, run(tmp_path / "6", "npu:0", None, "Chip 9", "")) == []


def test_a_chip_without_a_serial_number_is_known_by_its_name_which_is_said(tmp_path: Path) -> None:
    bare = certificate(tmp_path / "a.json", Trust.TRAIN)
    [said] = odds(bare, parity(tmp_path / "1", 0.5, "torch:npu:0", REAL))
    assert said.endswith("says train; the device has no serial number, and is known by its name.")
    assert odds(bare, parity(tmp_path / "2", 0.5, "torch:npu:1", REAL)) == []
    of_a = certificate(tmp_path / "b.json", Trust.TRAIN, A)
    [said] = odds(of_a, parity(tmp_path / "3", 0.5, "torch:npu:0"))
    assert said.endswith("the former tells no serial number: the device is known by its name.")


def test_a_comparison_under_other_software_than_the_certificate_says_so(tmp_path: Path) -> None:
    of_a = certificate(tmp_path / "a.json", Trust.TRAIN, A)
    newer = msgspec.structs.replace(A, driver="1.3")
    [said] = odds(of_a, parity(tmp_path / "1", 0.5, "torch:npu:0", newer))
    assert said.endswith("says train; from this to that changed driver 1.2 → 1.3.")


def test_a_quarantine_is_of_the_chip_that_the_worker_had_then(tmp_path: Path) -> None:
    had = [WorkerMetrics(device="npu:0", chip="Chip 9", serial=serial) for serial in "AB"]
    steps = [
        StepMetrics(stage=0, step=n, time=10.0 * n, workers={"w": each})
        for n, each in enumerate(had, start=1)
    ]
    for time, serial in ((9.0, "A"), (10.0, "A"), (11.0, "B"), (99.0, "B")):
        found = worker_at(steps, "w", time)
        assert found is not None and found.serial == serial
    assert worker_at(steps, "another", 9.0) is None


def test_plans_that_differ(tmp_path: Path) -> None:
    one = plan(tmp_path / "a.json", "64xH20:both")
    longer = plan(tmp_path / "b.json", "64xH20:both", "--mean-tokens", "100")
    assert "Two plans of r1-zero on 64xH20-96G:both differ: " in odds(one, longer)[0]
    assert odds(one, plan(tmp_path / "c.json", "32xH20:both")) == []


def test_prices_that_differ_are_told_as_ranges(tmp_path: Path) -> None:
    one, two = (plan(tmp_path / name, "64xH20:both") for name in ("a.json", "b.json"))
    tree = json.loads(two.read_text())
    tree["prices"]["H20-96G"] |= {"high": 2.5}
    two.write_text(json.dumps(resealed(tree)))
    assert "a chip and hour: 1.25 USD, 1.25 USD to 2.50 USD." in odds(one, two)[-1]


def test_what_ran_on_a_real_accelerator_is_not_denied(tmp_path: Path) -> None:
    denied = "Nothing here was measured on a real accelerator"
    for made in (
        run(tmp_path / "worker", "npu:0"),
        run(tmp_path / "learner", "cpu", REAL),
        parity(tmp_path / "parity", label="torch:npu:0"),
    ):
        assert denied not in missing(made)
    assert denied in missing(run(tmp_path / "cpu", "cpu"))


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    told = missing(run(tmp_path / "run"))
    for part in (
        "No certificate of any chip.",
        "No comparison of engines",
        "No plan",
        "Nothing here was measured on a real accelerator",
        "No certificate of sim:matmul-bf16 (simulated device), on which the run mine worked.",
        "they have no seal",
    ):
        assert part in told
    assert "No run" not in told and "No measured speed" not in told
    other = run(tmp_path / "other", "npu:0", None, "Chip 9", "B")
    of_a, of_b = (
        certificate(tmp_path / f"{each.serial}.json", Trust.TRAIN, each) for each in (A, B)
    )
    told = "No certificate of npu:0 (Chip 9, B), on which the run mine worked."
    assert told in missing(other, of_a) and told not in missing(other, of_b)
    names = "names devices, not chips"
    assert names in missing(parity(tmp_path / "p", label="torch:npu:0"))
    assert names not in missing(parity(tmp_path / "q", label="torch:npu:0", stack=A))
    undecided = certificate(tmp_path / "a.json", Trust.UNKNOWN)
    told = missing(undecided)
    assert "The check forward did not run on Chip 9: nobody asked." in told
    assert "Chip 9 was qualified at level quick: not under hours of load." in told
    assert "No measured speed." in told and "real accelerator" not in told
    whole = certificate(tmp_path / "b.json", Trust.TRAIN, level="soak")
    assert "Chip 9" not in missing(whole)


def test_a_chip_of_a_plan_that_has_a_certificate_is_not_missing(tmp_path: Path) -> None:
    path = plan(tmp_path / "plan.json", "64xH20:both")
    assert "Of H20-96G: no certificate" in missing(path)
    stack = msgspec.structs.replace(REAL, kind="cuda", chip="NVIDIA H20")
    assert "Of H20-96G" not in missing(path, certificate(tmp_path / "a.json", stack=stack))
