"""Whole plans: sums that must hold, what they say, and how they move with what they are given."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interlock.config.reading import load_recipe, parse_recipe
from interlock.errors import ConfigError
from interlock.plan.chips import parse_stock
from interlock.plan.memory import LearnerLoad, generator_chips, room_for
from interlock.plan.plan import Plan, PlanInputs, plan_of
from interlock.plan.prices import read_prices
from interlock.plan.roles import roles_of
from interlock.plan.shapes import model_shape
from interlock.plan.sharding import learner_layout, least_learners
from interlock.plan.verdicts import verdicts
from interlock.plan.workload import GivenFigures, changed_share, workloads

SHIPPED = Path(__file__).parents[2] / "src" / "interlock" / "recipes" / "shipped"


def test_a_step_is_the_sum_of_its_parts_and_hours_are_steps(planned: Callable[..., Plan]) -> None:
    plan = planned("8xH100:learner,8xH100:generator")
    parts = plan.stages[0].parts
    assert parts.synchronous == pytest.approx(
        parts.generation
        + parts.verification
        + parts.scoring
        + parts.update
        + parts.publication
        + parts.handover
    )
    assert parts.asynchronous == pytest.approx(
        max(parts.refilled, parts.scoring + parts.update + parts.publication)
    )
    beside = 2 * parts.evaluation + 6 * parts.checkpoint  # before and after; every 20 steps
    assert plan.hours.middle * 3600 == pytest.approx(100 * parts.asynchronous + beside)
    assert plan.chip_hours.middle == pytest.approx(16 * plan.hours.middle)
    assert plan.money is not None
    assert plan.money.middle == pytest.approx(16 * plan.hours.middle * math.sqrt(1.99 * 5.0))
    assert plan.kwh.middle == pytest.approx(16 * 0.7 * 0.8 * plan.hours.middle)
    assert plan.hours.low < plan.hours.middle < plan.hours.high


def test_memory_by_hand(planned: Callable[..., Plan]) -> None:
    plan = planned("8xH100:learner,8xH100:generator", given=GivenFigures(mean_tokens=1000))
    use, shape = plan.settled.learner_memory, plan.shape
    assert (use.weights, use.held, use.cache, use.process) == (0, 0, 0, 0)
    assert use.copies == pytest.approx(2 * shape.params / 8)
    assert use.gradients == pytest.approx(4 * shape.params / 8)
    assert use.optimizer == pytest.approx(12 * shape.params / 8)
    assert use.total == pytest.approx(18 * shape.params / 8 + use.activations)
    group = plan.settled.groups[0]
    assert (group.replica.chips, group.replicas) == (1, 8)
    # 1,024 answers over 8 replicas, each of 1,115 tokens at 2 * 8 * 128 * 36 elements of 2 bytes
    assert group.memory.cache == pytest.approx(128 * 1115 * 73_728 * 2)
    # Beside its cache each has 34 bytes of each of 4,096 hidden elements, and its logits.
    row = 1115 * 147_456 + 34 * 4096 + 4 * shape.vocab
    assert group.replica.slots == pytest.approx((72e9 - 2 * shape.params) / row)
    assert group.memory.total < group.memory.usable


def test_an_adapter_by_hand(planned: Callable[..., Plan]) -> None:
    """Qwen3-8B, 36 layers: q and o 4096 + 4096, k and v 4096 + 1024, three of 4096 + 12,288."""
    lora: dict[str, Any] = {"learner": {"lora": {"rank": 16}}}
    plan = planned("1xH100:learner,8xH100:generator", **lora)
    trained = 16 * 36 * (2 * 8192 + 2 * 5120 + 3 * 16384)
    assert trained == 43_646_976
    use, shape, parts = plan.settled.learner_memory, plan.shape, plan.stages[0].parts
    assert use.weights == 2 * shape.params and use.fits
    assert (use.copies, use.gradients, use.optimizer) == (2 * trained, 4 * trained, 12 * trained)
    assert parts.bytes == pytest.approx(2 * trained * (3 * 0.45 + 1) / 4)  # three come to one
    assert parts.checkpoint == pytest.approx(12 * trained / 2e9)
    full = planned("1xH100:learner,8xH100:generator")
    assert "do not hold the learner" in full.unfit[0]  # 18 bytes of each of 8.2 B weights
    two = {"learner": {"lora": {"rank": 16, "targets": ["q_proj", "v_proj"]}}}
    narrow = planned("1xH100:learner,8xH100:generator", **two)
    assert narrow.settled.learners.adapter == 16 * 36 * (8192 + 5120)
    (why,) = planned("2xH100:learner,8xH100:generator", **lora).unfit
    assert why.startswith("2 x H100 SXM would learn, and an adapter (learner.lora) learns on one")
    with pytest.raises(ConfigError, match="names no linear layer of Qwen3-8B; choose of k_proj"):
        planned("1xH100:both", learner={"lora": {"targets": ["query"]}})


def test_deepseek_needs_what_it_needs() -> None:
    shape = model_shape("DeepSeek-V3")
    (h800,) = (each.chip for each in parse_stock("1xH800"))
    assert generator_chips(shape, h800, 2.0) == 32  # 1,342 GB over 61.2 GB each
    assert generator_chips(shape, h800, 1.0) == 16
    # 12,078 GB over 72 GB each are 168.
    assert least_learners(shape, h800, LearnerLoad(4096, 8192)) == 256
    assert room_for(shape, h800, 32, 2.0, 8000) == pytest.approx(
        (32 * 72e9 - 1.34205e12) / (8000 * 70_272 + 34 * 7168 + 4 * 129_280), rel=1e-4
    )


def test_a_large_learner_is_cut_as_large_ones_are() -> None:
    shape = model_shape("DeepSeek-V3")
    (h800,) = (each.chip for each in parse_stock("1xH800"))
    # As NeMo-RL's published rows: experts over 16 copies, a pipeline of 16.
    assert learner_layout(shape, h800, 256) == (1, 1, 16, 16)
    # 8.19 B weights: 6 bytes of each and 12 / 8 are 61 GB, more than 0.7 of 72; halved they fit.
    assert learner_layout(model_shape("Qwen3-8B"), h800, 8) == (2, 1, 1, 1)


def test_what_does_not_fit_tells_the_smallest_stock(planned: Callable[..., Plan]) -> None:
    plan = planned("64xH800:learner,16x910B:generator", model="DeepSeek-V3")
    assert len(plan.unfit) == 2 and "256 are the fewest" in plan.unfit[0]
    assert "32 are the fewest" in plan.unfit[1]
    assert all(each.startswith("fits nowhere here") for each in verdicts(plan))
    fitting = planned("256xH800:learner,32x910B:generator", model="DeepSeek-V3")
    assert not fitting.unfit and math.isfinite(fitting.hours.middle)


def test_a_slow_link_is_told_and_deltas_are_the_remedy(planned: Callable[..., Plan]) -> None:
    short = {"sampling": {"max_tokens": 512}}
    chips = "8xH100:learner,8xH100:generator"
    whole = planned(chips, stage=short, link=0.125e9, sync={"anchor_every": 1})
    assert any("the link is the bottleneck" in x and "use deltas" in x for x in verdicts(whole))
    parts = planned(chips, stage=short, link=0.125e9).stages[0].parts
    size = 2 * model_shape("Qwen3-8B").params
    assert parts.bytes == pytest.approx((19 * 1.1 * changed_share(1e-5) * size + size) / 20)
    assert parts.publication < 0.2 * whole.stages[0].parts.publication
    fast = planned(chips, stage=short, link=50e9)
    assert not any("the link is" in each for each in verdicts(fast))


def test_few_generators_starve_and_many_wait(planned: Callable[..., Plan]) -> None:
    starved = planned("16xH100:learner,1xH100:generator")
    assert any("starve the learner" in each for each in verdicts(starved))
    assert 0.5 <= starved.stages[0].parts.staleness < 2
    held = planned("4xH100:learner,64xH100:generator")
    assert any("holds the generators up" in each for each in verdicts(held))
    assert held.stages[0].parts.staleness == 2


def test_short_answers_stay_synchronous(planned: Callable[..., Plan]) -> None:
    plan = planned(
        "4xH100:learner,128xH100:generator",
        stage={"sampling": {"max_tokens": 64}, "problems_per_step": 512},
    )
    assert any(each.startswith("stay synchronous") for each in verdicts(plan))
    step = planned("8xH100:learner,8xH100:generator", stage={"staleness": 0})
    assert step.stages[0].synchronous and any("run ahead" in each for each in verdicts(step))


def test_slow_verifiers_are_told(planned: Callable[..., Plan]) -> None:
    plan = planned("8xH100:both", given=GivenFigures(verify_s=8.0))
    parts = plan.stages[0].parts
    assert parts.verification == pytest.approx(1024 * 8 / 4 - parts.generation)
    assert any("more workers" in each for each in verdicts(plan))


@pytest.mark.parametrize("turn", ["16x{}:both", "16x{}:learner,16x{}:generator"])
def test_more_of_a_chip_is_never_slower(planned: Callable[..., Plan], turn: str) -> None:
    for chip in ("H100", "910B", "MI300X", "H20"):
        few = planned(turn.format(chip, chip)).hours.middle
        many = planned(turn.replace("16x", "32x").format(chip, chip)).hours.middle
        assert many <= few * 1.001, chip


def test_longer_answers_take_longer_and_a_known_mean_narrows_the_range(
    planned: Callable[..., Plan],
) -> None:
    known = [
        planned("16xH100:both", given=GivenFigures(mean_tokens=mean)).hours
        for mean in (500, 1000, 4000)
    ]
    assert known[0].middle < known[1].middle < known[2].middle
    unknown = planned("16xH100:both").hours
    assert unknown.high / unknown.low > known[1].high / known[1].low


def test_two_kinds_of_generators_share_the_answers(planned: Callable[..., Plan]) -> None:
    one = planned("8xH100:learner,32x910B:generator").stages[0].parts.refilled
    other = planned("8xH100:learner,32xH20:generator").stages[0].parts.refilled
    both = planned("8xH100:learner,32x910B:generator,32xH20:generator").stages[0].parts.refilled
    assert both < min(one, other)
    assert both > 0.9 / (1 / one + 1 / other)


def test_a_learner_spans_no_two_kinds() -> None:
    with pytest.raises(ConfigError, match="spans no two"):
        roles_of(parse_stock("8xH100:learner,8xH20:learner"), True)
    with pytest.raises(ConfigError, match="no chips learn"):
        roles_of(parse_stock("8xH100:generator"), True)
    alone = roles_of(parse_stock("8xH100:learner"), True)
    assert alone.turns and alone.generators == (alone.learner,)


def test_the_users_prices_go_first(planned: Callable[..., Plan], tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(
        '[[price]]\nchip = "910B"\nper_hour = 1.5\ncurrency = "CNY"\n'
        'date = 2026-11-01\nsource = "an offer"\n'
    )
    unknown = planned("8xH100:learner,8x910B:generator")
    assert unknown.money is None
    priced = planned("8x910B:both", prices=read_prices(file))
    assert priced.money is not None and priced.currency == "CNY"
    assert priced.money.middle == pytest.approx(1.5 * priced.chip_hours.middle)
    file.write_text('[[price]]\nchip = "910B"\nper_hour = 1.5\ncurrency = "USD"\n')
    with pytest.raises(ConfigError, match="date"):
        read_prices(file)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_planned(path: Path) -> None:
    recipe = load_recipe(path)
    shape = model_shape("DeepSeek-V3" if "671b" in path.stem else recipe.model.path)
    chips = "512xH800:learner,512x910B:generator" if shape.params > 1e11 else "8xH100:both"
    plan = plan_of(PlanInputs(recipe, shape), roles_of(parse_stock(chips), True))
    assert not plan.unfit and 0 < plan.hours.low < plan.hours.high < 1e6
    works = workloads(recipe, shape, True)
    assert len(works) == len(plan.stages) and all(work.steps > 0 for work in works)


def test_a_stage_that_samples_and_then_learns_is_both() -> None:
    tree = {
        "kind": "reject-sft",
        "steps": 10,
        "rounds": 3,
        "problems_per_step": 8,
        "completions": 4,
        "task": [{"name": "arithmetic"}],
    }
    recipe = parse_recipe({"model": {"path": "hf:Qwen/Qwen3-8B"}, "stage": [tree]})
    shape = model_shape("Qwen3-8B")
    sampling, learning = workloads(recipe, shape, True)
    assert (sampling.steps, sampling.samples, sampling.learns) == (3, True, False)
    assert (learning.steps, learning.samples, learning.learns) == (10, False, True)
    assert learning.mean_tokens == 512  # half of max_tokens
    (long,) = workloads(
        parse_recipe(
            {
                "model": {"path": "hf:Qwen/Qwen3-8B"},
                "stage": [{"kind": "sft", "steps": 5, "data": "x.jsonl", "max_tokens": 32768}],
            }
        ),
        shape,
        True,
    )
    assert (long.mean_tokens, long.max_tokens, long.samples) == (4000, 32768, False)


def test_an_evaluation_asks_for_answers_whatever_is_learned_from() -> None:
    """Rows of up to 32,768 tokens, and answers of up to 80."""
    task = {"task": [{"name": "arithmetic"}], "sampling": {"max_tokens": 80}, "steps": 3}
    rows = {"kind": "sft", "data": "x.jsonl", "max_tokens": 32768} | task
    tree = {"model": {"path": "hf:Qwen/Qwen3-8B"}, "stage": [rows, {"kind": "grpo"} | task]}
    inputs = PlanInputs(parse_recipe(tree), model_shape("Qwen3-8B"))
    plan = plan_of(inputs, roles_of(parse_stock("8xH100:both"), True))
    learned, sampled = (stage.parts for stage in plan.stages)
    assert learned.evaluation == sampled.evaluation > 0
    assert plan.stages[0].settled.groups == plan.stages[1].settled.groups


def test_the_share_of_changed_weights_goes_through_what_was_measured() -> None:
    assert changed_share(1e-6) == pytest.approx(0.0036)
    assert changed_share(1e-5) == pytest.approx(0.02, rel=0.01)
    assert changed_share(1.0) == 0.33 and changed_share(0.0) == 0.0
