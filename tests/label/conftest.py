"""A file of labels that nobody has reviewed."""

from pathlib import Path

import pytest
from labelled import rows

from interlock.label.rows import Labels, LabelSetting


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "labels.jsonl"
    setting = LabelSetting(
        measured={}, model="m", weights="w", samples=1, temperature=1, top_p=1, max_tokens=9, seed=0
    )
    labels = Labels(path, setting)
    for row in rows():
        labels.add(row)
    return path
