"""What is read, and what is refused in one line that names the file."""

import json
import os
import shutil
from pathlib import Path

import pytest
from sources_of_evidence import (
    RECIPE,
    ReadBack,
    bench,
    certificate,
    edited,
    fleet,
    parity,
    plan,
    preflight,
    run,
)

from interlock.cli import main
from interlock.errors import RunError
from interlock.evidence.reading import passed_over, read, uncertified
from interlock.evidence.record import PassedOver, SourceKind
from interlock.records.sealing import SealedDocument, resealed, sealed
from interlock.rundir import RunDir


def test_kinds_are_known_by_their_content(everything: list[Path]) -> None:
    kinds = [each.origin.kind for each in read(everything)]
    C = SourceKind.CERTIFICATE
    assert kinds == [
        *(C, C, SourceKind.PARITY, SourceKind.FLEET, C, C, SourceKind.PREFLIGHT, C),
        *(SourceKind.BENCH, SourceKind.PLAN, SourceKind.PLAN, SourceKind.RUN),
    ]


def test_a_folder_gives_all_that_lies_in_it(tmp_path: Path) -> None:
    bench(tmp_path / "bench.json")
    parity(tmp_path)
    assert [each.origin.kind for each in read([tmp_path])] == [SourceKind.BENCH, SourceKind.PARITY]


def test_folders_in_a_folder_are_not_read_and_that_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run, a preflight and a fleet it is known what lies in them."""
    folder, out = tmp_path / "all", tmp_path / "out.html"
    certificate(folder / "a.json")
    for name in ("npu-1", "npu-0"):
        certificate(folder / name / "certificate.json")
    run(tmp_path / "run")
    found = passed_over([folder, tmp_path / "run", folder, folder / "a.json"])
    assert found == [PassedOver(str(folder), ["npu-0", "npu-1"])]
    with pytest.raises(SystemExit) as end:
        main(["evidence", str(folder), "--for", "refusal", "--out", str(out)])
    said = f"What is in 2 folders of {folder}, not looked into: npu-0, npu-1."
    assert not end.value.code and said in capsys.readouterr().err
    assert said in ReadBack(out.read_text()).words
    with pytest.raises(RunError, match=r"holds no evidence; name those of its 2 folders that do"):
        read([tmp_path])


def test_devices_of_a_fleet_without_a_certificate_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = fleet(tmp_path / "fleet"), tmp_path / "out.html"
    assert not uncertified(read([folder]))
    (folder / "nodes" / "n1" / "0" / "certificate.json").unlink()
    with pytest.raises(SystemExit) as end:
        main(["evidence", str(folder), "--for", "refusal", "--out", str(out)])
    said = (
        f"Of 1 of the 2 devices of {folder / 'fleet.json'} there is no certificate among the "
        "sources: n1 npu:0."
    )
    assert not end.value.code and f"not shown: {said}\n" in capsys.readouterr().err
    assert said in ReadBack(out.read_text()).words
    [found] = uncertified(read([folder / "fleet.json"]))  # the file alone
    assert found.devices == ["n0 npu:0", "n1 npu:0"]


def test_the_same_file_twice_is_one_source_with_two_names(tmp_path: Path) -> None:
    path = certificate(tmp_path / "a.json")
    shutil.copy(path, tmp_path / "b.json")
    [found] = read([path, tmp_path / "b.json"])
    assert found.origin.name == str(path) and found.origin.also == [str(tmp_path / "b.json")]


def test_a_page_never_takes_the_place_of_a_source(tmp_path: Path) -> None:
    single, folder = certificate(tmp_path / "a.json"), run(tmp_path / "run")
    for source, out in ((single, single), (folder, folder / "metrics.jsonl")):
        before = out.read_bytes()
        with pytest.raises(SystemExit) as end:
            main(["evidence", str(source), "--for", "refusal", "--out", str(out)])
        assert end.value.code == 2 and out.read_bytes() == before


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"name": {"a": 1}}),
        ("config.json", {"name": None}),
        ("manifest.json", {"sessions": []}),
    ],
)
def test_a_run_that_lacks_what_is_cited_is_refused(
    tmp_path: Path, file: str, change: dict[str, object]
) -> None:
    made = run(tmp_path / "run")
    edited(made / file, lambda tree: tree.update(change))
    refused(made, "is no whole run")


def test_a_sealed_file_at_odds_with_itself_makes_a_page(tmp_path: Path) -> None:
    """It names a choice that was not measured, and a price of no chip of it."""
    speed, hours = bench(tmp_path / "bench.json"), plan(tmp_path / "plan.json", "64xH20:both")
    odd = json.loads(speed.read_text())
    odd["taken"]["dtype"] = "other"
    speed.write_text(json.dumps(resealed(odd)))
    odd = json.loads(hours.read_text())
    odd["prices"]["Other"] = odd["prices"]["H20-96G"]
    hours.write_text(json.dumps(resealed(odd)))
    with pytest.raises(SystemExit) as end:
        main(["evidence", str(speed), str(hours), "--for", "refusal", "--out", str(tmp_path / "p")])
    assert not end.value.code and "Other" in (tmp_path / "p").read_text()


def test_a_finished_run_is_whole_and_one_that_was_killed_may_end_within_a_line(
    tmp_path: Path,
) -> None:
    whole = run(tmp_path / "run")
    metrics, manifest = whole / "metrics.jsonl", whole / "manifest.json"
    lines = metrics.read_bytes()
    metrics.write_bytes(lines[:-5])
    refused(whole, r"is finished, and its metrics\.jsonl ends within a line; give another copy")
    finished = manifest.read_text()
    manifest.write_text(finished.replace('"finished"', '"interrupted"'))
    assert len(read([whole])[0].content.metrics) == len(lines.splitlines()) - 1
    manifest.write_text(finished)
    metrics.unlink()
    refused(whole, r"is finished, and has no metrics\.jsonl; give another copy")


@pytest.mark.parametrize("name", ["..", "/etc", "own/..", ""])
def test_a_preflight_names_no_file_beside_its_folder(tmp_path: Path, name: str) -> None:
    made = preflight(tmp_path / "preflight", tmp_path)
    tree = json.loads((made / "preflight.json").read_text())
    tree["sections"][0]["name"] = name
    (made / "preflight.json").write_text(json.dumps(resealed(tree)))
    shutil.copy(made / "qualify" / "certificate.json", tmp_path)
    with pytest.raises(RunError, match="names a file"):
        read([made])


def refused(path: Path, told: str) -> None:
    with pytest.raises(RunError, match=told) as error:
        read([path])
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is no whole JSON"),
        (b"[" * 100_000, "is no whole JSON"),
        (b"\xff\x00\x1b[31m", "is no whole JSON"),
        (b"[1, 2]", "nothing that evidence is taken from"),
        (b'{"hours": 3}', "nothing that evidence is taken from"),
        (b'{"document": "interlock plan"}', "was changed or damaged"),
        (b'{"document": "interlock evidence"}', "nothing that evidence is taken from"),
        (b'{"findings": 1, "stack": 2, "trust": 3}', "is no certificate"),
    ],
)
def test_what_is_none_of_these_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "strange.json"
    path.write_bytes(content)
    refused(path, told)


def test_what_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.json", "there is no")
    refused(tmp_path, "holds no evidence")
    refused(Path("/dev/zero"), "cannot read /dev/zero")


def test_what_was_cut_or_edited_is_refused(tmp_path: Path) -> None:
    made = {
        "plan.json": plan(tmp_path / "plan.json", "64xH800:both"),
        "bench.json": bench(tmp_path / "bench.json"),
        "parity.json": parity(tmp_path),
        "certificate.json": certificate(tmp_path / "certificate.json"),
        "fleet.json": fleet(tmp_path / "fleet") / "fleet.json",
    }
    for name, path in made.items():
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        refused(path, "is no whole JSON")
        path.write_bytes(whole)
        read([path])

        def spoil(tree: dict[str, object], name: str = name) -> None:
            field = {"plan.json": "recipe", "bench.json": "device", "parity.json": "headline"}
            tree[field.get(name, "level")] = "better"

        refused(edited(path, spoil), "changed or damaged")


def test_another_version_s_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(sealed(SealedDocument.PLAN, {"hours": 3})))
    refused(path, "of another version of interlock plan")


def test_a_search_is_no_plan(tmp_path: Path) -> None:
    refused(plan(tmp_path / "found.json", "4xH800,4xH20", "--find"), "is a search")


def test_a_preflight_is_as_it_was_left_or_refused(tmp_path: Path) -> None:
    path = preflight(tmp_path / "out", tmp_path)
    assert [each.origin.kind for each in read([path])] == [
        SourceKind.PREFLIGHT,
        SourceKind.CERTIFICATE,
    ]
    (path / "decode" / "log").write_text("it was faster")
    with pytest.raises(RunError, match=r"log is not what the preflight left there"):
        read([path])


def test_a_preflight_names_no_file_outside_of_it(tmp_path: Path) -> None:
    path = preflight(tmp_path / "out", tmp_path)
    tree = json.loads((path / "preflight.json").read_text())
    tree["sections"][0]["results"] = {"../../secret": "0" * 64}
    tree = {name: each for name, each in tree.items() if name not in ("document", "checksum")}
    (path / "preflight.json").write_text(json.dumps(sealed(SealedDocument.PREFLIGHT, tree)))
    refused(path, "names a file")


def test_a_run_that_goes_on_is_refused(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run", {"name": "mine"}, {}):
        refused(tmp_path / "run", "is a run that goes on")


def test_a_damaged_run_is_refused(tmp_path: Path) -> None:
    path = run(tmp_path / "run")
    with (path / "events.jsonl").open("a") as file:
        file.write("{torn\n")
    with pytest.raises(RunError, match=r"events\.jsonl line 3 is damaged"):
        read([path])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["x.json"], "--for"),
        (["x.json", "--for", "sale"], "invalid choice: 'sale'"),
        (["x.json", "--for", "refusal", "--date", "tomorrow"], "--date 'tomorrow' is no date"),
        (["x.json", "--for", "refusal", "--date", "9999-01-01"], "--date 9999-01-01 is to come"),
        (["x.json", "--for", "refusal", "--claim", "a" * 1001], "--claim has 1,001 characters"),
        (["x.json", "--for", "refusal"], "there is no x.json"),
        ([str(RECIPE), "--for", "refusal"], "is no whole JSON"),
    ],
)
def test_slips_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["evidence", *arguments])
    error = capsys.readouterr().err
    assert end.value.code == 2 and told in error and error.count("\n") == 1


def test_a_source_whose_name_is_no_utf8_is_told_as_json_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = certificate(tmp_path / "certificate.json")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/by\xff.json"))
    file.rename(odd)
    out = tmp_path / "page.html"
    with pytest.raises(SystemExit) as end:
        main(["evidence", str(odd), "--for", "refusal", "--json", "--out", str(out)])
    assert end.value.code == 0 and "by⟨U+DCFF⟩.json" in out.read_text()
    (source,) = json.loads(capsys.readouterr().out)["sources"]
    assert source["name"].endswith(r"/by\udcff.json")
