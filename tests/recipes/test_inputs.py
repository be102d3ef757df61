"""What a run hangs on: what changes it, and what does not."""

import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest
from chat_templates import PLAIN

from interlock.config.reading import load_recipe
from interlock.errors import ConfigError, RunError, TaskError
from interlock.models.tokenizer import Tokenizer
from interlock.recipes.evaluate import measure, practised
from interlock.recipes.inputs import identify
from interlock.recipes.sinks import Sink
from interlock.recipes.train import train
from interlock.rundir import RunDir


def test_a_changed_input_is_refused_on_resume_and_named(tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(
        "import beside\n\ndef reward(problem, answer): return len(answer) % 5\n"
    )
    (tmp_path / "beside.py").write_text("")
    template = tmp_path / "mine.jinja"
    template.write_text(PLAIN)
    asked = ["stage.steps=2", "stage.eval.every=0", f"model.chat_template={template}"]
    train(load_recipe(tiny_recipe, asked), tmp_path / "run")
    inputs = RunDir.read(tmp_path / "run").manifest.inputs
    assert {*inputs} == {
        *("chat template", "tokenizer"),
        *("stage 0: problems.jsonl", "stage 0: reward.py", "stage 0: beside.py"),
    }
    assert all(value.startswith("sha256 ") for value in inputs.values())
    changes = {
        "problems.jsonl": ("stage 0: problems.jsonl", lambda text: text[text.index("\n") + 1 :]),
        "reward.py": ("stage 0: reward.py", lambda text: text.replace("5", "7")),
        "beside.py": ("stage 0: beside.py", lambda text: "x = 1\n"),
        "mine.jinja": ("chat template", lambda text: text + " "),
    }
    for file, (name, change) in changes.items():
        before = (tmp_path / file).read_text()
        (tmp_path / file).write_text(change(before))
        with pytest.raises(RunError, match=f"began with another {name} "):
            train(load_recipe(tiny_recipe, asked), tmp_path / "run", resume=True)
        (tmp_path / file).write_text(before)
    before = (tmp_path / "problems.jsonl").read_text()
    (tmp_path / "problems.jsonl").write_text(before[: before.index("\n") + 1])
    with pytest.raises(RunError, match=r"has 1 different.* did: its data are others now; put them"):
        train(load_recipe(tiny_recipe, asked), tmp_path / "run", resume=True)
    (tmp_path / "problems.jsonl").write_text(before)
    train(load_recipe(tiny_recipe, asked), tmp_path / "run", resume=True)


def test_a_run_is_not_measured_on_data_that_it_did_not_begin_with(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    """Other problems would be held out, and some that are asked were learned."""
    train(load_recipe(tiny_recipe, ["stage.steps=2", "stage.eval.every=0"]), tmp_path / "run")
    run, settings = str(tmp_path / "run"), load_recipe(tiny_recipe).generator[0]
    exam = practised(tmp_path / "run")
    asked = [each.group.problem.id for each in measure(run, exam, settings, Sink())]
    data = tmp_path / "problems.jsonl"
    before = data.read_text()
    data.write_text(before[before.index("\n") + 1 :])
    with pytest.raises(ConfigError, match=r"problems.jsonl is not as .*run began with it"):
        measure(run, exam, settings, Sink())
    other = exam._replace(files={})  # as a task that is named
    assert [each.group.problem.id for each in measure(run, other, settings, Sink())] != asked


def test_the_time_that_a_template_is_told_is_that_of_the_run(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    template = tmp_path / "timed.jinja"
    template.write_text("{{ strftime_now('%H:%M:%S') }} {{ messages[-1].content }}")
    asked = ["stage.steps=2", "stage.eval.every=0", f"model.chat_template={template}"]
    recipe = load_recipe(tiny_recipe, asked)
    train(recipe, tmp_path / "run")
    train(recipe, tmp_path / "run", resume=True)
    first = RunDir.read(tmp_path / "run")
    clock = datetime.fromisoformat(first.config["model"]["clock"])
    assert abs((datetime.now() - clock).total_seconds()) < 3600
    tokenizer = Tokenizer.load(tmp_path / "run" / "weights")
    assert practised(first.path).clock == clock
    told = f"{clock:%H:%M:%S} "
    for scored in [*first.ledger.read(0, 1), *first.ledger.read(0, 2)]:
        assert tokenizer.decode(scored.group.prompt_tokens).startswith(told)
    again = load_recipe(tiny_recipe, [*asked, f"model.clock={clock.isoformat()}"])
    train(again, tmp_path / "again")
    other = RunDir.read(tmp_path / "again")
    assert [each.rewards for each in other.ledger.read(0, 2)] == [
        each.rewards for each in first.ledger.read(0, 2)
    ]


def test_files_of_one_name_and_of_the_hub(smollm2: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(smollm2)
    revision = "0123456789" * 4
    snapshot = tmp_path / "datasets--org--some-data" / "snapshots" / revision
    paths = []
    for number, directory in enumerate([tmp_path / "a", tmp_path / "b", snapshot]):
        directory.mkdir(parents=True)
        paths.append(directory / "train.jsonl")
        paths[-1].write_text(json.dumps(number))
    found = identify(smollm2, tokenizer, [paths[:2], paths[2:]])
    assert found["org/some-data"] == f"revision {revision}"
    digests = [found[f"stage {name}"] for name in ("0: train.jsonl", "1: train.jsonl")]
    assert len({*digests, found["stage 0: train.jsonl (another)"]}) == 3


def test_a_resumed_run_takes_the_revision_of_the_hub_that_it_began_with(
    tiny_recipe: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, moved = "0123456789" * 4, "9876543210" * 4
    asked_for = []

    def snapshot(name: str, revision: str | None, **_: object) -> str:
        asked_for.append(revision)
        newest = began if len(asked_for) == 1 else moved
        place = tmp_path / "models--org--name" / "snapshots" / (revision or newest)
        if not place.exists():
            shutil.copytree(tiny_model, place)
        return str(place)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    asked = ["model.path=hf:org/name", "stage.eval.every=0"]
    train(load_recipe(tiny_recipe, [*asked, "stage.steps=2"]), tmp_path / "run")
    view = RunDir.read(tmp_path / "run")
    assert view.config["model"]["path"] == f"hf:org/name@{began}"
    assert view.manifest.inputs["org/name"] == f"revision {began}"
    train(load_recipe(tiny_recipe, [*asked, "stage.steps=3"]), tmp_path / "run", resume=True)
    assert asked_for == [None, began]


def test_a_row_without_room_is_refused_before_anything_is_written_or_left_out_and_told(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (tmp_path / "problems.jsonl").read_text().splitlines()]
    rows[30]["question"] = "word " * 2100
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["stage.steps=2", "stage.eval.every=0"]
    with pytest.raises(TaskError, match=r"problems\.jsonl:31: a prompt of 21\d\d tokens and"):
        train(load_recipe(tiny_recipe, asked), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    asked.append("stage.task.overlong=leave_out")
    train(load_recipe(tiny_recipe, asked), tmp_path / "run")
    events = [(event.kind, event.message) for event in RunDir.read(tmp_path / "run").events()]
    assert events == [("rows_left_out", "1 rows are too long: left out")]
