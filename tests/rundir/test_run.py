import errno
import os
import re
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from interlock.config.reading import parse_recipe, to_tree
from interlock.errors import ConfigError, RunError
from interlock.records.metrics import StepMetrics, UpdateMetrics
from interlock.records.rl import ScoredGroup
from interlock.rundir import RunDir
from interlock.rundir.run import vacant

TREE: dict[str, Any] = {
    "name": "test",
    "model": {"path": "m"},
    "stage": [{"kind": "sft", "data": "a", "steps": 2, "optimizer": {"betas": (0.9, 0.95)}}],
    "checkpoint_every": 20,
}
VERSIONS = {"interlock": "0.1", "python": "3.11"}


def create(path: Path) -> RunDir:
    return RunDir.create(path, TREE, VERSIONS)


def step(stage: int, step: int, loss: float | None = None) -> StepMetrics:
    return StepMetrics(stage=stage, step=step, update=UpdateMetrics(loss=loss))


def contents(directory: Path) -> dict[str, bytes]:
    """All files but the empty index files that SQLite may leave beside a database it only read."""
    files = [path for path in directory.iterdir() if not path.name.endswith(("-shm", "-wal"))]
    return {path.name: path.read_bytes() for path in files}


def test_a_run_is_recorded_and_read_back(tmp_path: Path, make_group: Callable[..., Any]) -> None:
    with create(tmp_path / "run") as run:
        run.log(step(0, 1, 0.5))
        event = run.event("unqualified", "sim is used", worker="w1", device="sim")
        run.ledger.record(0, 1, [make_group("a", 1.0)], [0])
        with run.weights() as directory:
            (directory / "config.json").write_text("{}")
        assert RunDir.read(run.path).status == "running"
    view = RunDir.read(tmp_path / "run")
    assert view.status == "finished"
    assert view.config["stage"][0]["optimizer"]["betas"] == [0.9, 0.95]
    assert view.manifest.versions == VERSIONS
    [line] = view.metrics()
    assert line.time is not None and line.time > 1e9
    assert msgspec.structs.replace(line, time=None) == step(0, 1, 0.5)
    assert view.events() == [event] and event.time >= line.time
    assert (event.kind, event.worker, event.facts) == ("unqualified", "w1", {"device": "sim"})
    assert view.ledger.read(0, 1) == [make_group("a", 1.0)]
    assert os.listdir(view.path / "weights") == ["config.json"]
    [session] = view.manifest.sessions
    assert session.ended is not None and session.ended >= session.started


def test_the_last_line_of_a_step_counts(tmp_path: Path) -> None:
    run = create(tmp_path)
    for logged in [(0, 1, 1.0), (0, 2, 2.0), (1, 1, 9.0), (0, 2, 2.5), (0, 10, 3.0)]:
        run.log(step(*logged))
    lines = [(line.stage, line.step, line.update.loss) for line in run.metrics()]
    assert lines == [(0, 1, 1.0), (0, 2, 2.5), (0, 10, 3.0), (1, 1, 9.0)]


def test_a_directory_in_use_or_with_strangers_is_refused(tmp_path: Path) -> None:
    create(tmp_path / "run").finish()
    with pytest.raises(RunError, match="holds a run already; add --resume"):
        create(tmp_path / "run")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="not empty and holds no run"):
        create(tmp_path / "home")
    with pytest.raises(RunError, match="a file of this name is in the way"):
        create(tmp_path / "home" / "thesis.tex")
    with pytest.raises(RunError, match="a part of this path is a file"):
        create(tmp_path / "home" / "thesis.tex" / "run")
    assert os.listdir(tmp_path / "home") == ["thesis.tex"]


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o2775])
def test_a_directory_that_was_there_becomes_its_owners_alone(tmp_path: Path, mode: int) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(mode)
    create(tmp_path / "run").finish()
    assert (tmp_path / "run").stat().st_mode & 0o077 == 0


def test_what_a_kill_during_creation_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("1\n")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / ".tmp-1-manifest.json").write_text("{")
    create(tmp_path).finish()
    assert RunDir.read(tmp_path).config["name"] == "test"
    assert not (tmp_path / ".tmp-1-manifest.json").exists()


@pytest.mark.parametrize("how", [RunDir.open, RunDir.read])
def test_no_run_is_an_error_and_nothing_is_created(
    tmp_path: Path, how: Callable[[Path], Any]
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        with pytest.raises(RunError, match=f"no run in .*{name}"):
            how(tmp_path / name)
    assert os.listdir(tmp_path) == ["empty"] and os.listdir(tmp_path / "empty") == []


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    create(tmp_path).finish()
    (tmp_path / "manifest.json").write_text('{"versions": 3}')
    with pytest.raises(RunError, match=r"cannot read .*manifest\.json"):
        RunDir.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed = null, not 1"),
        ({"model": {"path": "n"}}, 'model.path = "m", not "n"'),
        ({"stage": [TREE["stage"][0] | {"steps": 1}]}, r"stage\[0\]\.steps = 2, not 1"),
        ({"stage": []}, "was run with 1 stages, not 0"),
    ],
)
def test_resuming_with_another_config_is_refused_and_changes_nothing(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with create(tmp_path) as run:
        run.log(step(0, 2))
    before = contents(tmp_path)
    with pytest.raises(RunError, match=message):
        RunDir.open(tmp_path, TREE | change)
    assert contents(tmp_path) == before


def test_a_run_inside_a_run_is_refused_before_there_is_anything_of_it(tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    create(outer).finish()
    (outer / "data").mkdir()
    (tmp_path / "link").symlink_to(outer / "data")
    before = sorted(outer.rglob("*"))
    for path in (outer / "sub", outer / "data" / "a" / "b", tmp_path / "link" / "x"):
        for begin in (create, vacant):
            with pytest.raises(RunError) as caught:
                begin(path)
            assert str(caught.value) == (
                f"{path} is inside the run {outer}, which it would become a part of; give a "
                "directory outside of it"
            )
    assert sorted(outer.rglob("*")) == before


def test_what_only_looks_like_a_run_above_is_none(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    create(tmp_path / "runs" / "a").finish()
    create(tmp_path / "runs" / "b").finish()  # beside one, not inside
    (tmp_path / "runs" / "a" / "away").symlink_to(tmp_path)
    create(tmp_path / "runs" / "a" / "away" / "c").finish()  # which is elsewhere
    assert (tmp_path / "c" / "manifest.json").is_file()
    for loop, other in (("x", "y"), ("y", "x")):
        (tmp_path / loop).symlink_to(tmp_path / other)
    vacant(tmp_path / "x" / "z")


def test_a_run_that_is_inside_another_already_goes_on(tmp_path: Path) -> None:
    inner = tmp_path / "outer" / "inner"
    create(inner).finish()
    create(tmp_path / "later").finish()
    for path in (tmp_path / "later").iterdir():  # as one that an older version let begin there
        path.rename(tmp_path / "outer" / path.name)
    RunDir.open(inner, TREE).finish()
    assert [event.kind for event in RunDir.read(inner).events()][:1] == ["resumed"]


def test_the_last_checkpoint_goes_only_with_the_run(tmp_path: Path) -> None:
    with create(tmp_path) as run:
        for number in (1, 2):
            with run.checkpoint(0, number, keep=0):
                pass
            assert [each.step for each in run.checkpoints()] == [number]
        run.prune_checkpoints(keep=3)
        assert len(run.checkpoints()) == 1
        run.prune_checkpoints(keep=0)
    assert run.checkpoints() == []


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    def of(*steps: int) -> dict[str, Any]:
        return TREE | {"stage": [TREE["stage"][0] | {"steps": each} for each in steps]}

    with RunDir.create(tmp_path, of(2, 2), VERSIONS) as run:
        run.log(step(0, 2))
        run.log(step(1, 2))
    for wrong in (of(3, 2), of(2, 1)):  # stage 1 has learned from stage 0; and what is done is done
        with pytest.raises(RunError, match="was run with stage"):
            RunDir.open(tmp_path, wrong)
    RunDir.open(tmp_path, of(2, 5)).finish()
    view = RunDir.read(tmp_path)
    assert [stage["steps"] for stage in view.config["stage"]] == [2, 5]
    assert "stage[1].steps = 2, not 5" in view.events()[-1].message


def test_every_setting_that_is_another_is_told(tmp_path: Path) -> None:
    create(tmp_path).finish()
    longer = {"stage": [TREE["stage"][0] | {"steps": 5}], "prices": "p.toml"}
    RunDir.open(tmp_path, TREE | longer | {"log": ["wandb"]}).finish()
    told = RunDir.read(tmp_path).events()[-1].message.removeprefix("resumed with another setting: ")
    assert sorted(told.split("; ")) == [
        'log = null, not ["wandb"]',
        'prices = null, not "p.toml"',
        "stage[0].steps = 2, not 5",
    ]


def test_a_run_of_an_older_format_is_read_but_not_gone_on_with(tmp_path: Path) -> None:
    create(tmp_path).finish()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as database:
        database.execute("PRAGMA user_version = 2")
    before = contents(tmp_path)
    with pytest.raises(RunError, match="has ledger format 2, which this version"):
        RunDir.open(tmp_path, TREE | {"seed": 1})  # whatever else may be wrong
    assert contents(tmp_path) == before
    assert RunDir.read(tmp_path).ledger.steps() == []


def test_a_whole_recipe_compares_equal_to_itself(tmp_path: Path) -> None:
    recipe = to_tree(parse_recipe(TREE))
    RunDir.create(tmp_path, recipe, VERSIONS).finish()
    run = RunDir.open(tmp_path, recipe | {"checkpoint_every": 1, "name": "other"})
    run.finish()
    assert run.config == msgspec.json.decode(msgspec.json.encode(recipe))


def test_how_a_run_ended(tmp_path: Path) -> None:
    with pytest.raises(ValueError), create(tmp_path / "failed"):
        raise ValueError("bad\nvalue")
    with pytest.raises(KeyboardInterrupt), create(tmp_path / "stopped"):
        raise KeyboardInterrupt
    create(tmp_path / "killed").close()  # what a SIGKILL leaves: "running", and no lock
    views = {name: RunDir.read(tmp_path / name) for name in ("failed", "stopped", "killed")}
    assert views["failed"].manifest.reason == "bad value"
    assert [view.status for view in views.values()] == ["failed", "interrupted", "interrupted"]


def test_a_mistake_that_shows_at_once_leaves_no_run_behind(tmp_path: Path) -> None:
    for logged in (0, 1):
        path = tmp_path / str(logged)
        with pytest.raises(ConfigError), create(path) as run:
            for number in range(logged):
                run.log(step(0, number))
            raise ConfigError("no Ray cluster there")
        assert path.exists() == bool(logged)
    assert RunDir.read(tmp_path / "1").status == "failed"


def test_resume_repairs_and_says_so(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.log(step(0, 1))
    with run.checkpoint(0, 1, keep=1) as directory:
        (directory / "x").write_text("1")
    run.close()
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"stage": 0, "st')
    (tmp_path / "checkpoints" / ".tmp-9-stage00-step000002").mkdir()
    with RunDir.open(tmp_path, TREE) as run:
        run.log(step(0, 2))
    view = RunDir.read(tmp_path)
    assert [line.step for line in view.metrics()] == [1, 2]
    assert [event.kind for event in view.events()] == ["resumed", "recovered"]
    assert view.events()[0].message == "resumed from stage 0 step 1"
    assert ".tmp-9-stage00-step000002; 16 bytes" in view.events()[1].message
    assert os.listdir(tmp_path / "checkpoints") == ["stage00-step000001"]
    assert len(view.manifest.sessions) == 2 and view.manifest.sessions[0].ended is None
    assert view.status == "finished"


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    run = create(tmp_path)
    assert run.latest_checkpoint() is None
    for stage, step in [(0, 9), (0, 10), (0, 1000000), (1, 2)]:
        with run.checkpoint(stage, step, keep=2) as directory:
            (directory / "x").write_text(f"{stage} {step}")
    assert [(kept.stage, kept.step) for kept in run.checkpoints()] == [(0, 1000000), (1, 2)]
    latest = run.latest_checkpoint()
    assert latest is not None and (latest.path / "x").read_text() == "1 2"
    with pytest.raises(ZeroDivisionError), run.checkpoint(1, 3, keep=2):
        raise ZeroDivisionError
    assert len(os.listdir(tmp_path / "checkpoints")) == 2


HOLD = """
import sys, time
from pathlib import Path
from interlock.rundir import RunDir
run = RunDir.create(Path(sys.argv[1]), {}, {})
print("held", flush=True)
time.sleep(60)
"""


def test_two_processes_cannot_write_one_run(tmp_path: Path, child: Callable[..., Any]) -> None:
    holder = child(HOLD, tmp_path)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"in use by process {holder.pid};"):
        RunDir.open(tmp_path)
    assert RunDir.read(tmp_path).status == "running"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert RunDir.read(tmp_path).status == "interrupted"
    RunDir.open(tmp_path).finish()
    assert RunDir.read(tmp_path).status == "finished"


def test_a_reader_writes_nothing(tmp_path: Path, make_group: Callable[..., ScoredGroup]) -> None:
    with create(tmp_path) as run:
        run.ledger.record(0, 1, [make_group("a", 1.0)], [0])
    before = contents(tmp_path)
    view = RunDir.read(tmp_path)
    assert view.ledger.count() == 1
    view.close()
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("now", "complaint"),
    [
        ({"data": "sha256 b", "template": "sha256 t"}, "another data (sha256 a, now sha256 b)"),
        ({"data": "sha256 a"}, "another template (sha256 t, now not there)"),
        (
            {"data": "sha256 a", "template": "sha256 t", "more": "sha256 m"},
            "another more (not there, now sha256 m)",
        ),
    ],
)
def test_a_run_goes_on_with_what_it_began_with_alone(
    now: dict[str, str], complaint: str, tmp_path: Path
) -> None:
    began = {"data": "sha256 a", "template": "sha256 t"}
    RunDir.create(tmp_path, TREE, VERSIONS, began).finish()
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(RunError, match=re.escape(complaint)):
        RunDir.open(tmp_path, TREE, now)
    assert (tmp_path / "manifest.json").read_bytes() == before
    RunDir.open(tmp_path, TREE, began).finish()


def test_a_run_that_recorded_no_inputs_goes_on_with_any(tmp_path: Path) -> None:
    RunDir.create(tmp_path, TREE, VERSIONS).finish()
    RunDir.open(tmp_path, TREE, {"data": "sha256 a"}).finish()


@pytest.mark.parametrize("seconds", ["1e300", "-1e18", "253402300800"])
def test_a_time_that_is_no_date_is_damage(seconds: str, tmp_path: Path) -> None:
    create(tmp_path / "run").finish("finished")
    path = tmp_path / "run" / "manifest.json"
    path.write_text(re.sub(r'("created": ?)[\d.]+', rf"\g<1>{seconds}", path.read_text()))
    with pytest.raises(RunError, match=r"cannot read .*manifest\.json: Expected `float`"):
        RunDir.read(tmp_path / "run")


def test_a_pipe_in_the_locks_place_is_refused_at_once(tmp_path: Path) -> None:
    create(tmp_path / "run").close()
    (tmp_path / "run" / "lock").unlink()
    os.mkfifo(tmp_path / "run" / "lock")
    with pytest.raises(RunError, match="a pipe or a device"):
        RunDir.open(tmp_path / "run", TREE)


def test_a_stage_that_is_added_may_read_from_the_hub(tmp_path: Path) -> None:
    """Its data set is known by a revision that the run did not have; the old ones stay."""
    first = {"stage 0: a": "sha256 1", "org/name": "revision 11"}
    began = to_tree(parse_recipe(TREE, source="test"))
    RunDir.create(tmp_path / "run", began, VERSIONS, first).finish()
    longer = TREE | {"stage": [*TREE["stage"], {"kind": "sft", "data": "hf:o/n", "steps": 1}]}
    tree = to_tree(parse_recipe(longer, source="test"))
    added = {"stage 1: b": "sha256 2", "o/n": "revision 22"}
    RunDir.open(tmp_path / "run", tree, first | added).close()
    assert RunDir.read(tmp_path / "run").manifest.inputs == first | added
    with pytest.raises(RunError, match="began with another org/name"):
        RunDir.open(tmp_path / "run", tree, first | added | {"org/name": "revision 12"})
    with pytest.raises(RunError, match="began with another o/n"):
        RunDir.open(tmp_path / "run", tree, first | added | {"o/n": "revision 23"})


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"stage": 5}, "$.stage"),
        ({"stage": {"a": 1}}, "$.stage"),
        ({"stage": [3]}, "$.stage["),
        ({"generator": 5}, "$.generator"),
        ({"generator": ["x"]}, "$.generator["),
        ({"generator": [{"env": [1]}]}, "$.generator["),
        ({"model": "x"}, "$.model"),
        ({"fleet": 3}, "$.fleet"),
        ({"learner": "x"}, "$.learner"),
    ],
)
def test_a_config_of_another_shape_is_one_line(
    tmp_path: Path, wrong: dict[str, Any], where: str
) -> None:
    with RunDir.create(tmp_path / "run", {}, {}):
        pass
    (tmp_path / "run" / "config.json").write_bytes(msgspec.json.encode(wrong))
    with pytest.raises(RunError) as told:
        RunDir.read(tmp_path / "run")
    said = str(told.value)
    assert "config.json: Expected" in said and f"`{where}" in said and "\n" not in said
    assert said.endswith("put it back from a copy of the run")


@pytest.mark.timeout(30)
def test_a_lock_that_is_a_pipe_is_waited_for_by_nobody(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", {}, {})
    (tmp_path / "run" / "lock").unlink()
    os.mkfifo(tmp_path / "run" / "lock")
    assert RunDir.read(tmp_path / "run").status == "interrupted"
    run.close()


def test_a_file_system_without_locks_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:  # as Lustre has it where it was mounted without flock
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", unknown)
    told = f"{tmp_path / 'run'}: the file system keeps no locks (flock); mount it with them, or "
    with pytest.raises(RunError, match=re.escape(told)):
        create(tmp_path / "run")
