"""Shared by the tests of the tasks room."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

WriteJsonl = Callable[..., Path]


@pytest.fixture
def write_jsonl(tmp_path: Path) -> WriteJsonl:
    """write_jsonl("a.jsonl", {…}, "raw line", …) -> path; dicts become JSON lines."""

    def write(name: str, *rows: dict | str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write
