"""What a move leaves of a run, also where it is killed."""

import os
import shutil
import signal
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from a_move import HERE, THERE, a_move

from interlock.errors import RunError
from interlock.migrate import moving
from interlock.records.rl import DrawnProblems, Group, Problem, ScoredGroup
from interlock.rundir import Checkpoint, RunDir
from interlock.rundir.draws import Draws
from interlock.rundir.moving import discard_since, keep_checkpoint

CONFIG = {"learner": {"device": "cpu", "kernel": "onednn"}, "stage": [{"kind": "grpo", "steps": 9}]}


def lines(*steps: int) -> str:
    return "".join(f'{{"stage":0,"step":{step},"rollout":{{"groups":1}}}}\n' for step in steps)


def learned(run: RunDir, step: int) -> None:
    group = ScoredGroup(Group(Problem(f"p{step}", [], ""), [1], [], "w"), [])
    run.ledger.record(0, step, [group], [step])
    with run.checkpoint(0, step, keep=1) as directory:
        (directory / "masters").write_text(f"weights {step}")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """At step 3; steps 4 and 5 were learned on the other side of a move."""
    with closing(RunDir.create(tmp_path / "run", CONFIG, {}, {})) as made:
        for step in (1, 2, 3):
            learned(made, step)
        (made.path / "metrics.jsonl").write_text(lines(1, 2, 3))
        keep_checkpoint(made, made.checkpoints()[-1], 1)
        made.moved(a_move())
        for step in (4, 5):
            learned(made, step)
        for number in (1, 2, 3):
            Draws(made.ledger, 0).record(number, DrawnProblems(2 * number - 1, []))
        (made.path / "metrics.jsonl").write_text(lines(1, 2, 3, 4, 5))
        rows = made.data_file(0, "rows")
        rows.write_text("{}\n")
        os.utime(rows, (3e9, 3e9))
    return made.path


def _dying(own: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    def dying(*given: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return own(*given, **more)

    return dying


def killed_at(work: Callable[[], object], turn: int) -> bool:
    """Do the work in a process that is killed before its file operation of that turn (from 0).
    -> whether there was one
    """
    child = os.fork()
    if child == 0:
        left = [turn]
        for name in ("rename", "link", "unlink", "fsync"):
            setattr(os, name, _dying(getattr(os, name), left))
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_a_move_is_read_with_the_config_and_keeps_its_checkpoint(run: Path) -> None:
    view = RunDir.read(run)
    assert view.config["learner"] == {"device": "sim", "kernel": "torch"}
    assert view.manifest.moves == [a_move()]
    assert (run / "moves/01/checkpoint/masters").read_text() == "weights 3"
    assert [each.step for each in view.checkpoints()] == [5]
    (event,) = [each for each in view.events() if each.kind == "moved"]
    assert event.message == "learner goes on on sim, from stage 0 step 3; it was on cpu"
    # The recipe of today's side resumes it; that of the side it left does not, by itself.
    view.check_same_config(CONFIG | {"learner": THERE.settings})
    with pytest.raises(RunError, match=r'learner.device = "sim", not "cpu"'):
        view.check_same_config(CONFIG)


def test_a_run_is_held_by_one(run: Path) -> None:
    with RunDir.held(run), pytest.raises(RunError, match="is in use by process"), RunDir.held(run):
        pass
    with RunDir.held(run) as again:
        assert len(again.manifest.sessions) == 1


def test_a_kill_at_any_instant_of_a_move_leaves_a_run(run: Path, tmp_path: Path) -> None:
    back = a_move(before=THERE, after=HERE, step=5, undoes=1)

    def move() -> None:
        with RunDir.held(copy) as held:
            moving._made(held, back)

    seen, turn, killed = [], 0, True
    while killed:
        copy = Path(shutil.copytree(run, tmp_path / f"copy-{turn}"))
        killed = killed_at(move, turn)
        device = RunDir.read(copy).config["learner"]["device"]
        seen.append(device)
        resumed = RunDir.open(copy)
        assert resumed.checkpoints()[-1].step == 5
        if device == "cpu":
            assert (copy / "moves/02/checkpoint/masters").read_text() == "weights 5"
        resumed.close()
        turn += 1
    # On the old side up to one instant, on the new side from there on.
    first = seen.index("cpu")
    assert first > 5 and seen == ["sim"] * first + ["cpu"] * (len(seen) - first)


def test_what_came_since_is_put_aside(run: Path) -> None:
    with RunDir.held(run) as held:
        assert discard_since(held, a_move(), 1, 2)[:2] == (0, 3)
    view = RunDir.read(run)
    assert [each[:2] for each in view.checkpoints()] == [(0, 3)]
    assert (view.checkpoints()[0].path / "masters").read_text() == "weights 3"
    assert view.ledger.steps() == [(0, 1), (0, 2), (0, 3)]
    # What step 5 had shown was not known at step 3.
    assert [each.known for each in Draws(view.ledger, 0).read()] == [1, 3]
    assert [line.step for line in view.metrics()] == [1, 2, 3]
    assert not view.rows_file(0, "rows").exists()
    aside = run / "moves/02/discarded"
    assert (aside / "checkpoints/stage00-step000005/masters").read_text() == "weights 5"
    assert (aside / "metrics.jsonl").read_text() == lines(1, 2, 3, 4, 5)
    assert (aside / "data/00-rows.jsonl").read_text() == "{}\n"
    shutil.copyfile(aside / "ledger.sqlite", run / "ledger.sqlite")
    whole = RunDir.read(run)
    assert [step for _, step in whole.ledger.steps()] == [1, 2, 3, 4, 5]
    assert whole.ledger.identity == whole.manifest.ledger


def test_what_a_killed_attempt_has_put_aside_stays(run: Path) -> None:
    """It died before the manifest said so: of steps 4 and 5 that is all there is."""
    for _ in range(2):
        with RunDir.held(run) as held:
            discard_since(held, a_move(), 1, 2)
    first, second = (run / "moves/02" / name for name in ("discarded", "discarded-2"))
    assert (first / "metrics.jsonl").read_text() == lines(1, 2, 3, 4, 5)
    assert (first / "checkpoints/stage00-step000005/masters").read_text() == "weights 5"
    assert (second / "metrics.jsonl").read_text() == lines(1, 2, 3)


def test_what_a_kill_left_half_put_aside_goes_with_the_next_session(run: Path) -> None:
    (half := run / "moves/01/.tmp-1-discarded").mkdir()
    RunDir.open(run).close()
    assert not half.exists()


def test_a_kill_while_it_is_put_aside_leaves_a_run(run: Path, tmp_path: Path) -> None:
    def discard() -> None:
        with RunDir.held(copy) as held:
            discard_since(held, a_move(), 1, 2)

    turn, killed, weights = 0, True, set()
    while killed:
        copy = Path(shutil.copytree(run, tmp_path / f"copy-{turn}"))
        killed = killed_at(discard, turn)
        resumed = RunDir.open(copy)  # which holds the ledger against the metrics
        newest: Checkpoint = resumed.checkpoints()[-1]
        weights.add((newest.step, (newest.path / "masters").read_text()))
        if newest.step == 3:  # then all that went is there, whole
            kept = copy / "moves/02/discarded/checkpoints/stage00-step000005/masters"
            assert sha256(kept.read_bytes()).digest() == sha256(b"weights 5").digest()
        resumed.close()
        turn += 1
    assert weights == {(5, "weights 5"), (3, "weights 3")} and turn > 10


def test_which_move_stands() -> None:
    there, back = a_move(), a_move(undoes=1)
    assert moving.standing([]) is None
    assert moving.standing([there]) == 1
    assert moving.standing([there, back]) is None
    assert moving.standing([there, back, there]) == 3
    assert moving.standing([there, there, a_move(undoes=2)]) == 1
