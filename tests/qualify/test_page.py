import html
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.chips.verdict import judge
from interlock.errors import RunError
from interlock.qualify import plots
from interlock.qualify.checks import CHECKS
from interlock.qualify.page import page, write_page
from interlock.records.trust import Certificate, Finding, Measure, Result, Role, Stack, Trust

STACK = Stack("npu", "Chip 9", "1.2", "3.4", "CANN 8.5", "2.13.0", "torch_npu 2.13.0", "0.4.0")
ATTACKS = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "--></style></pre><img src=x onerror=alert(3)>",
    "{{ 7 * 7 }}{% raw %}",
    "'\"><a href='https://example.org'>",
]


def measures(count: int, share: float = 0.5) -> list[Measure]:
    return [Measure(f"mm bf16 [{i}, 64]", share * 1e-3, 1e-3, 1e-4) for i in range(count)]


def findings(**changes: Finding) -> list[Finding]:
    """A pass for every check, but for those named (with _ for -)."""
    found = {id: Finding(id, Result.PASS, f"{id} is fine.", 2.5) for id in CHECKS}
    return list((found | {id.replace("_", "-"): f for id, f in changes.items()}).values())


def certificate(found: list[Finding], **changes: Any) -> Certificate:
    trust, reasons = judge(found)
    made = Certificate(
        *(STACK, "npu:0", 2, "default", trust, reasons, found, 86400.0, "cd" * 20),
        models=["Qwen3-8B", "mine"],
        checksum="ab" * 32,
    )
    return msgspec.structs.replace(made, **changes)


class Shown(HTMLParser):
    """A page as it is read: its words, its tables and its figures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words = ""
        self.heading = ""
        self.cells: list[list[str]] = []  # of all rows of all tables
        self._open: list[str] = []
        self.feed(text)
        self.close()
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self._open.append(tag)
        if tag == "script":
            self.scripts.append("")
        elif tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"{tag} was not the last opened"
        self.words += " "

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"]:
            self.scripts[-1] += data
        elif self._open[-1:] != ["style"]:
            self.words += data
            if "td" in self._open or "th" in self._open:
                self.cells[-1][-1] += f" {data}"
            elif self._open[-1:] == ["h1"]:
                self.heading += data

    @property
    def figures(self) -> list[dict[str, Any]]:
        return [json.loads(script) for script in self.scripts[:-2]]

    def row(self, beginning: str) -> list[str]:
        """The cells of the one row whose first cell begins so."""
        rows = [[" ".join(cell.split()) for cell in row] for row in self.cells]
        [found] = [row for row in rows if row and row[0].startswith(beginning)]
        return found


def names_of(figure: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {trace["name"]: trace for trace in figure["data"]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "May TRAIN and GENERATE"),
        ({"backward": Finding("backward", Result.FAIL, "no")}, "May only GENERATE"),
        ({"forward": Finding("forward", Result.FAIL, "no")}, "REJECTED"),
        ({"forward": Finding("forward", Result.UNKNOWN, "no")}, "Not decided"),
    ],
)
def test_the_verdict_comes_first(changes: dict[str, Finding], words: str) -> None:
    shown = Shown(page(certificate(findings(**changes))))
    assert shown.heading == words
    assert words in shown.words.partition("What it is valid for")[0]
    classes = [str(a["class"]) for tag, a in shown.elements if tag == "section"]
    assert [name for name in classes if "ruling" in name] == classes[:1]


def test_what_it_is_valid_for() -> None:
    words = Shown(page(certificate(findings(), level="quick"))).words
    scope = words[words.index("What it is valid for") : words.index("What was checked")]
    for part in (*msgspec.structs.astuple(STACK), "npu:0 (npu)", "quick", "ab" * 32):
        assert part in scope, part
    assert "Models whose sizes were tried Qwen3-8B, mine" in scope
    assert "Processes in collectives 2" in scope and "1970-01-02 00:00 UTC" in scope


def test_every_check_is_a_row_with_its_roles_and_result() -> None:
    failure = Finding("stale-weights", Result.FAIL, "Old weights spoke.", 125.0)
    shown = Shown(page(certificate(findings(stale_weights=failure))))
    for id, check in CHECKS.items():
        if id == "stale-weights":
            continue
        generate = "yes" if Role.GENERATE in check.needed else "–"
        assert shown.row(f"{id} {check.proves}") == [
            f"{id} {check.proves}", "yes", generate, "✔ passed", "2.5 s", f"{id} is fine.",
        ]  # fmt: skip
    assert shown.row("stale-weights")[3:] == ["✖ failed", "2 min 05 s", "Old weights spoke."]
    assert f"passed {len(CHECKS) - 1} failed 1 did not run 0" in shown.words
    assert "stale-weights failed: Old weights spoke." in shown.words
    assert CHECKS["stale-weights"].remedy in shown.words


def test_checks_that_were_not_asked_for_are_shown_and_counted() -> None:
    shown = Shown(page(certificate([Finding("sampler", Result.PASS, "fair")])))
    assert shown.row("forward")[3:] == ["? did not run", "–", "not among the checks asked for"]
    left_out = len(CHECKS) - 1
    assert f"{left_out} of {len(CHECKS)} checks were not asked for" in shown.words
    assert "versions did not run" not in shown.words
    assert "interlock qualify --device npu:0" in shown.words


def test_a_check_that_cannot_run_says_why_beside_the_verdict() -> None:
    cannot = Finding("collectives", Result.UNKNOWN, "it needs two processes")
    shown = Shown(page(certificate(findings(collectives=cannot))))
    assert "collectives did not run: it needs two processes" in shown.words


def test_a_finding_of_a_check_that_is_gone_still_shows() -> None:
    gone = Finding("phlogiston", Result.FAIL, "It burns.", 1.0, {"degrees": 451})
    shown = Shown(page(certificate([*findings(), gone])))
    assert shown.row("phlogiston")[1:] == ["–", "–", "✖ failed", "1.0 s", "It burns."]
    assert shown.row("degrees") == ["degrees", "451"]


def test_figures_and_advice_of_a_crash() -> None:
    figures: dict[str, float | int | str] = {
        "last words": "Traceback\n  line 2\nRuntimeError: 507054", "advice": "take the card out",
        "seconds": 0.012345, "cases": 12345, "bits": math.nan,
    }  # fmt: skip
    crash = Finding("soak", Result.FAIL, "its process died: signal 6", 3.0, figures)
    text = page(certificate(findings(soak=crash)))
    shown = Shown(text)
    assert "<pre>Traceback\n  line 2\nRuntimeError: 507054</pre>" in text
    assert f"{CHECKS['soak'].remedy}; take the card out" in shown.words
    assert [shown.row(name)[1] for name in ("seconds", "cases", "bits")] == [
        "0.01235", "12,345", "not a number",
    ]  # fmt: skip


def test_every_case_is_listed_and_few_are_named_in_the_picture() -> None:
    cases = [Measure("mm bf16 [511, 64]", 0.2, 0.01, 0.002), *measures(3)]
    bad = Finding("forward", Result.FAIL, "1 of 4", 1.0, {}, cases)
    shown = Shown(page(certificate(findings(forward=bad))))
    assert shown.row("mm bf16 [511, 64]") == [
        "mm bf16 [511, 64]", "0.2", "0.002", "0.01", "20", "✖ failed",
    ]  # fmt: skip
    assert shown.row("mm bf16 [2, 64]")[-2:] == ["0.5", "✔ passed"]
    overview, named = shown.figures
    assert overview["layout"]["yaxis"]["ticktext"] == ["forward"]
    assert named["layout"]["yaxis"]["ticktext"][0] == "mm bf16 [511, 64]"
    traces = names_of(named)
    assert traces["failed"]["y"] == [0] and traces["within its limit"]["y"] == [1, 2, 3]
    assert traces["failed"]["x"] == [pytest.approx(math.log10(0.2))]
    assert traces["limit"]["x"] == [pytest.approx(math.log10(x)) for x in (0.01, *[1e-3] * 3)]
    assert traces["CPU reference"]["x"][0] == pytest.approx(math.log10(0.002))
    assert traces["failed"]["marker"]["symbol"] != traces["within its limit"]["marker"]["symbol"]


def test_many_cases_are_drawn_by_operator_and_the_worst_named() -> None:
    many = [
        Measure(f"{'mm' if i % 2 else 'silu'} bf16 [{i}]", 1e-4 * (i + 1), 1e-2, 1e-4)
        for i in range(200)
    ]
    found = Finding("forward", Result.FAIL, "half", 1.0, {}, many)
    of_all, worst = plots.pictures(found)
    assert of_all.figure["layout"]["yaxis"]["ticktext"] == ["mm (100)", "silu (100)"]
    traces = names_of(of_all.figure)
    assert len(traces["within its limit"]["x"]) == 100 == len(traces["failed"]["x"])
    assert max(traces["within its limit"]["x"]) == pytest.approx(0)  # the limit itself is kept
    assert min(traces["failed"]["x"]) > 0
    assert all(abs(y - round(y)) <= 0.25 for y in traces["failed"]["y"])
    rows = worst.figure["layout"]["yaxis"]["ticktext"]
    assert rows == [f"{'mm' if i % 2 else 'silu'} bf16 [{i}]" for i in range(199, 179, -1)]
    assert [of_all.title, worst.title] == [
        "All 200 cases, by kind", "The worst 20 of 200 cases, by name",
    ]  # fmt: skip
    passed = msgspec.structs.replace(found, measures=many[:100], figures={"cases": 5080})
    assert [p.title for p in plots.pictures(passed)] == ["The worst 100 of 5,080 cases, by kind"]


def test_cases_that_end_in_what_was_measured_are_drawn_by_it() -> None:
    cases = [
        Measure(f"bfloat16, update {i}: {figure}", 0.1, 1.0)
        for i in range(11)
        for figure in ("k3", "mean")
    ]
    cases.append(Measure("nonzero bf16 [513]: RuntimeError: 507018", math.inf, 1.0))
    drawn, _ = plots.pictures(Finding("engine-parity", Result.FAIL, "", measures=cases))
    assert drawn.figure["layout"]["yaxis"]["ticktext"] == ["nonzero (1)", "k3 (11)", "mean (11)"]


def test_more_kinds_than_rows_share_the_last() -> None:
    cases = [Measure(f"op{i} bf16", 1.0 / (i + 1), 1.0) for i in range(60)]
    [drawn] = plots.pictures(Finding("opinfo", Result.PASS, "", measures=cases))
    rows = drawn.figure["layout"]["yaxis"]["ticktext"]
    assert (len(rows), rows[0], rows[-1]) == (24, "op0 (1)", "37 others (37)")
    assert len(names_of(drawn.figure)["within its limit"]["x"]) == 60


def test_zero_and_infinity_stand_on_the_edges() -> None:
    cases = [
        Measure("nan", math.nan, 1e-2), Measure("inf", math.inf, 1e-2),
        Measure("exact", 0.0, 0.0), Measure("small", 1e-6, 1e-2),
    ]  # fmt: skip
    [drawn] = plots.pictures(Finding("forward", Result.FAIL, "", measures=cases))
    axis, traces = drawn.figure["layout"]["xaxis"], names_of(drawn.figure)
    ticks = dict(zip(axis["ticktext"], axis["tickvals"], strict=True))
    assert list(traces["failed"]["x"]) == [ticks["∞"]] * 2
    assert min(traces["within its limit"]["x"]) == ticks["0"] < -6
    assert axis["range"][0] < ticks["0"] and ticks["∞"] < axis["range"][1]


def test_all_zeros_are_said_not_drawn() -> None:
    exact = Finding(
        "collectives", Result.PASS, "", 1.0, {}, [Measure("a", 0, 0), Measure("b", 0, 0)]
    )
    assert plots.pictures(exact) == []
    assert (
        "All 2 cases are exactly 0" in Shown(page(certificate(findings(collectives=exact)))).words
    )


@given(
    st.lists(
        st.builds(
            Measure,
            name=st.text(),
            value=st.floats(),
            limit=st.floats(),
            reference=st.none() | st.floats(),
        ),
        max_size=60,
    )
)
def test_any_measures_can_be_drawn(cases: list[Measure]) -> None:
    found = Finding("forward", Result.FAIL, "", measures=cases)
    for picture in [*plots.pictures(found), *filter(None, [plots.overview([found])])]:
        low, high = picture.figure["layout"]["xaxis"]["range"]
        assert low < high
        for trace in picture.figure["data"]:
            assert all(low <= x <= high for x in trace["x"])  # false of what is not a number


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "0"), (3, "3"), (1234567.0, "1,234,567"), (0.30000000004, "0.3"), (1e-5, "1e-5"),
        (5e20, "5e20"), (123456.7, "123,457"), (math.inf, "infinite"), (-2.5, "-2.5"),
    ],
)  # fmt: skip
def test_numbers_are_written_for_people(value: float, words: str) -> None:
    assert plots.number(value) == words


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_device_says_is_inert(attack: str) -> None:
    cases = [Measure(f"{attack} {i}", 2.0, 1.0, 0.1) for i in range(25)]
    bad = Finding(attack, Result.FAIL, attack, 1.0, {attack: attack, "advice": attack}, cases)
    stack = Stack(*[attack] * 8)
    given = certificate(findings(), stack=stack, device=attack, level=attack, checksum=attack)
    given = msgspec.structs.replace(
        given, findings=[*given.findings, bad], reasons=[attack], trust=Trust.REJECT
    )
    shown = Shown(page(given))
    tags = [tag for tag, _ in shown.elements]
    assert tags.count("script") == len(shown.figures) + 2 == 5
    assert not {"img", "a"} & set(tags)
    assert not [name for _, a in shown.elements for name in a if name.startswith("on")]
    assert shown.words.count(" ".join(attack.split())) > 40
    assert not [script for script in shown.scripts[:-2] if "</" in script]
    worst = shown.figures[-1]["layout"]["yaxis"]["ticktext"]  # plotly reads tags in what it shows
    assert worst[0].startswith(html.escape(attack)[:30])
    assert "<b>" in shown.figures[-1]["data"][-1]["text"][0]
    assert attack not in shown.figures[-1]["data"][-1]["text"][0] or "<" not in attack


def test_the_page_stands_alone_and_carries_plotly_only_for_plots() -> None:
    plain = page(certificate(findings()))
    drawn = page(
        certificate(findings(forward=Finding("forward", Result.PASS, "", 1.0, {}, measures(200))))
    )
    assert len(plain) < 60_000 < 3_000_000 < len(drawn) < 6_000_000
    assert Shown(plain).scripts == []
    assert "http" not in plain.replace("http-equiv", "")
    for text in (plain, drawn):
        shown = Shown(text)
        assert not [a for _, a in shown.elements if {"src", "href"} & set(a)]
        assert not {"link", "iframe", "object", "embed", "img"} & {tag for tag, _ in shown.elements}
        style = text.split("<style>")[1].split("</style>")[0]
        assert "url(" not in style and "@import" not in style


def test_writing(tmp_path: Path) -> None:
    target = tmp_path / "new" / "certificate.html"
    assert write_page(certificate(findings()), target) == target
    assert target.read_text(encoding="utf-8") == page(certificate(findings()))
    assert [path.name for path in target.parent.iterdir()] == ["certificate.html"]
    with pytest.raises(RunError, match="is a directory"):
        write_page(certificate(findings()), tmp_path)
