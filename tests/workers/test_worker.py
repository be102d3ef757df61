"""What a generator worker says of the certificate on its machine."""

from pathlib import Path

import pytest
from scripted_pool import NPU, make_certificate

from interlock.chips import certificates
from interlock.errors import SyncError, UserError
from interlock.records.trust import Stack
from interlock.workers import protocol, worker
from interlock.workers.protocol import Failed


@pytest.fixture
def cabinet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTERLOCK_CERTIFICATES", str(tmp_path))
    return tmp_path


def test_it_shows_what_is_filed(cabinet: Path) -> None:
    assert worker._filed(NPU) is None
    certificates.keep(make_certificate())
    assert worker._filed(NPU) == make_certificate()
    assert worker._filed(Stack("cpu")) is None


def test_a_damaged_file_is_no_certificate_and_says_why(
    cabinet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = certificates.keep(make_certificate())
    assert path is not None
    path.write_text("{")
    assert worker._filed(NPU) is None
    told = capsys.readouterr().err
    assert told.startswith("no certificate to show: ") and f"{path} is no certificate" in told


def test_a_failure_is_one_line_and_permanent_if_the_user_has_to_mend_it() -> None:
    assert protocol.failed(UserError("a\n b")) == Failed("a b", permanent=True)
    assert protocol.failed(SyncError("a")) == Failed("a", permanent=False)
