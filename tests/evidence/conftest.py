from pathlib import Path

import pytest
from sources_of_evidence import SIMULATED, bench, certificate, fleet, parity, plan, preflight, run

from interlock.records.trust import Trust


@pytest.fixture
def everything(tmp_path: Path) -> list[Path]:
    """One source of every kind, real and simulated."""
    (tmp_path / "few").mkdir()
    return [
        certificate(tmp_path / "npu" / "certificate.json", Trust.REJECT),
        certificate(tmp_path / "sim" / "certificate.json", stack=SIMULATED),
        parity(tmp_path / "parity"),
        fleet(tmp_path / "fleet"),
        preflight(tmp_path / "preflight", tmp_path),
        bench(tmp_path / "few" / "bench.json"),
        plan(tmp_path / "few" / "plan.json", "64xH800:learner,64xH20:generator"),
        plan(tmp_path / "few" / "other.json", "128xH800:both"),
        run(tmp_path / "run"),
    ]
