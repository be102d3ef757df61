"""Profiles and runs that happened, in a plan."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from interlock.config.reading import to_tree
from interlock.errors import ConfigError, RunError
from interlock.plan.chips import find, parse_stock
from interlock.plan.constants import values
from interlock.plan.plan import PlanInputs, plan_of
from interlock.plan.profile import applied, like, read_profile
from interlock.plan.roles import roles_of
from interlock.plan.workload import GivenFigures
from interlock.records.cost import ChipUse, RunCost, SessionCost
from interlock.records.metrics import RolloutMetrics, StepMetrics, StepSeconds
from interlock.rundir import RunDir

BENCH = {
    "measured": {
        "chip": "Intel(R) Xeon(R) Processor",
        "threads": 2,
        "speeds": [
            {"dtype": "float32", "kernel": "torch", "decode": 20.0, "learn": 150.0, "error": 1e-7},
            {"dtype": "float32", "kernel": "mkl", "decode": 75.0, "learn": 150.0, "error": 1e-7},
        ],
    },
    "taken": {"dtype": "float32", "generator": "mkl", "learner": "torch"},
}


def test_what_bench_prints_is_a_profile(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(BENCH))
    rates, chip = applied(read_profile(file), find("cpu"))
    assert chip.flops == 150e9
    assert (rates.learning, rates.products) == (1.0, 0.5)
    assert rates.memory == values().memory


def test_a_table_of_constants_is_one_too(tmp_path: Path) -> None:
    file = tmp_path / "profile.toml"
    file.write_text("bandwidth = 3e12\n[constants]\nmemory = 0.8\n")
    rates, chip = applied(read_profile(file), find("H100"))
    assert (rates.memory, chip.bandwidth, chip.flops) == (0.8, 3e12, 989e12)


def bench(learn: str = "100", decode: str = "50", waited: str = "0") -> str:
    """What `interlock bench --json` prints, of one kernel."""
    speeds = f'{{"dtype": "float32", "kernel": "mkl", "learn": {learn}, "decode": {decode}}}'
    return (
        '{"taken": {"dtype": "float32", "learner": "mkl", "generator": "mkl"}, "measured": '
        f'{{"chip": "cpu", "threads": 2, "waited": {waited}, "speeds": [{speeds}]}}}}'
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[constants]\nmemroy = 0.8\n", "memroy"),
        ("[constants]\nmemory = -1.0\n", "memory = -1"),
        ("flops = 0.0\n", "flops = 0"),
        ("colour = 3\n", "colour"),
        ("{", "--profile"),
        ('{"taken": {}}', "measured"),
        ("", "holds nothing that was measured"),
        ('{"taken":' + "[" * 99_999, "recursion"),
        ("flops = " + "[" * 99_999, "recursion"),
        (bench(learn="1e999"), r"products = 0; give a number above 1e-12"),
        (bench(learn="1" + "0" * 400), "too large"),
        (bench(decode="1e30"), r"products = 1e\+28"),
        (bench(learn="NaN"), "speeds of nan and 50"),
        (bench(waited="NaN"), "waited nan"),
        (bench(waited="9"), "waited 9"),
        (bench(learn="true"), "True is no speed"),
        (bench(learn='"100"'), "'100' is no speed"),
        (bench().replace('"chip": "cpu"', '"chip": ["cpu"]'), "Expected `str`, got `array`"),
        ("flops = 1e-300\n", r"flops = 1e-300 a second; give one above 1e\+06"),
        ("bandwidth = 1e-300\n", "bandwidth = 1e-300 a second"),
        ("[constants]\nmemory = 1e-300\n", "memory = 1e-300; give a number above 1e-12"),
    ],
)
def test_slips_in_a_profile_are_told(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "profile.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_profile(file)


def _ran(path: Path, given: PlanInputs, steps: int) -> Path:
    """A run whose every step took twelve seconds, the first one more."""
    with RunDir.create(path, to_tree(given.recipe), {}) as run:
        for step in range(1, steps + 1):
            slow = 5.0 if step == 1 else 1.0
            run.log(
                StepMetrics(
                    stage=0,
                    step=step,
                    kind="grpo",
                    rollout=RolloutMetrics(length=600.0),
                    seconds=StepSeconds(
                        generate=8.0 * slow, verify=0.5, update=3.0 * slow, step=12.0 * slow
                    ),
                )
            )
    return path


def test_a_run_corrects_its_own_plan(inputs: Callable[..., PlanInputs], tmp_path: Path) -> None:
    given = inputs(model="Qwen3-0.6B")
    roles = roles_of(parse_stock("1xH200:both"), True)
    run = _ran(tmp_path / "run", given, 6)
    found = like(run, roles, given)
    by = {each.part: each for each in found.parts}
    assert by["generation"].measured == 8.0 and by["step"].measured == 12.0
    assert found.mean_tokens == 600.0 and found.steps == 6
    again = msgspec.structs.replace(
        given, factors=found.factors, given=GivenFigures(mean_tokens=600.0), measured=True
    )
    parts = plan_of(again, roles).stages[0].parts
    assert parts.generation == pytest.approx(8.0)
    assert parts.scoring + parts.update == pytest.approx(3.0)
    assert parts.synchronous == pytest.approx(11.5)


def test_a_run_is_not_compared_with_chips_that_it_did_not_run_on(
    inputs: Callable[..., PlanInputs], tmp_path: Path
) -> None:
    """The factors of a CPU would be those of an H200."""
    given = inputs(model="Qwen3-0.6B")
    run = _ran(tmp_path / "run", given, 3)
    used = ChipUse(0, "learner", "AMD EPYC", chip_s=36.0)
    cost = RunCost([SessionCost(1.8e9, 36.0, True, [used])])
    (run / "cost.json").write_bytes(msgspec.json.encode(cost))
    with pytest.raises(ConfigError, match=r"learned on AMD EPYC, .* of H200 .* in --ran-on"):
        like(run, roles_of(parse_stock("1xH200:both"), True), given)
    assert like(run, roles_of(parse_stock("2xcpu:both"), True), given).steps == 3


def test_a_run_of_one_step_is_no_measure(inputs: Callable[..., Any], tmp_path: Path) -> None:
    given = inputs()
    run = _ran(tmp_path / "run", given, 1)
    with pytest.raises(RunError, match="has 1 steps"):
        like(run, roles_of(parse_stock("1xH200:both"), True), given)
