"""`interlock label`: pass rates against a plain loop, going on, and what is not mixed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from running import DEADLINE, ENVIRONMENT

from interlock.config.reading import parse_sampling, parse_task
from interlock.config.schema import GeneratorSettings
from interlock.errors import ConfigError, RunError, UserError
from interlock.label import measuring
from interlock.label.measuring import Measuring, label_all
from interlock.label.review.exchange import to_trl
from interlock.label.rows import held, read
from interlock.models.huggingface import read_architecture
from interlock.records.rl import Problem
from interlock.workers.generator import open_generator

VERIFIER = """
def lengthy(problem, answer):
    return len(answer) % 2 == 0
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = [{"question": f"Say {number}", "answer": str(number)} for number in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    (tmp_path / "judge.py").write_text(VERIFIER)
    return path


def how(data: Path, samples: int = 3) -> Measuring:
    verifier = f"options.verifier={data.parent / 'judge.py'}:lengthy"
    task = parse_task("jsonl", 1, [f"options.path={data}", verifier])
    return Measuring(task, samples, parse_sampling(1.0, 12, []))


def run(data: Path, model: Path, out: Path, notes: list[str] | None = None, samples: int = 3):
    told = [] if notes is None else notes
    settings = GeneratorSettings(dtype="float32", kernel="torch")
    return label_all(how(data, samples), str(model), out, settings, told.append, lambda *_: None)


def test_rates_are_those_of_a_plain_loop(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    rows = run(data, tiny_model, tmp_path / "labels.jsonl", notes)
    assert notes[-1] == "1 rows repeat the question of another, and are left out"
    engine = open_generator(GeneratorSettings(), tiny_model, None, "oracle")
    problems, _ = measuring.problems_of(how(data).task)
    assert [row.question for row in rows] == [f"Say {number}" for number in range(6)]
    for row, group in zip(
        rows, engine.generate(problems, 3, how(data).sampling, seed=0), strict=True
    ):
        texts = [each.text for each in group.completions]
        assert [each.text for each in row.samples] == texts
        assert row.pass_rate == sum(len(text) % 2 == 0 for text in texts) / 3
        assert row.tokens == sum(len(each.tokens) for each in group.completions) / 3
    setting, kept = read(tmp_path / "labels.jsonl")
    assert kept == rows and setting.samples == 3


def test_it_goes_on_behind_a_torn_line(
    tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_PART", 2)
    out = tmp_path / "labels.jsonl"
    whole = run(data, tiny_model, out)
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:4]) + lines[4][:20])
    assert run(data, tiny_model, out) == whole
    assert sorted(out.read_bytes().splitlines(keepends=True)) == sorted(lines)


def test_nothing_is_mixed(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.jsonl"
    run(data, tiny_model, out)
    with pytest.raises(RunError, match=r"was measured otherwise \(samples\); give another"):
        run(data, tiny_model, out, samples=2)
    data.write_text(data.read_text().replace('"answer": "3"', '"answer": "4"'))
    with pytest.raises(RunError, match=r"has the answer '3' for jsonl:.* and the data now '4'"):
        run(data, tiny_model, out)


def test_data_and_model_may_lie_elsewhere_and_lose_problems(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels.jsonl"
    whole = run(data, tiny_model, out)
    copied = Path(shutil.copytree(tiny_model, tmp_path / "copied"))
    lines = data.read_text().splitlines(keepends=True)
    data.write_text("".join(lines[1:4]))
    roundabout = data.parent / ".." / data.parent.name / data.name
    notes: list[str] = []
    assert run(roundabout, copied, out, notes) == whole[1:4]
    assert notes == [f"3 rows of {out} are of no problem of {roundabout}; they stay"]
    assert len(read(out)[1]) == 6
    with pytest.raises(RunError, match=r"was measured otherwise \(its data were data\.jsonl\)"):
        run(data.rename(tmp_path / "others.jsonl"), tiny_model, out)


def test_a_file_that_is_no_labels_stays_as_it_is(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    torn = data.read_bytes().rstrip(b"\n")
    data.write_bytes(torn)
    with pytest.raises(RunError, match=r"setting\.json is gone"):
        run(data, tiny_model, data)
    assert data.read_bytes() == torn


def test_one_labels_at_a_time(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.jsonl"
    with held(out), pytest.raises(RunError, match="is being labelled or reviewed by another"):
        run(data, tiny_model, out)


def test_a_prompt_that_does_not_fit_is_a_row(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    with data.open("a") as file:
        file.write(json.dumps({"question": "word " * 400, "answer": "1"}) + "\n")
    rows = run(data, tiny_model, tmp_path / "labels.jsonl")
    assert [row.mark == "unfit" for row in rows] == [False] * 6 + [True]
    assert "tokens, of 244 there are" in rows[-1].why


def test_labels_are_a_data_set(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.jsonl"
    rows = run(data, tiny_model, out)
    again, _ = measuring.problems_of(parse_task("jsonl", 1, [f"options.path={out}"]))
    assert [(each.id, each.answer) for each in again] == [(row.id, row.answer) for row in rows]


TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is 2?"},
    {"role": "assistant", "content": "two"},
]


def test_a_conversation_is_asked_again_as_it_was(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    """By what comes of it as a data set, and by what is exported for TRL."""
    rows = [
        {"prompt": [{"role": "user", "content": "And 1?"}], "solution": "1"},
        {
            "prompt": [*TURNS, {"role": "user", "content": "And 3?"}],
            "solution": "3",
            "chat_template_kwargs": {"thinking_budget": 7},
        },
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, trl = tmp_path / "labels.jsonl", tmp_path / "trl.jsonl"
    run(data, tiny_model, out, samples=1)
    kept = read(out)[1]
    assert kept[1].text == "\n\n".join(
        ["system: Be short.", "user: What is 2?", "assistant: two", "user: And 3?"]
    )
    trl.write_text("".join(json.dumps(row) + "\n" for row in to_trl(kept)[0]))
    asked, _ = measuring.problems_of(how(data).task)
    assert asked[1].messages[:3] == TURNS and asked[1].template == {"thinking_budget": 7}
    for path in (out, trl):
        again, _ = measuring.problems_of(parse_task("jsonl", 1, [f"options.path={path}"]))
        assert [replace_task(each) for each in again] == [replace_task(each) for each in asked]


def replace_task(problem: Problem) -> Problem:
    return msgspec.structs.replace(problem, task="")


def test_what_a_task_sets_for_all_is_not_in_the_rows(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    options = [f"options.path={data}", "system=Be short.", "template.a=1"]
    task = replace(how(data), task=parse_task("jsonl", 1, options))
    out, generator = tmp_path / "labels.jsonl", GeneratorSettings()
    rows = label_all(task, str(tiny_model), out, generator, print, lambda *_: None)
    assert (rows[0].question, rows[0].chat_template_kwargs) == ("Say 0", {})


def test_answers_that_leave_no_room_for_a_prompt_are_refused(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    """Else every row would be unfit."""
    context, out = read_architecture(tiny_model).context, tmp_path / "labels.jsonl"
    sampling, before = parse_sampling(1.0, context, []), sorted(tmp_path.iterdir())
    asked, generator = replace(how(data), sampling=sampling), GeneratorSettings()
    with pytest.raises(ConfigError, match=f"--max-tokens {context}: prompt and answer have"):
        label_all(asked, str(tiny_model), out, generator, lambda _: None, lambda *_: None)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"generator": GeneratorSettings(device="gpu:7")}, "device 'gpu:7' cannot be used here"),
        ({"verifier": "odd"}, "has no function 'odd'"),
        ({"model": "cut"}, "cannot be read"),
    ],
)
def test_nothing_is_written_before_all_that_it_takes_is_there(
    tiny_model: Path, data: Path, tmp_path: Path, changed: dict[str, Any], why: str
) -> None:
    shutil.copytree(tiny_model, tmp_path / "cut")
    os.truncate(tmp_path / "cut" / "model.safetensors", 1000)
    model = tmp_path / "cut" if "model" in changed else tiny_model
    verifier = f"options.verifier={data.parent / 'judge.py'}:{changed.get('verifier', 'lengthy')}"
    task = parse_task("jsonl", 1, [f"options.path={data}", verifier])
    before, generator = sorted(tmp_path.iterdir()), changed.get("generator", GeneratorSettings())
    out = tmp_path / "labels.jsonl"
    with pytest.raises(UserError, match=why):
        label_all(replace(how(data), task=task), str(model), out, generator, print, lambda *_: None)
    assert sorted(tmp_path.iterdir()) == before


def test_what_answers_were_judged_and_asked_by_is_not_mixed(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    model, out, lines = tmp_path / "model", tmp_path / "labels.jsonl", data.read_text()
    shutil.copytree(tiny_model, model)
    data.write_text("".join(lines.splitlines(keepends=True)[:3]))
    run(data, model, out)
    data.write_text(lines)
    (tmp_path / "judge.py").write_text(VERIFIER.replace("== 0", "== 1"))
    with pytest.raises(RunError, match=r"measured otherwise \(verifier file judge\.py\); give"):
        run(data, model, out)
    (tmp_path / "judge.py").write_text(VERIFIER)
    (model / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(RunError, match=r"measured otherwise \(chat template\); give another --out"):
        run(data, model, out)
    (model / "chat_template.jinja").unlink()
    assert len(run(data, model, out)) == 6


def test_the_time_that_a_template_tells_stays(
    tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are gone on with another day are those of one that was not cut off."""
    model, out = tmp_path / "model", tmp_path / "labels.jsonl"
    shutil.copytree(tiny_model, model)
    template = "{{ strftime_now('%f') }} {{ messages[0]['content'] }}"
    (model / "chat_template.jinja").write_text(template)
    monkeypatch.setattr(measuring, "_PART", 2)
    whole = run(data, model, out)
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:2]))
    assert run(data, model, out) == whole


def test_a_task_without_data(tiny_model: Path, tmp_path: Path) -> None:
    task = parse_task("arithmetic", 1, [])
    with pytest.raises(ConfigError, match="task 'arithmetic' has no data to label"):
        measuring.problems_of(task)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "interlock.cli", "label", *arguments]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--samples", "0"], "--samples 0: give a number from 1 to 1024"),
        (["--easy", "0.2", "--hard", "0.5"], "--hard 0.5 and --easy 0.2: give shares"),
        (["--task", "arithmetic"], "arithmetic"),
        (["--out", "/"], "--out / is a directory; give the name of a file"),
        ([], "there is no /nowhere.jsonl"),
    ],
)
def test_mistakes_are_one_line(tiny_model: Path, arguments: list[str], why: str) -> None:
    done = subprocess.run(
        command("/nowhere.jsonl", "--model", str(tiny_model), *arguments),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and why in line


def test_killed_and_begun_again_it_ends_in_the_same_rows(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    rows = [{"question": f"Say {number}", "answer": str(number)} for number in range(200)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    common = [str(data), "--model", str(tiny_model), "--samples", "2", "--max-tokens", "24"]
    subprocess.run(
        command(*common, "--out", str(whole)), env=ENVIRONMENT, check=True, timeout=DEADLINE
    )
    child = subprocess.Popen(command(*common, "--out", str(cut)), env=ENVIRONMENT)
    deadline = time.monotonic() + DEADLINE
    while not cut.exists():
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait(timeout=DEADLINE)
    assert len(cut.read_bytes().splitlines()) < 200
    done = subprocess.run(
        command(*common, "--out", str(cut)),
        env=ENVIRONMENT,
        check=True,
        timeout=DEADLINE,
        capture_output=True,
        text=True,
    )
    assert cut.read_bytes() == whole.read_bytes()
    assert "200 problems" in done.stdout


def test_another_answer_to_the_same_question_is_told(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [("a", "1"), ("b", "2"), ("a", "1"), ("b", "3")]
    data.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    problems, told = measuring.problems_of(how(data).task)
    assert [each.answer for each in problems] == ["1", "2"]
    assert told == [
        f"{data}:4 has the answer '3' to a question of which '2' is kept: one of them is wrong",
        "2 rows repeat the question of another, and are left out",
    ]
