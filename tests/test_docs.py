"""What the documents name is there."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"


def test_every_test_that_security_names_exists() -> None:
    text = (DOCS / "security.md").read_text()
    sources = {str(path.relative_to(DOCS.parent)): path.read_text() for path in TESTS.rglob("*.py")}
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text)
    alone = re.findall(r"`(test_\w+)`", text)
    assert len(named) > 20
    absent = [f"{file}::{name}" for file, name in named if f"def {name}(" not in sources[file]]
    absent += [
        name for name in alone if not any(f"def {name}(" in each for each in sources.values())
    ]
    assert not absent


@pytest.mark.parametrize(
    "page", [*DOCS.glob("*.md"), DOCS.parent / "README.md"], ids=lambda p: p.name
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]+)(#[\w-]+)?\)", page.read_text())
    absent = [path for path, _ in links if not (page.parent / path).exists()]
    assert not absent
