"""The page read back: every figure is its source's, and nothing is said without one."""

import json
import math
import re
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sources_of_evidence import (
    REAL,
    SIMULATED,
    ReadBack,
    bench,
    certificate,
    parity,
    plan,
    preflight,
    run,
)

from interlock.cli import main
from interlock.evidence.assembly import assemble
from interlock.evidence.page import grouped, render
from interlock.evidence.reading import read
from interlock.evidence.record import EvidenceSource, Wanted, at
from interlock.records.sealing import resealed
from interlock.records.trust import Stack, Trust

ATTACKS = [
    "<script>alert(1)</script>",
    "</data></table><img src=x onerror=alert(3)>",
    "'\"><a href='https://example.org'>",
    "{{ 7 * 7 }}{% raw %}",
]


def page_of(*paths: Path, wanted: Wanted = Wanted.REFUSAL, claim: str = "") -> str:
    return render(assemble(wanted, claim, "2026-11-29", read(paths)))


def tree_of(source: EvidenceSource) -> Any:
    """What stands in its files, read again by another reader."""
    path = Path(source.origin.name)
    if not path.is_dir():
        return json.loads(path.read_text())
    return {
        each.name: [json.loads(line) for line in (path / each.name).read_text().splitlines()]
        if each.name.endswith("l")
        else json.loads((path / each.name).read_text())
        for each in source.origin.files
    }


@pytest.mark.parametrize("wanted", Wanted)
def test_every_figure_on_the_page_is_that_of_its_source(
    everything: list[Path], wanted: Wanted
) -> None:
    sources = read(everything)
    shown = ReadBack(render(assemble(wanted, "why?", "2026-11-29", sources)))
    trees = {str(each.origin.number): tree_of(each) for each in sources}
    plain = [each for each in shown.cited if "data-derived" not in each]
    assert len(plain) > 150 and {each["data-source"] for each in plain} >= trees.keys() - {"3"}
    for each in shown.cited:
        assert each["data-source"] in trees and each["data-field"] and each["shown"]
    for each in plain:
        value = at(trees[each["data-source"]], each["data-field"])
        assert each["value"] == str(value)


def test_nothing_is_said_without_a_source(everything: list[Path]) -> None:
    text = page_of(*everything)
    shown = ReadBack(text)
    assert not re.search(r"\d", shown.spoken.replace("k3", "").replace("%", ""))
    report = assemble(Wanted.REFUSAL, "", "2026-11-29", read(everything))
    numbers = {each.number for each in report.notes}
    said = [each for section in report.sections for each in (*section.brief, *section.sentences)]
    rows = [row for section in report.sections for table in section.tables for row in table.rows]
    assert all(each.notes and set(each.notes) <= numbers for each in (*said, *rows))
    targets = {own["id"] for _, own in shown.tags if "id" in own}
    links = {own["href"] for tag, own in shown.tags if tag == "a"}
    assert {f"#{each}" for each in targets} >= links and len(links) > len(numbers)


def test_files_are_named_with_their_digests_and_times(everything: list[Path]) -> None:
    words = ReadBack(page_of(*everything)).words
    for path in [everything[0], everything[2], everything[-1] / "events.jsonl"]:
        assert sha256(path.read_bytes()).hexdigest() in words
    assert f"{datetime.fromtimestamp(86400, UTC):%Y-%m-%d %H:%M} UTC" in words
    assert "torch_npu 2.13.0" in words and "Interlock 0.1.0" in words


def test_what_failed_is_told_by_its_numbers(tmp_path: Path) -> None:
    shown = ReadBack(page_of(certificate(tmp_path / "certificate.json", Trust.REJECT)))
    assert "forward: 3 of 4 cases are wrong." in shown.words
    ratios = {each["shown"] for each in shown.cited if "÷" in each["data-field"]}
    assert ratios == {
        "3.00",
        "200",
    }  # 6e-3 / 2e-3, 0.5 / 2.5e-3; of what is no number there is none
    assert "not a number" in shown.said() and "exp [7]" not in shown.said()
    assert "forward, 3 of 4 listed cases" in shown.words
    assert "rejected: may neither train nor generate" in shown.words


def test_a_run_tells_speed_mismatch_and_what_became_of_workers(tmp_path: Path) -> None:
    shown = ReadBack(page_of(run(tmp_path / "run", "npu:0", REAL)))
    rate = next(each for each in shown.cited if "seconds_generating" in each["data-field"])
    assert float(rate["value"]) == 300 / 2.0
    k3 = next(each for each in shown.cited if "mismatch/0/k3" in each["data-field"])
    assert float(k3["value"]) == pytest.approx((100 * 1e-3 + 300 * 2e-3) / 400)
    assert "A step took 15.0 s, the median of 2 steps." in shown.words
    assert "problems of stage 0: 25.0% at step 1, 50.0% at step 2." in shown.words
    times = next(each for each in shown.cited if "lines 0, 1" in each["data-field"])
    assert times["value"] == "2"
    assert "was put in quarantine: k3 0.00018 is more than 1e-05" in shown.words


def test_right_answers_of_each_stage_are_told_by_its_last_lines(tmp_path: Path) -> None:
    """A resumed run logs a step again; another stage may ask other problems."""
    made = run(tmp_path / "run", "cpu")
    more = [(0, 2, 0.625), (1, 0, 0.125), (1, 4, 0.875)]
    with (made / "metrics.jsonl").open("a") as file:
        for stage, step, share in more:
            file.write(json.dumps({"stage": stage, "step": step, "accuracy": share}) + "\n")
    words = ReadBack(page_of(made)).words
    assert "problems of stage 0: 25.0% at step 1, 62.5% at step 2." in words
    assert "problems of stage 1: 12.5% at step 0, 87.5% at step 4." in words


@pytest.mark.parametrize(("device", "learner"), [("sim:matmul-bf16", None), ("cpu", SIMULATED)])
def test_no_speed_of_a_simulated_run_is_told(
    tmp_path: Path, device: str, learner: Stack | None
) -> None:
    shown = ReadBack(page_of(run(tmp_path / "run", device, learner)))
    assert "A step took" not in shown.words
    assert "Of the run mine no speed is told: part of it was simulated." in shown.words
    assert "It says nothing of any real chip" in shown.words
    rates = [each for each in shown.cited if "seconds_generating" in each["data-field"]]
    assert len(rates) == (0 if learner is None else 1)


def test_the_headlines_of_a_simulated_preflight_tell_no_speed(tmp_path: Path) -> None:
    for stack, told in ((REAL, True), (SIMULATED, False)):
        made = preflight(tmp_path / stack.kind, tmp_path, stack)
        sections = json.loads((made / "preflight.json").read_text())["sections"]
        headline = next(each["headline"] for each in sections if each["name"] == "decode")
        assert (headline in ReadBack(page_of(made)).said()) is told


def test_ranges_that_have_no_width_are_not_drawn(tmp_path: Path) -> None:
    """A price of nothing; figures that were not finite."""
    paths = [tmp_path / "0.json", tmp_path / "1.json"]
    for path, chips in zip(paths, ["64xH800:both", "128xH800:both"], strict=True):
        tree = json.loads(plan(path, chips).read_text())
        tree["money"] = dict.fromkeys(("low", "middle", "high"), 0.0)
        tree["hours"] |= {"high": None}
        path.write_text(json.dumps(resealed(tree)))
    shown = ReadBack(page_of(*paths))
    assert not [own for tag, own in shown.tags if tag == "rect"]
    assert "not finite, or not known" in shown.said()


def test_plans_are_ranges_with_dated_prices(tmp_path: Path) -> None:
    path = plan(tmp_path / "plan.json", "64xH800:learner,64xH20:generator")
    shown = ReadBack(page_of(path, wanted=Wanted.PURCHASE))
    tree = json.loads(path.read_text())
    for name in ("hours", "money", "kwh", "chip_hours"):
        values = {
            each["value"] for each in shown.cited if each["data-field"].startswith(f"/{name}/")
        }
        assert values >= {str(tree[name][end]) for end in ("low", "middle", "high")}
    assert "prices.toml, contract 4711" in shown.said() and "1.25 USD" in shown.said()
    assert "2026-11-20" in shown.said() and "2024-12-27" in shown.said()
    assert "Of H20-96G: no certificate and no measurement" in shown.words


def test_ranges_are_drawn_to_one_scale(tmp_path: Path) -> None:
    paths = [
        plan(tmp_path / f"{i}.json", chips)
        for i, chips in enumerate(["64xH800:both", "128xH800:both"])
    ]
    text = page_of(*paths, wanted=Wanted.PURCHASE)
    spans = [own for tag, own in ReadBack(text).tags if tag == "rect" and own["class"] == "span"]
    hours = [json.loads(path.read_text())["hours"] for path in paths]
    most = max(each["high"] for each in hours)
    assert len(spans) == 4  # hours and money of two
    for own, each in zip(spans, hours, strict=False):
        assert float(own["x"]) == pytest.approx(1000 * each["low"] / most, abs=0.1)
        width = 1000 * (each["high"] - each["low"]) / most
        assert float(own["width"]) == pytest.approx(width, abs=0.1)


def test_parity_is_told_with_its_band(tmp_path: Path) -> None:
    shown = ReadBack(page_of(parity(tmp_path)))
    assert "torch:sim:decode-drift (simulated device) against torch:cpu: different." in shown.words
    assert {"0.0207", "0.00100", "0.0100", "25.0%", "0.125"} <= shown.said()
    assert "Of 26 greedy answers 24 are the same" in shown.words


def test_a_figure_that_is_not_finite_is_told_as_that(tmp_path: Path) -> None:
    path = parity(tmp_path, k3=math.inf)
    assert json.loads(path.read_text())["differences"][0]["mismatch"]["k3"] is None
    assert "not finite, or not known" in ReadBack(page_of(path)).said()


def test_what_is_simulated_is_called_so_wherever_it_is_named(tmp_path: Path) -> None:
    path = certificate(tmp_path / "certificate.json", stack=SIMULATED)
    speed = bench(tmp_path / "bench.json", SIMULATED)
    compared = parity(tmp_path / "parity")
    shown = ReadBack(page_of(path, speed, compared, run(tmp_path / "run")))
    for name in ("simulated accelerator", "sim:matmul-bf16", "sim:decode-drift"):
        named = [each for each in shown.cited if name in each["shown"]]
        told = [each for each in named if not each["data-field"].startswith("/events.jsonl")]
        assert told and all("simulated device" in each["shown"] for each in told)
    assert "458" not in " ".join(shown.said())  # a simulated device has the CPU's speed
    assert "It says nothing of any real chip" in shown.words
    assert "Nothing here was measured on a real accelerator" in shown.words
    real = ReadBack(page_of(certificate(tmp_path / "real.json"), bench(tmp_path / "b.json")))
    assert "simulated device" not in real.words and "458 GFLOP/s" in real.said()


@pytest.mark.parametrize("attack", ATTACKS)
def test_foreign_text_is_inert(tmp_path: Path, attack: str) -> None:
    stack = msgspec.structs.replace(SIMULATED, kind="npu", chip=attack, driver=attack)
    path = certificate(tmp_path / "certificate.json", stack=stack, device=attack, level=attack)
    made = run(tmp_path / "run")
    event = {"time": 1.0, "kind": "worker_lost", "message": attack, "worker": attack}
    with (made / "events.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")
    text = page_of(path, made, parity(tmp_path / "p", label=attack), claim=attack)
    shown = ReadBack(text)
    tags = {tag for tag, _ in shown.tags}
    assert not tags & {"script", "img", "iframe", "object", "embed", "link"}
    assert all(own["href"].startswith("#") for tag, own in shown.tags if tag == "a")
    assert not [name for _, own in shown.tags for name in own if name.startswith("on")]
    assert shown.words.count(" ".join(attack.split())) > 8


def test_the_page_stands_alone_and_is_the_same_each_time(everything: list[Path]) -> None:
    text = page_of(*everything)
    assert text == page_of(*everything)
    assert len(text) < 400_000 and "url(" not in text and "@import" not in text
    assert not [own for _, own in ReadBack(text).tags if "src" in own]


def test_the_verb_writes_the_page_and_prints_the_same(
    tmp_path: Path, everything: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "page.html"
    asked = ["evidence", *map(str, everything), "--for", "purchase", "--date", "2026-11-29"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([*asked, "--json", "--out", str(out), "--claim", "why?"])
    assert not end.value.code
    tree = json.loads(capsys.readouterr().out)
    assert out.read_text() == page_of(*everything, wanted=Wanted.PURCHASE, claim="why?")
    assert tree["question"] == "purchase" and tree["date"] == "2026-11-29"
    fields = [
        piece
        for section in tree["sections"]
        for table in section["tables"]
        for row in table["rows"]
        for cell in row["cells"]
        for piece in cell
        if isinstance(piece, dict)
    ]
    assert len(fields) > 100 and all(each["field"] for each in fields)


def test_fields_are_grouped_for_a_reader() -> None:
    given = ["/a/0/low", "/a/0/high", "/a/1/low", "/a/1/high", "/b", "number of /c", "/d/2/x"]
    assert grouped(given) == ["/a/{0, 1}/{low, high}", "/b", "number of /c", "/d/2/x"]
