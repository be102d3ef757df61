import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Problem
from interlock.tasks import open_task

GSM8K = Path(os.environ.get("INTERLOCK_GSM8K", "../shared/data/gsm8k"))
WriteJsonl = Callable[..., Path]


def _row(number: int) -> dict[str, str]:
    return {"question": f"Question {number}?", "answer": str(number)}


def _open(path: Path | str, held_out: int = 2, name: str = "jsonl", **options: Any) -> Any:
    return open_task(TaskSettings(name, {"path": str(path), **options}, held_out=held_out))


def _answers(problems: list[Any]) -> set[str]:
    return {problem.answer for problem in problems}


def test_one_file_is_split_without_overlap(write_jsonl: WriteJsonl) -> None:
    source = _open(write_jsonl("a.jsonl", *map(_row, range(10))), held_out=4)
    held_out, training = _answers(source.held_out(4)), _answers(source.train(0, 6))
    assert held_out | training == {str(i) for i in range(10)}
    assert len(held_out) == 4 and len(training) == 6 and source.dropped == 0


def test_repeated_questions_are_dropped_and_counted(write_jsonl: WriteJsonl) -> None:
    again = {"question": " Question  1? ", "answer": "other"}  # the same but for white space
    path = write_jsonl("a.jsonl", *map(_row, range(5)), again, "", _row(4))
    source = _open(path, held_out=1)
    assert source.dropped == 2
    assert _answers(source.train(0, 4) + source.held_out(1)) == set("01234")


def test_held_out_comes_from_test_jsonl_alone(write_jsonl: WriteJsonl) -> None:
    write_jsonl("d/train.jsonl", *map(_row, range(6)))
    path = write_jsonl("d/test.jsonl", *map(_row, [5, 6, 7, 8, 8])).parent
    source = _open(path, held_out=4)
    assert _answers(source.held_out(4)) == set("5678")
    assert _answers(source.train(0, 5)) == set("01234")
    assert source.dropped == 2  # question 5 from training, the second 8 from the test file
    small = _open(path, held_out=1)
    assert _answers(small.train(0, 5)) == set("01234"), "unused test rows never reach training"


def test_fields_mark_instruction_and_system(write_jsonl: WriteJsonl) -> None:
    row = {"q": "How many?", "a": "one and two\n#### 3"}
    path = write_jsonl("a.jsonl", row, {"q": "Half?", "a": "#### x #### 0.5"})
    options = {"path": str(path), "question_field": "q", "answer_field": "a"}
    options |= {"answer_after": "####", "instruction": "Box it."}
    source = open_task(TaskSettings("jsonl", options, held_out=1, system="S"))
    problems = source.train(0, 1) + source.held_out(1)
    by_answer = {problem.answer: problem for problem in problems}
    assert set(by_answer) == {"3", "0.5"}
    assert by_answer["3"].messages == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "How many?\nBox it."},
    ]


def test_ids_follow_the_content_not_the_place(write_jsonl: WriteJsonl) -> None:
    def ids(path: Path) -> dict[str, str]:
        source = _open(path, held_out=1)
        return {p.answer: p.id for p in source.train(0, 2) + source.held_out(1)}

    first = ids(write_jsonl("a.jsonl", *map(_row, [1, 2, 3])))
    assert first == ids(write_jsonl("b.jsonl", *map(_row, [3, 1, 2])))
    assert first["1"].startswith("jsonl:") and len(set(first.values())) == 3


def test_numbers_serve_as_answers(write_jsonl: WriteJsonl) -> None:
    written = ["3", "0.5", "0.00001", "1e16", "-2.50E-3", "1e-320", "12345678901234567890.5"]
    rows = [f'{{"question": "{number}", "answer": {number}}}' for number in written]
    source = _open(write_jsonl("a.jsonl", *rows), held_out=1)
    found = source.train(1, 6) + source.held_out(1)
    assert {p.messages[0]["content"]: p.answer for p in found} == {
        "3": "3",
        "0.5": "0.5",
        "0.00001": "0.00001",
        "1e16": "1" + "0" * 16,
        "-2.50E-3": "-0.00250",
        "1e-320": "0." + "0" * 319 + "1",
        "12345678901234567890.5": "12345678901234567890.5",
    }


def test_a_byte_order_mark_is_no_part_of_the_first_row(write_jsonl: WriteJsonl) -> None:
    path = write_jsonl("a.jsonl", "\ufeff" + '{"question": "a", "answer": "1"}', _row(2))
    assert _answers(_open(path, held_out=1).train(1, 1) + _open(path, held_out=1).held_out(1)) == {
        "1",
        "2",
    }


def _long(problem: Problem) -> str | None:
    return "too long; shorten it" if len(problem.messages[-1]["content"]) > 20 else None


def test_a_row_that_does_not_fit_is_refused_by_its_line_wherever_it_is(
    write_jsonl: WriteJsonl,
) -> None:
    rows = [_row(number) for number in range(40)]
    rows[30] = {"question": "word " * 2100, "answer": "30"}
    options = {"path": str(write_jsonl("a.jsonl", *rows))}
    for held_out in (1, 39):
        with pytest.raises(TaskError, match=r"a\.jsonl:31: too long; shorten it, or leave such"):
            open_task(TaskSettings("jsonl", options, held_out=held_out), _long)


def test_rows_that_do_not_fit_are_left_out_and_counted_when_asked(write_jsonl: WriteJsonl) -> None:
    rows = [_row(number) for number in range(10)]
    rows[3] = rows[7] = {"question": "word " * 9, "answer": "x"}
    options = {"path": str(write_jsonl("a.jsonl", *rows))}
    task = TaskSettings("jsonl", options, held_out=2, overlong="leave_out")
    source = open_task(task, _long)
    assert (source.left_out, source.dropped) == (2, 0)
    assert _answers(source.train(1, 6) + source.held_out(2)) == set("01245689")


def test_files_are_those_that_problems_and_verdicts_hang_on(
    write_jsonl: WriteJsonl, tmp_path: Path
) -> None:
    write_jsonl("d/train.jsonl", *map(_row, range(6)))
    data = write_jsonl("d/test.jsonl", *map(_row, [7, 8])).parent
    (tmp_path / "mine.py").write_text("import near, json, numpy\ndef f(p, a): from far import g\n")
    (tmp_path / "near.py").write_text("import nearer.still\n")
    (tmp_path / "nearer").mkdir()
    (tmp_path / "nearer" / "__init__.py").write_text("raise SystemExit('it was run')\n")
    (tmp_path / "nearer" / "still.py").write_text("")
    (tmp_path / "other.py").write_text("")
    source = _open(data, verifier=f"{tmp_path / 'mine.py'}:f")
    assert [str(path.relative_to(tmp_path)) for path in source.files] == [
        *("d/train.jsonl", "d/test.jsonl", "mine.py"),
        *("near.py", "nearer/__init__.py", "nearer/still.py"),
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not valid JSON: Expecting property name"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"question": "a", "answer": NaN}', "NaN is no number in JSON"),
        ('{"question": "a", "answer": 1, "more": -Infinity}', "-Infinity is no number in JSON"),
        ('{"question": "a", "answer": 1e999999999}', "too many digits"),
        ('{"question": "a", "answer": ' + "9" * 5000 + "}", "a number of 5000 digits"),
        ("[1]", "expected a JSON object"),
        (
            '{"question": "a"}',
            "no field 'answer', 'solution' or 'ground_truth'; the row has 'question'",
        ),
        ('{"question": "", "answer": "1"}', "the field 'question' is \"\""),
        (
            '{"question": ["a"], "answer": "1"}',
            "a message needs a role and a content, not 'a' (in the column 'question')",
        ),
        ('{"question": "a", "answer": true}', "the field 'answer' is true"),
        ('{"question": "a", "answer": null}', "the field 'answer' is null"),
        ('{"question": "\\ud800", "answer": "1"}', "half of a surrogate pair"),
        ('{"question": "a", "answer": "1", "answer": "2"}', "the key 'answer' stands twice"),
        ('{"question": "a", "answer": "1", "more": {"b": 1, "b": 1}}', "the key 'b' stands twice"),
        ("\ufeff" + '{"question": "a", "answer": "1"}', "BOM"),  # of the first line alone
    ],
)
def test_bad_rows_are_named_by_file_and_line(
    write_jsonl: WriteJsonl, line: str, complaint: str
) -> None:
    path = write_jsonl("a.jsonl", _row(1), "", line)
    with pytest.raises(TaskError) as caught:
        _open(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_bad_files_and_options_are_named(write_jsonl: WriteJsonl, tmp_path: Path) -> None:
    good = write_jsonl("good.jsonl", *map(_row, range(3)))
    empty = write_jsonl("empty.jsonl", "")
    same = tmp_path / "same"
    same.mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        (same / name).write_bytes(good.read_bytes())
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"question": "é"}'.encode("latin-1"))
    unmarked = {"answer_after": "####"}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"path": tmp_path / "none.jsonl"}, "there is no"),
        ({"path": tmp_path}, "has no train.jsonl"),
        ({"path": empty}, "empty.jsonl: the file is empty"),
        ({"path": latin}, "latin.jsonl:1: byte 14 is not UTF-8"),
        ({"path": good, "held_out": 3}, "has 3 different problems, too few to hold out 3"),
        ({"path": good, "held_out": 4}, "lower stage.task.held_out and stage.eval.problems"),
        ({"path": same}, "train.jsonl asks nothing that "),
        ({"path": good, **unmarked}, "good.jsonl:1: the answer has no '####'"),
        ({"path": good, "question": "q"}, "did you mean question_field?"),
        ({"path": good, "verifier": "x"}, "write path/to/file.py:function"),
        ({"path": good, "verifier": "none.py:f"}, "there is no file none.py"),
    ]
    for options, complaint in cases:
        with pytest.raises(TaskError) as caught:
            _open(**options)
        assert complaint in str(caught.value)
    with pytest.raises(TaskError, match=r"setting .path. is missing; give it as options\.path$"):
        open_task(TaskSettings("gsm8k"))


@pytest.mark.parametrize("option", ["path", "question_field", "answer_field", "answer_after"])
def test_an_option_that_says_nothing_is_refused(write_jsonl: WriteJsonl, option: str) -> None:
    path = write_jsonl("a.jsonl", *map(_row, range(5)))
    options = {"path": str(path), option: ""}
    with pytest.raises(TaskError, match=f"^task 'jsonl': {option} = '': expected str of length"):
        open_task(TaskSettings("jsonl", options, held_out=1))


def test_a_dataset_of_the_hub_is_named_so_or_not_looked_for(
    write_jsonl: WriteJsonl, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl("hub/train.jsonl", *map(_row, range(3))).parent
    asked = []

    def snapshot(dataset: str, **options: Any) -> str:
        asked.append((dataset, options["repo_type"], options["revision"]))
        return str(path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(TaskError, match=r"write hf:some-org/some-data$"):
        _open("some-org/some-data")
    assert not asked
    assert len(_open("hf:some-org/some-data@v2", held_out=1).train(0, 2)) == 2
    assert asked == [("some-org/some-data", "dataset", "v2")]


@pytest.mark.skipif(not GSM8K.is_dir(), reason="no GSM8K data; set INTERLOCK_GSM8K")
def test_gsm8k_splits_the_real_data() -> None:
    source = _open(GSM8K, held_out=1319, name="gsm8k")
    held_out, training = source.held_out(1319), source.train(0, 7473 - source.dropped)
    questions = [{p.messages[-1]["content"] for p in side} for side in (held_out, training)]
    assert [len(side) for side in questions] == [1319, 7473 - source.dropped]
    assert not questions[0] & questions[1]
    first = next(p for p in training if p.messages[-1]["content"].startswith("Natalia sold clips"))
    assert first.answer == "72"
