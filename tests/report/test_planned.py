"""What was planned against what happened, in the report of a run that was given its plan."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interlock.config.reading import load_recipe
from interlock.errors import ConfigError, RunError
from interlock.recipes.metering import plan_of
from interlock.records.cost import ChipPrice, ChipUse, RunCost, SessionCost
from interlock.records.metrics import StepMetrics
from interlock.records.sealing import SealedDocument, sealed
from interlock.report import write_report
from interlock.report.planned import planned_table
from interlock.rundir import RunDir


def span(middle: float) -> dict[str, float]:
    return {"low": middle / 2, "middle": middle, "high": 2 * middle}


PLAN: dict[str, Any] = {
    "recipe": "mine",
    "placement": "2xH800:both",
    "fits": True,
    "stages": [
        {
            "name": "stage 0, grpo",
            "steps": 4,
            "synchronous": True,
            "step_s": span(20.0),
            "seconds": {"generation": 10.0, "scoring": 1.0, "update": 1.0, "publication": None},
            "memory_bytes": {"learner": 2e9, "generator": 5e8},
        },
        *(
            {
                "name": f"stage 1, reject-sft: {what}",
                "steps": 2,
                "step_s": span(1.0),
                "seconds": {},
                "memory_bytes": {"learner": size},
            }
            for what, size in (("sampling", 1e9), ("learning", 4e9))
        ),
    ],
    "hours": span(1.0),
    "chip_hours": span(2.0),
    "money": span(8.0),
    "currency": "USD",
    "kwh": span(1.0),
}
PRICE = ChipPrice(2.0, 2.0, "USD", datetime.date(2026, 11, 1), "offer")


def used(**prices: ChipPrice) -> RunCost:
    uses = [
        ChipUse(0, "learner", "A", 10800.0, 10800.0, chip_bytes=3e9, resident_bytes=9e9),
        ChipUse(1, "learner", "A", chip_bytes=1e9),
        ChipUse(1, "learner", "B", chip_bytes=2e9),
    ]
    return RunCost([SessionCost(1e9, 5400.0, True, uses, dict(prices))])


def test_each_figure_stands_beside_what_happened(
    make_run: Callable[..., RunDir], grpo_step: Callable[..., StepMetrics]
) -> None:
    with make_run() as run:
        assert planned_table(run, []) is None
        run.keep_plan(sealed(SealedDocument.PLAN, PLAN))
        run.keep_cost(used(A=PRICE))
        # The first step warms up; of the others one takes 10 s, 5 to generate and 4 to update.
        slow = grpo_step(0, 1, seconds={"step": 99.0, "generate": 90.0})
        lines = [slow, *(grpo_step(stage, step) for stage, step in ((0, 2), (0, 3), (1, 1)))]
        for line in lines:
            run.log(line)
        table = planned_table(run, lines)
    assert table is not None and table.placement == "2xH800:both"
    assert table.note.startswith("The run has not come to its end")
    assert [tuple(row) for row in table.rows] == [
        ("hours", "1", "0.5 to 2", "1.5", "x 1.5"),
        ("chip-hours", "2", "1 to 4", "3", "x 1.5"),
        ("USD", "8", "4 to 16", "6", "x 0.75"),
        ("kWh", "1", "0.5 to 2", "unknown", "–"),
        ("stage 0: GB of memory, learner", "2", "", "3", "x 1.5"),
        ("stage 0: GB of memory, generator", "0.5", "", "unknown", "–"),
        ("stage 1: GB of memory, learner", "4", "", "2", "x 0.5"),
        ("stage 0, grpo: s a step", "20", "10 to 40", "10", "x 0.5"),
        ("stage 0, grpo: s of generation", "10", "", "5", "x 0.5"),
        ("stage 0, grpo: s of update", "2", "", "4", "x 2"),
    ]
    page = write_report(run.path).read_text()
    assert "Plan against run" in page and "The run has not come" not in page


def test_money_that_is_not_all_known_is_not_compared(make_run: Callable[..., RunDir]) -> None:
    with make_run() as run:
        run.keep_plan(sealed(SealedDocument.PLAN, PLAN))
        run.keep_cost(used())
        table = planned_table(run, [])
    assert table is not None
    assert table.rows[2] == ("USD", "8", "4 to 16", "unknown", "–")


def test_a_plan_that_is_none_is_told_before_the_run_and_after(
    make_run: Callable[..., RunDir], tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    whole = sealed(SealedDocument.PLAN, PLAN)
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "demo.toml", [f"plan={file}"])
    for content, complaint in (
        ("{", "plan .*plan.json: "),
        (json.dumps(PLAN), "not what interlock plan --json prints"),
        (json.dumps(whole | {"placement": "8xH800:both"}), "it was changed since it was made"),
        (json.dumps(sealed(SealedDocument.PLAN, PLAN | {"fits": False})), "do not hold the model"),
        (json.dumps(sealed(SealedDocument.PLAN, PLAN | {"hours": None})), "hours"),
    ):
        file.write_text(content)
        with pytest.raises(ConfigError, match=complaint):
            plan_of(recipe)
    file.write_text(json.dumps(whole))
    assert plan_of(recipe) == whole
    with make_run() as run:
        (run.path / "plan.json").write_text("{}")
        with pytest.raises(RunError, match=r"plan\.json: .*; remove it"):
            run.plan()
