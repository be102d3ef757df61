"""What a stack says of the software: which checks, which commit."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from interlock.chips import versions

COMMIT = "1965b7a" + "0" * 33


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with src/interlock and a .git."""
    path = tmp_path / "src" / "interlock"
    (path / "qualify" / "cases").mkdir(parents=True)
    (path / "qualify" / "a.py").write_text("limit = 1\n")
    (tmp_path / ".git" / "refs").mkdir(parents=True)
    monkeypatch.setattr(versions, "_PACKAGE", path)
    return path


def test_the_suite_is_its_sources(package: Path) -> None:
    before = versions.suite()
    assert len(before) == 12 and versions.suite() == before
    (package / "report.py").write_text("")  # no check
    assert versions.suite() == before
    (package / "qualify" / "cases" / "b.py").write_text("shapes = []\n")
    added = versions.suite()
    (package / "qualify" / "a.py").write_text("limit = 2\n")
    assert len({before, added, versions.suite()}) == 3


@pytest.mark.parametrize(
    ("told", "head", "commit"),
    [
        (None, "ref: refs/main\n", COMMIT),
        (None, f"{COMMIT}\n", COMMIT),
        (None, "ref: refs/another\n", ""),
        (None, None, ""),
        ('{"url": "…", "vcs_info": {"commit_id": "abc"}}', f"{COMMIT}\n", "abc"),
        ('{"url": "…", "dir_info": {}}', f"{COMMIT}\n", COMMIT),
        ("{", f"{COMMIT}\n", ""),
    ],
    ids=range(7),
)
def test_the_commit_is_that_of_the_sources(
    told: str | None,
    head: str | None,
    commit: str,
    package: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    git = package.parents[1] / ".git"
    (git / "refs" / "main").write_text(f"{COMMIT}\n")
    if head is not None:
        (git / "HEAD").write_text(head)
    installed = SimpleNamespace(read_text=lambda name: told if name == "direct_url.json" else None)
    monkeypatch.setattr(versions.metadata, "distribution", lambda name: installed)
    assert versions.commit() == commit
