"""Parquet and saved data sets: the same rows as JSONL, and one line for what cannot be read."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError, UserError
from interlock.tasks import open_task
from interlock.tasks.data import DataFiles, find, rows_of

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

ROWS = [
    {"question": "1+1?", "answer": 2.5, "turns": [{"role": "user", "content": "Hi"}], "n": None},
    {"question": "ünïcode  😀", "answer": 1e-05, "turns": [], "n": 7},
    {"question": "", "answer": 3.0, "turns": None, "n": -(2**60)},
]


def write_parquet(path: Path, rows: list[dict[str, Any]], **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path, **how)
    return path


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path | str) -> list[dict[str, Any]]:
    return [row for _, _, row in rows_of(find(str(path)).train)]


def test_parquet_gives_the_rows_of_jsonl(tmp_path: Path) -> None:
    lines = read(write_lines(tmp_path / "a.jsonl", ROWS))
    assert lines == ROWS
    for number, how in enumerate(({}, {"row_group_size": 1, "compression": "zstd"})):
        assert read(write_parquet(tmp_path / f"{number}.parquet", ROWS, **how)) == ROWS


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUE = st.fixed_dictionaries(
    {
        "text": st.none() | TEXT,
        "number": st.none() | st.integers(-(2**63), 2**63 - 1),
        "float": st.floats(allow_nan=False, allow_infinity=False),
        "turns": st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}), max_size=2),
    }
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(VALUE, min_size=1, max_size=5))
def test_any_rows_are_the_same_in_both_formats(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    lines = read(write_lines(tmp_path / "a.jsonl", rows))
    assert read(write_parquet(tmp_path / "a.parquet", rows)) == lines


def test_what_datasets_saves_gives_the_same_rows(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(tmp_path / "one", num_shards=2)
    assert read(tmp_path / "one") == ROWS
    parts = datasets.DatasetDict(train=whole.select([2, 0]), test=whole.select([1]))
    parts.save_to_disk(tmp_path / "parts")
    found = find(str(tmp_path / "parts"))
    assert [row for _, _, row in rows_of(found.train)] == [ROWS[2], ROWS[0]]
    assert [row for _, _, row in rows_of(found.test)] == [ROWS[1]]
    whole.to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ROWS
    (tmp_path / "one" / "state.json").write_text('{"_data_files": [{"filename": "../x"}]}')
    with pytest.raises(TaskError, match=r"state\.json is not as `datasets` writes it"):
        find(str(tmp_path / "one"))


def test_shards_of_the_hub_are_read_in_order_and_test_apart(tmp_path: Path) -> None:
    for number, row in enumerate(ROWS[:2]):
        write_parquet(tmp_path / "data" / f"train-0000{number}-of-00002.parquet", [row])
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", ROWS[2:])
    found = find(str(tmp_path))
    assert [row["question"] for _, _, row in rows_of(found.train)] == ["1+1?", "ünïcode  😀"]
    assert [row["question"] for _, _, row in rows_of(found.test)] == [""]
    (tmp_path / "train.jsonl").write_text("{}\n")
    with pytest.raises(TaskError, match=r"train\.jsonl and train-00000"):
        find(str(tmp_path))


def test_numbers_are_as_jsonl_writes_them(tmp_path: Path) -> None:
    from decimal import Decimal

    columns = {
        "question": ["a", "b"],
        "answer": pa.array([0.1, 16777216.0], pa.float32()),
        "exact": pa.array([Decimal("1.50"), None]),
    }
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")

    def answers(column: str) -> set[str]:
        options = {"path": str(tmp_path / "a.parquet"), "answer_field": column}
        source = open_task(TaskSettings("jsonl", options, held_out=1))
        return {p.answer for p in source.train(1, 1) + source.held_out(1)}

    assert answers("answer") == {"0.1", "16777216.0"}
    with pytest.raises(TaskError, match=r"a\.parquet:2: the field 'exact' is null"):
        answers("exact")


def test_problems_are_the_same_in_every_format(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {n}?", "solution": str(n)} for n in range(8)]

    def problems(path: Path) -> object:
        source = open_task(TaskSettings("jsonl", {"path": str(path)}, held_out=3))
        return source.train(1, 5), source.held_out(3)

    lines = problems(write_lines(tmp_path / "a.jsonl", rows))
    assert problems(write_parquet(tmp_path / "a.parquet", rows)) == lines


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    good = write_parquet(tmp_path / "good.parquet", ROWS).read_bytes()
    bad = {
        "truncated.parquet": (good[: len(good) // 2], "cannot be read as Parquet"),
        "no_footer.parquet": (good[:-8], "cannot be read as Parquet"),
        "text.parquet": (b'{"question": "a"}\n', "cannot be read as Parquet"),
        "empty.parquet": (b"", "cannot be read as Parquet"),
        "text.arrow": (b"words", "cannot be read as Arrow"),
        "middle.parquet": (good[:4] + b"\xff" * 60 + good[64:], "cannot be read as Parquet"),
    }
    for name, (content, complaint) in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TaskError) as caught:
            read(tmp_path / name)
        assert complaint in str(caught.value) and name in str(caught.value)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    parquet.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "none.parquet")
    with pytest.raises(TaskError, match=r"none\.parquet: the file has no rows"):
        read(tmp_path / "none.parquet")
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(TaskError, match="the column 'a' is there twice"):
        read(tmp_path / "twice.parquet")


@pytest.mark.parametrize(
    ("column", "complaint"),
    [
        ({"answer": ["1", None]}, r":2: the field 'answer' is null"),
        ({"answer": [True, False]}, r":1: the field 'answer' is true"),
        ({"answer": [[1], [2]]}, r":1: the field 'answer' is \[1\]"),
        ({"answer": [b"1", b"2"]}, r":1: the field 'answer' is b'1'"),
        ({"answer": [1.0, float("nan")]}, r":2: NaN is no number"),
        ({"other": ["1", "2"]}, r":1: no field 'answer', 'solution' or 'ground_truth'; the row"),
    ],
)
def test_a_column_of_the_wrong_kind_is_named_with_its_row(
    tmp_path: Path, column: dict[str, list[Any]], complaint: str
) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"question": ["a", "b"], **column}), path)
    with pytest.raises(TaskError, match=complaint):
        open_task(TaskSettings("jsonl", {"path": str(path)}, held_out=1))


def test_a_folder_of_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "main" / "train-00000-of-00001.parquet", ROWS)
    asked = []

    def fetch(address: str, kind: str, files: list[str]) -> Path:
        asked.append((address, kind, files[0]))
        return tmp_path

    monkeypatch.setattr("interlock.tasks.data.hub.fetch", fetch)
    assert read("hf:org/name/main") == read("hf:org/name/main@v1") == ROWS
    assert asked[0] == ("hf:org/name", "dataset", "main/train.jsonl")
    assert asked[1][0] == "hf:org/name@v1"
    with pytest.raises(TaskError, match="where it has them in a folder, write hf:org/name/folder"):
        find("hf:org/name")
    monkeypatch.undo()
    with pytest.raises(TaskError, match=r"there are 'main' in it"):
        find(str(tmp_path))
    with pytest.raises(UserError, match=r"there is no org/name; .*write hf:org/name"):
        find("org/name")
    assert find(str(write_lines(tmp_path / "rows.txt", ROWS))) == DataFiles([tmp_path / "rows.txt"])


def test_a_time_of_a_zone_that_nobody_knows_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    times = pa.array([10**18], pa.timestamp("ns", tz="Mars/Olympus"))
    parquet.write_table(pa.table({"question": ["a"], "asked": times}), path)
    with pytest.raises(TaskError, match=r"the column 'asked' cannot be read: .*Mars/Olympus"):
        read(path)
