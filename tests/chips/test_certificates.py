"""Sealed, filed, found and refused; the checksums are worked out by hand."""

import hashlib
import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from findings import findings_for
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import fields, replace

from interlock.chips.admission import admit
from interlock.chips.certificates import find, keep, load, save, seal, verify
from interlock.errors import RunError
from interlock.records.coding import from_bytes, to_bytes
from interlock.records.trust import Certificate, Finding, Measure, Result, Role, Stack, Trust

NPU = Stack("npu", "Chip 1", "25.1", "7.7", "CANN 9", "2.13.0", "torch_npu 2.13.0", "0.1")
CPU = Stack("cpu", "a chip", "", "", "", "2.13.0", "", "0.1")


def certificate(stack: Stack = NPU, **changes: Any) -> Certificate:
    findings = [
        Finding("forward", Result.PASS, "right", 1.5, {"GFLOP/s": 3}, [Measure("mm", 1, 2)]),
        Finding("backward", Result.FAIL, "wrong", 2.0, {"worst": math.inf}),
    ]
    whole = Certificate(
        stack, "npu:0", 2, "quick", Trust.TRAIN, ["backward failed: wrong"], findings, 10.0
    )
    return seal(replace(whole, **changes))


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "a" / "certificates"
    monkeypatch.setenv("INTERLOCK_CERTIFICATES", str(path))
    return path


def test_the_checksum_is_sha256_over_everything_else() -> None:
    bare = Certificate(CPU, "cpu", 1, "quick", Trust.REJECT, [], [], 2.5, checksum="an old one")
    content = (
        '{"checksum":"","commit":"","device":"cpu","findings":[],"issued":2.5,"level":"quick","models":[],"reasons":[],'
        '"stack":{"chip":"a chip","driver":"","firmware":"","interlock":"0.1","kind":"cpu",'
        '"libraries":"","plugin":"","runtime":"","serial":"","suite":"","torch":"2.13.0","vllm":""},'
        '"tried":{"context":0,"expert_inner":0,"experts":0,"head_dim":0,"heads":0,"hidden":0,"inner":0,"kv_heads":0,'
        '"kv_rank":0,"per_token":0,"q_rank":0,"vocab":0},"trust":"reject","world_size":1}'
    )
    assert seal(bare).checksum == hashlib.sha256(content.encode()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"stack": replace(NPU, driver="25.2")},
        {"device": "npu:1"},
        {"world_size": 8},
        {"level": "soak"},
        {"trust": Trust.GENERATE},
        {"reasons": []},
        {"findings": []},
        {"issued": 10.5},
        {"checksum": "0" * 64},
        {"checksum": ""},
    ],
    ids=str,
)
def test_any_change_breaks_the_seal(change: dict[str, Any]) -> None:
    verify(certificate())
    assert change.keys() <= {field.name for field in fields(Certificate)}
    with pytest.raises(RunError, match=r"certificate of npu \(Chip 1, .*changed or damaged"):
        verify(replace(certificate(), **change))


def test_a_change_deep_inside_breaks_the_seal(tmp_path: Path) -> None:
    save(certificate(), tmp_path / "c.json")
    tree = json.loads((tmp_path / "c.json").read_text())
    tree["findings"][1]["result"] = "pass"
    (tmp_path / "c.json").write_text(json.dumps(tree))
    with pytest.raises(RunError, match="changed or damaged"):
        verify(load(tmp_path / "c.json"))


numbers = st.floats() | st.integers(-(2**60), 2**60)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(), numbers | st.text(), max_size=4),
    st.lists(st.tuples(st.text(), numbers, numbers, st.none() | numbers), max_size=3),
    st.floats(0, 1e12),
)
def test_whatever_was_measured_survives_the_file_and_the_wire(
    tmp_path_factory: pytest.TempPathFactory,
    figures: dict[str, Any],
    measured: list[tuple[str, Any, Any, Any]],
    issued: float,
) -> None:
    """NaN and infinity too: that is what broken chips measure."""
    measures = [Measure(*each) for each in measured]
    finding = Finding("c", Result.FAIL, "s", 0, figures, measures)
    sealed = certificate(findings=[finding], issued=issued)
    path = tmp_path_factory.mktemp("c") / "c.json"
    save(sealed, path)
    for copy in (load(path), from_bytes(to_bytes(sealed), Certificate)):
        verify(copy)
        assert copy.checksum == sealed.checksum and repr(copy) == repr(sealed)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"stack": 1}',
        "[" * 100_000,
        '{"$float": "x"}',
        '{"$float": 1e999}',
        "\xff",
    ],
    ids=range(8),
)
def test_what_is_no_certificate_is_the_users_to_remove(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text, encoding="latin-1")
    with pytest.raises(RunError, match=r"c\.json is no certificate .*; remove it"):
        load(tmp_path / "c.json")
    with pytest.raises(RunError, match="no certificate at "):
        load(tmp_path / "none.json")


def test_it_is_filed_for_its_user_alone_and_found_by_its_stack(directory: Path) -> None:
    other = replace(NPU, chip="Chip 2")
    assert find(NPU) is None
    assert keep(certificate()) == (path := next(directory.iterdir()))
    assert path.name.startswith("npu-") and path.suffix == ".json"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    keep(certificate(other))
    assert len(list(directory.iterdir())) == 2
    assert find(NPU) == certificate() and find(other) == certificate(other)


def test_without_a_certificate_of_its_own_the_latest_of_the_kind_is_shown() -> None:
    keep(certificate(replace(NPU, chip="old"), issued=1.0))
    keep(certificate(replace(NPU, chip="new"), issued=2.0))
    keep(certificate(replace(NPU, kind="cuda"), issued=3.0))
    found = find(NPU)
    assert found is not None and found.stack.chip == "new"


FAULT = [Finding("backward", Result.FAIL, "wrong")]


@pytest.mark.parametrize(
    ("first", "second", "stays"),
    [
        ({}, {"issued": 2.0}, 1),  # the newest of equals
        ({"trust": Trust.REJECT}, {}, 1),
        ({}, {"trust": Trust.REJECT, "findings": FAULT}, 1),
        ({"level": "soak", "world_size": 8}, {"trust": Trust.GENERATE, "findings": FAULT}, 1),
        ({"trust": Trust.GENERATE}, {"trust": Trust.UNKNOWN, "findings": FAULT}, 1),
        ({}, {"trust": Trust.GENERATE}, 0),  # it tried less, and found nothing
        ({"level": "default"}, {"level": "quick"}, 0),
        ({"world_size": 8}, {"world_size": 1, "level": "soak"}, 0),
        ({"trust": Trust.REJECT}, {"trust": Trust.UNKNOWN}, 0),
        ({"trust": Trust.UNKNOWN}, {"trust": Trust.GENERATE}, 1),
    ],
)
def test_what_proves_more_stays_until_a_fault_is_found(
    first: dict[str, Any], second: dict[str, Any], stays: int
) -> None:
    sound = {"findings": [], "issued": 1.0}
    both = [certificate(**(sound | changes)) for changes in (first, second)]
    assert keep(both[0]) is not None
    assert (keep(both[1]) is not None) == (stays == 1)
    assert find(NPU) == both[stays]


def test_a_certificate_is_of_one_chip() -> None:
    one, other = replace(NPU, serial="A1"), replace(NPU, serial="B2")
    keep(certificate(one, findings=findings_for(Trust.TRAIN)))
    keep(certificate(other, trust=Trust.REJECT, findings=findings_for(Trust.REJECT)))
    assert admit(one, find(one), Role.TRAIN).why is None
    assert "says reject" in str(admit(other, find(other), Role.GENERATE).why)
    third = replace(NPU, serial="C3")
    assert "another stack: serial " in str(admit(third, find(third), Role.GENERATE).why)


def test_without_a_home_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERLOCK_CERTIFICATES", "~nobody-of-this-name/x")
    with pytest.raises(RunError, match="INTERLOCK_CERTIFICATES"):
        find(NPU)


def test_one_made_for_a_model_stays_when_another_is_made_without() -> None:
    sound = {"findings": [], "reasons": []}
    mine = certificate(models=["Qwen3-8B", "mine"], **sound)
    assert keep(mine) is not None
    assert keep(certificate(models=["Qwen3-8B"], **sound)) is None and find(NPU) == mine
    assert keep(certificate(models=["Qwen3-8B", "a", "b"], **sound)) is not None


def test_a_damaged_one_is_replaced(directory: Path) -> None:
    path = keep(certificate(issued=99.0))
    assert path is not None
    path.write_text(path.read_text().replace('"train"', '"generate"'))
    keep(certificate(trust=Trust.UNKNOWN, issued=1.0))
    assert (found := find(NPU)) is not None and found.trust is Trust.UNKNOWN
    path.write_text("{")
    with pytest.raises(RunError, match="remove it"):
        find(NPU)
    keep(certificate())
    assert find(NPU) == certificate()


def test_where_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("INTERLOCK_CERTIFICATES")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    path = keep(certificate())
    assert path is not None and path.parent == tmp_path / "data" / "interlock" / "certificates"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = keep(certificate())
    assert path is not None
    assert path.parent == tmp_path / "home" / ".local" / "share" / "interlock" / "certificates"


def test_one_of_an_older_format_is_refused_with_the_remedy(directory: Path) -> None:
    keep(certificate())
    (path,) = directory.iterdir()
    path.write_text(path.read_text().replace('"checksum"', '"digest"'))
    with pytest.raises(RunError, match=r"older format; run: interlock qualify --device npu:0$"):
        find(NPU)
    keep(certificate())  # qualified again
    assert find(NPU) == certificate()


def test_a_file_in_the_way_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INTERLOCK_CERTIFICATES", str(tmp_path / "file" / "below"))
    with pytest.raises(RunError, match="a part of this path is a file"):
        keep(certificate())


def test_no_torch_is_imported() -> None:
    code = "import sys, interlock.chips.certificates; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=os.environ)
    assert done.stdout.strip() == b"False", done.stderr
