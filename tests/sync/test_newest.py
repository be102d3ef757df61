"""Which versions a store says that it has."""

from pathlib import Path

import pytest
import torch

from interlock.errors import SyncError
from interlock.records.rl import WeightVersion
from interlock.sync.newest import StoreView
from interlock.sync.storage import MissingError
from interlock.sync.store import Publisher


def publish(url: str, *numbers: int) -> list[str]:
    publisher = Publisher(url, 2)
    return [publisher.publish(n, {"w": torch.full((3,), float(n))}).version.digest for n in numbers]


def test_the_newest_by_number_and_digest(tmp_path: Path) -> None:
    digests = publish(str(tmp_path), 7, 9, 10)
    found = StoreView(str(tmp_path)).newest()
    assert found is not None
    assert found == (WeightVersion(10, digests[-1]), str(tmp_path))


def test_an_older_one_by_its_number(tmp_path: Path) -> None:
    digests = publish(str(tmp_path), 7, 9)
    assert StoreView(str(tmp_path)).version(7).version.digest == digests[0]
    with pytest.raises(MissingError):
        StoreView(str(tmp_path)).version(8)


def test_nothing_yet(tmp_path: Path) -> None:
    assert StoreView(str(tmp_path)).newest() is None


def test_other_files_are_none_of_its_own(tmp_path: Path) -> None:
    publish(str(tmp_path), 3)
    (tmp_path / "v99999999.json.tmp").write_text("{}")
    (tmp_path / "../v00000099.json").resolve().write_text("{}")
    found = StoreView(str(tmp_path)).newest()
    assert found is not None
    assert found.version.number == 3


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"number": 4}'])
def test_a_damaged_manifest_says_so(tmp_path: Path, text: str) -> None:
    publish(str(tmp_path), 3)
    (tmp_path / "v00000004.json").write_text(text)
    with pytest.raises(SyncError, match=r"v00000004\.json is damaged"):
        StoreView(str(tmp_path)).newest()


def test_one_under_another_s_name_is_refused(tmp_path: Path) -> None:
    publish(str(tmp_path), 3)
    (tmp_path / "v00000003.json").rename(tmp_path / "v00000008.json")
    with pytest.raises(SyncError, match="is of version 3"):
        StoreView(str(tmp_path)).newest()


@pytest.mark.parametrize("kind", ["path", "memory"])
def test_of_a_run_s_sessions_the_newest_one_counts(tmp_path: Path, kind: str) -> None:
    base = str(tmp_path) if kind == "path" else f"memory://{tmp_path.name}"
    publish(f"{base}/session-9", 50)
    digests = publish(f"{base}/session-10", 1, 2)
    view = StoreView(base)
    assert view.newest() == (WeightVersion(2, digests[-1]), f"{base}/session-10")
    assert view.version(1).version.digest == digests[0]
    with pytest.raises(MissingError):
        view.version(50)
    if kind == "path":
        (tmp_path / "session-11").mkdir()
        assert view.newest() is None
