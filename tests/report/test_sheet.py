import base64
import json
import re
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import Markup

from interlock.errors import RunError
from interlock.report import sheet

FIGURE = {"data": [{"type": "scatter", "x": [1], "y": [2.5]}], "layout": {"title": "</script>"}}


class Document(HTMLParser):
    """The elements of a document by tag, and the contents of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.title = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside == "title":
            self.title += data

    def policy(self) -> str:
        found = [a for tag, a in self.elements if a.get("http-equiv") == "Content-Security-Policy"]
        assert len(found) == 1
        return found[0]["content"] or ""


def test_a_sheet_without_figures_carries_no_scripts() -> None:
    text = sheet.sheet("t", "<p>words</p>")
    document = Document(text)
    assert "<p>words</p>" in text
    assert document.scripts == []
    assert "script-src" not in document.policy()
    assert len(text) < 20_000


def test_plotly_comes_once_however_many_figures_there_are() -> None:
    body = sheet.figure(FIGURE, 300, "one") + sheet.figure(FIGURE)
    document = Document(sheet.sheet("t", body))
    first, second, plotly, drawing = document.scripts
    assert json.loads(first) == json.loads(second) == FIGURE
    assert "</" not in first
    assert len(plotly) > 1_000_000 > len(drawing)
    frames = [a for tag, a in document.elements if tag == "div"]
    assert [(a.get("id"), a["style"]) for a in frames] == [
        ("one", "--height: 300px"),
        (None, "--height: 280px"),
    ]
    assert len(re.findall("sha256-", document.policy())) == 2


def test_every_script_of_the_policy_is_one_of_the_sheet() -> None:
    document = Document(sheet.sheet("t", sheet.figure(FIGURE)))
    digests = [
        base64.b64encode(sha256(script.encode()).digest()).decode()
        for script in document.scripts[1:]
    ]
    assert re.findall("'sha256-(.*?)'", document.policy()) == digests


def test_words_that_look_like_a_figure_bring_no_script() -> None:
    page = sheet.environment(Path(__file__).parent).from_string("{{ text }}")
    body = page.render(text='<script type="application/json" class="figure">')
    assert Document(sheet.sheet("t", body)).scripts == []


def test_title_and_name_are_escaped() -> None:
    attack = '"><script>alert(1)</script>\x1b'
    document = Document(sheet.sheet(attack, sheet.figure(FIGURE, name=attack)))
    assert document.title == attack.replace("\x1b", "␛")
    assert len(document.scripts) == 3
    assert attack in [a.get("id") for tag, a in document.elements if tag == "div"]


def test_numbers_without_json_become_null() -> None:
    drawn = sheet.figure({"data": [{"y": [float("nan"), float("inf"), 1.5]}], "layout": {}})
    assert json.loads(Document(drawn).scripts[0])["data"][0]["y"] == [None, None, 1.5]


def test_style_comes_after_the_sheets_own() -> None:
    text = sheet.sheet("t", "", ".mine { color: red; }")
    style = text.split("<style>")[1].split("</style>")[0]
    assert style.endswith(".mine { color: red; }") and style.startswith(":root")


@pytest.mark.parametrize("style", ["p { margin: 0 }", Markup("p { margin: 0 }")])
def test_styles_are_not_escaped(style: str) -> None:
    document = sheet.sheet("t", "<p>x</p>", style)
    assert '"Segoe UI"' in document and "&#34;" not in document


def test_writing(tmp_path: Path) -> None:
    target = tmp_path / "new" / "page.html"
    assert sheet.write(target, "ä") == target
    assert target.read_bytes() == "ä".encode()
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]
    with pytest.raises(RunError, match="is a directory"):
        sheet.write(tmp_path, "x")


def test_a_page_takes_the_place_of_a_page_alone(tmp_path: Path) -> None:
    """`--out RUN/ledger.sqlite` was a run lost."""
    page, other = tmp_path / "page.html", tmp_path / "ledger.sqlite"
    for body in ("<p>1</p>", "<p>2</p>"):
        sheet.write(page, sheet.sheet("t", body, ""))
    assert "<p>2</p>" in page.read_text()
    other.write_bytes(b"SQLite format 3")
    with pytest.raises(RunError, match=r"ledger\.sqlite is there already and holds something else"):
        sheet.write(other, sheet.sheet("t", "", ""))
    assert other.read_bytes() == b"SQLite format 3"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["ledger.sqlite", "page.html"]
    other.write_bytes(b"")
    assert sheet.write(other, sheet.sheet("t", "", "")) == other


def test_every_table_of_every_page_has_a_form_for_phones() -> None:
    """Beside those of two narrow columns: a wider one would be cut."""
    forms = {"stacked", "compare", "samples", "events", "counts", "figures", "sourced"}
    source = Path(sheet.__file__).parents[1]
    tables = [
        set(classes.split())
        for page in source.glob("*/page.html")
        for classes in re.findall(r'<table(?: class="([^"]*)")?>', page.read_text("utf-8"))
    ]
    assert len(tables) > 10
    assert all(classes & forms for classes in tables), tables


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_a_directory_that_takes_no_files_is_one_line() -> None:
    with pytest.raises(RunError, match=r"^/proc: .*; choose another directory$"):
        sheet.write(Path("/proc/report.html"), "x")
