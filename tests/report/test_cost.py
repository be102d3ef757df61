"""What is said of a run's cost: in the report, in a closing line, on the live page."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interlock.errors import RunError
from interlock.records.cost import ChipPrice, ChipUse, Money, RunCost, SessionCost
from interlock.records.metrics import CostMetrics, RolloutMetrics, StepMetrics, StepSeconds
from interlock.report import write_report
from interlock.report.cost import closing_line, cost_table, figure, point_told, told
from interlock.report.live import telling
from interlock.report.live.following import Following
from interlock.report.live.pace import Pace
from interlock.report.live.watchers import FollowedRuns
from interlock.report.summary import BeforeAfter, Evaluation
from interlock.rundir import RunDir

NOON = 1_795_867_200.0  # 2026-11-28 12:00 UTC
DAY = datetime.date(2026, 11, 1)
GAINED = BeforeAfter(Evaluation(0, 0, 0.25, 8), Evaluation(0, 4, 0.5, 8))


def cost() -> RunCost:
    """A killed session of an hour, and one of two hours in which a second chip generated."""
    prices = {"A": ChipPrice(2.0, 2.0, "USD", DAY, "prices.toml, contract")}
    first = [ChipUse(0, "learner", "A", 3600.0, 3600.0, 900.0, tokens=1000, bytes=2e6)]
    first[0].chip_bytes = first[0].resident_bytes = 3.5e9
    second = [
        ChipUse(0, "learner", "A", 3600.0, 3600.0, 1800.0, joules=3.6e6, told_s=3600.0),
        ChipUse(
            *(0, "generator", "B", 7200.0, 7200.0, 7200.0),
            tokens=5000,
            chip_bytes=8e9,
            resident_bytes=2e9,
        ),
        ChipUse(None, "learner", "A", 3600.0, 3600.0),
    ]
    return RunCost(
        [
            SessionCost(NOON, 3600.0, False, first, prices),
            SessionCost(NOON + 9000, 7200.0, True, second, prices),
        ]
    )


def test_the_table_adds_up_and_says_what_nobody_knows(make_run: Callable[..., RunDir]) -> None:
    with make_run({"name": "t", "stage": [{"kind": "grpo", "name": "first"}]}) as run:
        run.keep_cost(cost())
        table = cost_table(run, [], GAINED)
    assert table is not None
    assert [tuple(row) for row in table.rows] == [
        ("0: first", "learner", "A", "2", "38%", "1,000", "2.0", "3.5", "1", "4 USD"),
        ("0: first", "generator", "B", "2", "100%", "5,000", "", "8, host 2", "unknown", "unknown"),
        ("opening and saving", "learner", "A", "1", "0%", "", "", "", "unknown", "2 USD"),
    ]
    assert table.whole[3:] == ("5", "", "6,000", "2.0", "", "1", "6 USD + unknown")
    assert table.point == "a point of accuracy took 0.2 chip-hours, 0.24 USD + unknown"
    assert table.notes == [
        "A: 2 USD an hour (prices.toml, contract, 2026-11-01).",
        "Nobody has said what an hour of B costs: 2 chip-hours are in no sum; give prices = FILE.",
        "Energy was told for 20% of the chips' time.",
        "A session was killed: counted to its last entry, 2026-11-28 13:00:00 UTC.",
    ]


def test_a_price_that_was_old_when_it_was_used_is_said_to_be(make_run: Callable[..., Any]) -> None:
    old = ChipPrice(1.0, 4.0, "CNY", datetime.date(2026, 5, 1), "list")
    uses = [ChipUse(0, "learner", "A", 3600.0, 3600.0)]
    with make_run() as run:
        run.keep_cost(RunCost([SessionCost(NOON, 3600.0, True, uses, {"A": old})]))
        table = cost_table(run, [], None)
    assert table is not None and table.point == ""
    assert table.rows[0].money == "2 CNY (1 to 4)"
    assert table.notes[0] == (
        "A: 1 to 4 CNY an hour (list, 2026-05-01), 211 days old when it was used: look it up."
    )
    assert table.notes[1] == "No driver of these chips told of their energy."


def test_the_closing_line() -> None:
    assert closing_line(RunCost(), GAINED) == ""
    assert closing_line(cost(), GAINED) == (
        "cost: 3 h · 5 chip-hours · 6,000 tokens · 1 kWh · 6 USD + unknown; a point of accuracy "
        "took 0.2 chip-hours, 0.24 USD + unknown"
    )
    lost = GAINED._replace(after=GAINED.before)
    assert point_told(cost(), lost) == "no point of accuracy was gained"
    assert told({"USD": Money(1, 4), "EUR": Money(2, 2)}, False) == "2 USD (1 to 4) + 2 EUR"
    assert told({}, False) == "unknown"


def test_the_page_has_the_section_and_no_foreign_markup(
    make_run: Callable[..., RunDir], grpo_step: Callable[..., StepMetrics]
) -> None:
    with make_run() as run:
        run.log(grpo_step(0, 1))
        assert "At work" not in write_report(run.path).read_text()  # no meter, no section
        uses = [ChipUse(7, "learner", "<script>alert(1)</script>", 3600.0, 3600.0)]
        run.keep_cost(RunCost([SessionCost(NOON, 3600.0, True, uses)]))
        page = write_report(run.path).read_text()
    assert "At work" in page and "&lt;script&gt;alert(1)" in page
    assert "<script>alert(1)" not in page


def test_a_damaged_file_is_named_with_its_remedy(make_run: Callable[..., RunDir]) -> None:
    with make_run() as run:
        texts = ["{", '{"sessions": [{"began": -1}]}', '{"sessions": 3}']
        texts += ['{"sessions": [{"began": 1, "seconds": 1e17}]}']  # which no date tells
        for text in texts:
            (run.path / "cost.json").write_text(text)
            with pytest.raises(RunError, match=r"cost\.json: .*; remove it: what is used is then"):
                run.cost()


def test_a_killed_last_session_is_told_once_nobody_goes_on(
    make_run: Callable[..., RunDir],
) -> None:
    cut = RunCost(cost().sessions[:1])
    with make_run() as run:
        run.keep_cost(cut)
        running = cost_table(run, [], None)
    over = cost_table(RunDir.read(run.path), [], None)
    assert running is not None and over is not None
    killed = "A session was killed: counted to its last entry, 2026-11-28 13:00:00 UTC."
    assert killed in over.notes and killed not in running.notes


def test_figures_of_any_size_have_three_digits() -> None:
    shown = [figure(value) for value in (0.01234, 4.567, 789.4, 12345.6, 1e18, 0.0)]
    assert shown == ["0.0123", "4.57", "789", "12,346", "1e+18", "0"]


# -- The live page --------------------------------------------------------------------------------


def step(number: int, hours: float | None, **money: float) -> StepMetrics:
    spent = CostMetrics()
    if hours is not None:
        spent = CostMetrics(hours=hours, chip_hours=2 * hours, money=money)
    return StepMetrics(
        stage=0, step=number, seconds=StepSeconds(step=9.0), rollout=RolloutMetrics(), cost=spent
    )


def test_the_pace_is_the_run_s_time_between_steps_where_it_is_counted() -> None:
    pace = Pace()
    assert pace.seconds(3) is None and pace.money(3) == {}
    pace.add([step(0, 0.5, USD=1.0), step(1, 0.75, USD=1.5), step(2, 1.25, USD=2.5)])
    # Step 0 says nothing of itself but its 9 s; then 900 s and 1,800 s.
    assert pace.seconds(2) == pytest.approx(2 * (9 + 900 + 1800) / 3)
    assert pace.money(2) == {"USD": pytest.approx(1.5)}
    again = Pace()
    again.add([step(7, 1.0, USD=1.0), step(4, 3.0, USD=9.0)])  # made again after a kill
    assert again.seconds(1) == 9.0 and again.money(1) == {}


def test_the_live_page_tells_of_money_now_and_at_the_end(tmp_path: Path) -> None:
    config = {
        "model": {"path": "m"},
        "stage": [{"kind": "sft", "steps": 4, "data": "x.jsonl"}],
    }
    with RunDir.create(tmp_path / "run", config, {}) as run:
        following = Following(tmp_path / "run")
        run.log(step(0, None))
        following.poll()
        assert telling.cost(following) is None
        for line in (step(1, 1.0, USD=2.0), step(2, 2.0, USD=5.0)):
            run.log(line)
        following.poll()
        told = telling.cost(following)
        assert told is not None
        assert (told["chip_hours"], told["money"]) == (4.0, {"USD": 5.0})
        assert told["money_at_end"] == {"USD": pytest.approx(5.0 + 2 * 3.0)}
        assert following.after(-1)["cost.chip_hours"].y == [2.0, 4.0]
        following.close()
    assert FollowedRuns([tmp_path / "run"]).names == ["run"]
