"""How many threads an update takes, and that a resumed run takes as many."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from others_told import Told, four_threads

from interlock.chips import threads
from interlock.config.reading import load_recipe
from interlock.learner.learner import Learner
from interlock.recipes.train import train
from interlock.recipes.update_threads import UpdateThreads
from interlock.records.metrics import StepMetrics
from interlock.rundir import RunDir

__all__ = ["four_threads"]
pytestmark = pytest.mark.usefixtures("four_threads")
TREE = {"model": {"path": "m"}, "stage": [{"kind": "sft", "data": "d", "steps": 9}]}


class OneLearner:
    device = torch.device("cpu")

    class ranks:
        size = 1


class Silent:
    def event(self, event: Any) -> None: ...


def of(run: RunDir, stage: int = 0, learner: Any = OneLearner) -> UpdateThreads:
    silent: Any = Silent()
    return UpdateThreads(stage, learner, run, silent)


def taken(
    each: UpdateThreads,
    run: RunDir,
    first: int,
    held: Sequence[float],
    monkeypatch: pytest.MonkeyPatch,
) -> list[int]:
    """torch's number in every step from `first` on, while others hold so many processors."""
    found = []
    for step, processors in enumerate(held, start=first):
        monkeypatch.setattr(Told, "held_now", processors)
        with each(step):
            found.append(torch.get_num_threads())
        assert torch.get_num_threads() == 4
        run.log(StepMetrics(stage=0, step=step, kind="sft"))
    return found


def told(run: RunDir) -> list[str]:
    return [event.message for event in run.events() if event.kind == "threads_changed"]


def test_an_update_takes_what_others_left_in_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunDir.create(tmp_path / "run", TREE, {}) as run:
        held = [0, 1, 1, 3.9, 0, 0]
        assert taken(of(run), run, 1, held, monkeypatch) == [4, 4, 3, 3, 2, 4]
        assert told(run) == [
            "step 3: the update takes 3 of 4 threads as other processes hold processors",
            "step 5: the update takes 2 of 4 threads as other processes hold processors",
            "step 6: the update takes 4 of 4 threads again",
        ]


def test_a_change_is_durable_before_the_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunDir.create(tmp_path / "run", TREE, {}) as run:
        each = of(run)
        taken(each, run, 1, [2], monkeypatch)
        with each(2):
            assert len(told(run)) == 1


def test_a_resumed_run_repeats_its_numbers_and_then_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunDir.create(tmp_path / "run", TREE, {}) as run:
        first = taken(of(run), run, 1, [0, 1, 2, 2, 0], monkeypatch)
        assert first == [4, 4, 3, 2, 2]
        with of(run)(6):  # killed at work: all threads again, were it not for the load
            pass
        events = told(run)
    # Back to step 3, on a machine that others leave alone; step 6 was perhaps at work.
    with RunDir.open(tmp_path / "run") as run:
        again = taken(of(run), run, 3, [0, 0, 0, 0, 0, 0], monkeypatch)
        assert again == [3, 2, 2, 2, 4, 4]
        assert told(run) == [*events, "step 7: the update takes 4 of 4 threads again"]


def test_another_stage_begins_with_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunDir.create(tmp_path / "run", TREE, {}) as run:
        assert taken(of(run), run, 1, [2, 2], monkeypatch) == [4, 2]
        with of(run, stage=1)(1):
            assert torch.get_num_threads() == 4


@pytest.mark.parametrize("why", ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "a device", "ranks"])
def test_a_number_that_is_not_ours_is_kept(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Given(OneLearner):
        device = torch.device("meta" if why == "a device" else "cpu")

        class ranks:
            size = 2 if why == "ranks" else 1

    if why.endswith("THREADS"):
        monkeypatch.setenv(why, "4")
    with RunDir.create(tmp_path / "run", TREE, {}) as run:
        assert taken(of(run, learner=Given), run, 1, [3, 3, 3], monkeypatch) == [4, 4, 4]
        assert told(run) == []


def test_a_short_update_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Told, "seconds", threads.WINDOW_S / 2)
    with RunDir.create(tmp_path / "run", TREE, {}) as run:
        assert taken(of(run), run, 1, [3, 3], monkeypatch) == [4, 4]


def test_the_learner_computes_on_them(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    whole = Learner._step

    def noted(self: Learner, *args: Any) -> Any:
        found.append(torch.get_num_threads())
        return whole(self, *args)

    monkeypatch.setattr(Learner, "_step", noted)
    monkeypatch.setattr(Told, "held_now", 1.0)
    train(load_recipe(tiny_recipe, ["stage.steps=3", "stage.eval.every=0"]), tmp_path / "run")
    assert found == [4, 3, 3]


def test_an_engine_at_work_around_it_keeps_its_own(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run", TREE, {}) as run:
        each = of(run)
        torch.set_num_threads(2)
        with each(1):
            assert torch.get_num_threads() == 4
        assert torch.get_num_threads() == 2


def test_no_more_threads_than_there_are_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunDir.create(tmp_path / "run", TREE, {}) as run:
        assert taken(of(run), run, 1, [1, 0], monkeypatch) == [4, 3]
        torch.set_num_threads(2)
        with of(run)(2):
            assert torch.get_num_threads() == 2
