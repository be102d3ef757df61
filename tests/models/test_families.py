"""The table of docs/models.md is that of the code, and every row has a model that shows it."""

import re
from pathlib import Path

from reference_models import FAMILIES as SHOWN

from interlock.models.families import FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_page_lists_what_loads_and_what_shows_it() -> None:
    table = PAGE.read_text().partition("## Families")[2].partition("Not loaded")[0]
    rows = re.findall(r"^\| (`.+?) \|.*\| (.+?) \|$", table, re.MULTILINE)[1:]
    listed = {
        name: re.findall(r"`([\w-]+)`", shown)
        for names, shown in rows
        for name in re.findall(r"`(\w+)`", names)
    }
    assert list(listed) == list(FAMILIES)
    by_kind: dict[str, set[str]] = {}
    for shown, (kind, _) in SHOWN.items():
        by_kind.setdefault(kind, set()).add(shown)
    assert set().union(*by_kind.values()) == {each for shown in listed.values() for each in shown}
    for kind, shown in by_kind.items():
        assert shown <= set(listed[kind])
