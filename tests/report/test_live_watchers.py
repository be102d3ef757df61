"""Those who look at the live page: who comes is not left to wait, and is told of what is whole."""

import asyncio
import random
import re
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from running import DEADLINE

from interlock.mismatch import Mismatch
from interlock.records.metrics import (
    CostMetrics,
    RolloutMetrics,
    StepMetrics,
    StepSeconds,
    UpdateMetrics,
    WorkerMetrics,
)
from interlock.report import live
from interlock.report.live import following, telling, watchers
from interlock.report.live.drawn import FIGURES
from interlock.report.live.following import Following
from interlock.report.live.pace import RECENT
from interlock.report.live.series import Series
from interlock.report.live.watchers import FollowedRuns
from interlock.rundir import RunDir
from interlock.rundir.lines import Lines


def logged(path: Path, steps: int) -> Path:
    path.mkdir()
    lines = (StepMetrics(stage=0, step=step, accuracy=step / steps) for step in range(steps))
    (path / "metrics.jsonl").write_bytes(b"".join(msgspec.json.encode(x) + b"\n" for x in lines))
    return path


# -- Waiting --------------------------------------------------------------------------------------


def test_who_comes_ends_the_idle_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchers, "_IDLE_S", 10 * DEADLINE)

    async def come() -> None:
        watched = FollowedRuns([tmp_path])
        for _ in range(2):  # one who left leaves it idle again
            idle = asyncio.create_task(watched._idle())
            await asyncio.sleep(0)
            assert not idle.done()
            with watched.watching(), watched.watching():
                await asyncio.wait_for(idle, DEADLINE)

    asyncio.run(come())


def test_nobody_is_left_idle_while_another_looks_on(tmp_path: Path) -> None:
    async def come() -> None:
        watched = FollowedRuns([tmp_path])
        with watched.watching():
            with watched.watching():
                pass
            await asyncio.wait_for(watched._idle(), DEADLINE)
            assert watched._watched.is_set()

    asyncio.run(come())


@pytest.mark.parametrize(("every_s", "told"), [(3600.0, [0, 0, 0, 1]), (0.0, [1, 1, 1, 1])])
def test_a_backlog_is_told_of_once_it_is_read_or_where_that_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_s: float, told: list[int]
) -> None:
    run = logged(tmp_path / "run", 100)
    size = (run / "metrics.jsonl").stat().st_size
    monkeypatch.setattr(following, "_AT_ONCE", size // 3 - 1)  # read in four parts
    monkeypatch.setattr(watchers, "_BACKLOG_S", every_s)

    async def look() -> None:
        watched, found = FollowedRuns([run]), []
        for part in range(4):
            before = list(watched.told)
            assert await watched._look() == (part < 3)
            found.append(int(watched.told != before))
        assert found == told and watched.runs[0].x == 99
        assert not await watched._look()
        assert watched.told == [watched.runs[0].version]

    asyncio.run(look())


def test_all_of_a_run_is_told_once_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not earlier, whoever asks while it is read: what is not all is drawn for nothing."""
    run = logged(tmp_path / "run", 100)
    monkeypatch.setattr(following, "_AT_ONCE", 1000)
    monkeypatch.setattr(watchers, "_BACKLOG_S", 3600.0)

    async def come() -> None:
        watched = FollowedRuns([run])
        task = asyncio.create_task(watched.follow())
        await asyncio.wait_for(watched.begun(0), DEADLINE)
        assert telling.whole(watched, 0)["series"]["accuracy"]["x"] == list(range(100))
        task.cancel()

    asyncio.run(come())


@pytest.mark.parametrize("parts", [1, 4])
def test_a_long_run_s_newest_lines_alone_are_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    """Also where the last read ends with the file, and nothing tells that nothing follows."""
    run = logged(tmp_path / "run", 200)
    size = (run / "metrics.jsonl").stat().st_size
    monkeypatch.setattr(following, "_AT_ONCE", -(-size // parts))
    whole: list[int] = []
    plain_way = following.steps_of

    def counted(lines: Lines, path: Path, *decoder: Any) -> list[Any]:
        if not decoder:
            whole.extend(found.step for found in plain_way(lines, path))
        return plain_way(lines, path, *decoder)

    monkeypatch.setattr(following, "steps_of", counted)
    followed = Following(run)
    while followed.poll():
        pass
    assert followed.x == 199
    assert whole == list(range(199 - RECENT, 200))
    followed.poll()
    assert len(whole) == RECENT + 1  # and once


def test_what_is_told_is_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are read in one thread and told in another: neither while the other does."""
    watched = FollowedRuns([logged(tmp_path / "run", 3)])
    held: list[bool] = []

    def watch(name: str) -> None:
        own = getattr(Series, name)

        def seen(*given: Any) -> Any:
            held.append(watched.runs[0].held.locked())
            return own(*given)

        monkeypatch.setattr(Series, name, seen)

    watch("add")
    watch("after")
    watched.runs[0].poll()
    telling.whole(watched, 0)
    telling.news(watched, 0, telling.Had())
    assert held == [True] * 3 and not watched.runs[0].held.locked()


def test_there_is_no_more_of_a_file_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_AT_ONCE", 4)
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\n")
    tail = following.Tail(path)
    assert tail.lines()[0].each() == [b"one"] and tail.more
    path.unlink()
    assert tail.lines()[0].each() == [] and not tail.more


# -- Figures --------------------------------------------------------------------------------------


def a_step(draw: random.Random, stage: int, step: int) -> StepMetrics:
    """With what a step may have, or lack."""

    def perhaps(value: Any) -> Any:
        return value if draw.random() < 0.7 else None

    def gaps() -> dict[int, Mismatch]:
        ages = draw.sample(range(4), draw.randrange(4))
        return {age: Mismatch(draw.randrange(3), draw.random()) for age in ages}

    names = draw.sample(["a", "b", "c"], draw.randrange(4))
    return StepMetrics(
        stage=stage,
        step=step,
        accuracy=perhaps(draw.random()),
        held_out_loss=perhaps(float("nan")),
        rollout=RolloutMetrics(reward=perhaps(draw.random()), tokens=perhaps(7), retried=3),
        update=UpdateMetrics(
            loss=perhaps(-draw.random()), mismatch=perhaps(Mismatch(5, draw.random()))
        ),
        seconds=StepSeconds(step=perhaps(draw.random()), update=perhaps(2.0)),
        cost=CostMetrics(chip_hours=perhaps(float(step)), money={"USD": 1.0}),
        workers={
            name: WorkerMetrics(
                tokens=draw.randrange(50),
                seconds_generating=draw.choice([0.0, 4.0]),
                mismatch=gaps(),
            )
            for name in names
        },
    )


def plain(steps: list[tuple[int, StepMetrics]]) -> dict[str, dict[int, float]]:
    """Every figure by its place, one step after another."""
    found: dict[str, dict[int, float]] = {}
    for x, step in steps:
        here: dict[str, float | None] = {path: attrgetter(path)(step) for path in FIGURES}
        gap = step.update.mismatch
        here["update.mismatch.k3"] = gap and gap.k3
        tokens, seconds = step.rollout.tokens, step.seconds.step
        here["speed"] = tokens / seconds if tokens is not None and seconds else None
        for name, facts in step.workers.items():
            tokens = sum(gap.tokens for gap in facts.mismatch.values())
            if facts.mismatch:
                k3 = sum(gap.k3 * gap.tokens for gap in facts.mismatch.values())
                age = sum(age * gap.tokens for age, gap in facts.mismatch.items())
                here[f"workers/{name}/k3"] = k3 / max(1, tokens)
                here[f"workers/{name}/staleness"] = age / max(1, tokens)
            if facts.seconds_generating:
                speed = facts.tokens / facts.seconds_generating
                here[f"workers/{name}/tokens_per_second"] = speed
        for column in found.values():
            for place in [place for place in column if place >= x]:  # made again
                del column[place]
        for path, value in here.items():
            if value is not None and value == value:  # of what is not finite, a file says null
                found.setdefault(path, {})[x] = value
    return {path: column for path, column in found.items() if column}


@pytest.mark.parametrize("at_once", [700, 2**20])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_drawn_is_what_was_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, at_once: int
) -> None:
    """Against a plain loop, over two stages and a resume, however the file is cut into parts."""
    monkeypatch.setattr(following, "_AT_ONCE", at_once)
    draw = random.Random(seed)
    places = [(0, step) for step in range(30)] + [(1, step) for step in range(40)]
    again = 30 + 15
    steps = [a_step(draw, *place) for place in places + places[again:]]
    xs = [*range(len(places)), *range(again, len(places))]
    with RunDir.create(tmp_path / "run", {}, {}) as run:
        for step in steps:
            run.log(step)
    follower = Following(tmp_path / "run")
    while follower.poll():
        pass
    found = follower.after(-1)
    expected = plain(list(zip(xs, steps, strict=True)))
    assert {name: points.x for name, points in found.items()} == {
        name: [float(x) for x in column] for name, column in expected.items()
    }
    for name, points in found.items():
        assert points.y == points.low == points.high
        assert points.y == pytest.approx(list(expected[name].values()), rel=1e-12), name
    follower.close()


def test_a_figure_that_is_not_finite_is_told_as_null(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run", {}, {}) as run:
        for k3 in (0.5, float("inf")):
            gap = Mismatch(3, k3)
            run.log(
                StepMetrics(
                    stage=0,
                    step=int(k3 > 1),
                    update=UpdateMetrics(mismatch=gap),
                    workers={"w": WorkerMetrics(mismatch={0: gap})},
                )
            )
    follower = Following(tmp_path / "run")
    follower.poll()
    for name in ("update.mismatch.k3", "workers/w/k3"):
        assert telling.told(follower.after(-1)[name])["y"] == [0.5, None]
    follower.close()


def test_what_is_sent_is_what_the_page_draws() -> None:
    charts = (Path(live.__file__).parent / "page" / "charts.js").read_text()
    parts = re.findall(r"\bof: \{(.*?)\}", charts)
    drawn = {name for part in parts for name in re.findall(r'"?([\w.]+)"?: "', part)}
    told = {"seconds.step"}  # in figures, above the charts
    assert drawn | told == {*FIGURES, "update.mismatch.k3", "speed"}
