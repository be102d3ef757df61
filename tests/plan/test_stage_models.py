"""Stages that learn a smaller model than their recipe's, and teachers of other sizes."""

import json
from pathlib import Path
from typing import Any

import pytest

from interlock.config.reading import load_recipe, parse_recipe
from interlock.config.schema import Recipe
from interlock.errors import ConfigError
from interlock.plan.chips import parse_stock
from interlock.plan.constants import values
from interlock.plan.plan import Plan, PlanInputs, plan_of
from interlock.plan.roles import roles_of
from interlock.plan.seconds import forward_s
from interlock.plan.shapes import ModelShape, model_shape, of_config
from interlock.plan.workload import GivenFigures, StageWork, changed_share, workloads
from interlock.records.adapters import AdapterForm

SHIPPED = Path(__file__).parents[2] / "src" / "interlock" / "recipes" / "shipped"
CONFIG = {
    "vocab_size": 100,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
}
# 2*8*8 for queries and output, 2*8*4 for keys and values, 3*8*16; twice 100*8 of the vocabulary.
LAYER, WORDS = 576, 800
BIG = {"kind": "sft", "name": "big"}
TASK = {"name": "arithmetic", "options": {"operators": ["+"]}}


def shape() -> ModelShape:
    return of_config(CONFIG, "tiny")


def stages(*given: dict[str, Any], **rest: Any) -> Recipe:
    usual = {
        "sft": {"data": "x.jsonl"},
        "grpo": {"task": TASK},
        "distill": {"task": TASK, "teacher": [{"model": "stage:big"}]},
    }
    full = [{"steps": 10} | usual[each["kind"]] | each for each in given]
    return parse_recipe({"model": {"path": "tiny"}, "stage": full} | rest)


def layers_of(recipe: Recipe) -> list[int]:
    return [work.shape.layers for work in workloads(recipe, shape(), True)]


def test_layers_0_2_and_4_of_five_by_hand() -> None:
    small = shape().thinned(2)
    assert (small.layers, small.params) == (3, 3 * LAYER + 2 * WORDS)
    assert small.active == 3 * LAYER + WORDS
    assert small.kv_elements == 3 * 8  # keys and values of one head of 4
    around, keys, inner = 2 * (8 + 8), 2 * (8 + 4), 3 * (8 + 16)
    assert small.adapter(AdapterForm(rank=2)) == 2 * 3 * (around + keys + inner)
    assert shape().thinned(3).layers == 2 and shape().thinned(1) == shape()


def test_later_stages_go_on_with_the_smaller_model_and_a_name_means_what_that_stage_left() -> None:
    big, student = BIG, {"kind": "sft", "every_layer": 2, "name": "half"}
    assert layers_of(stages(big, student, {"kind": "distill"})) == [5, 3, 3]
    again = {"kind": "sft", "every_layer": 2}
    assert layers_of(stages(big, student, again)) == [5, 3, 2]  # 0 and 2 of 0, 2, 4
    assert layers_of(stages(big, student, again | {"from": "stage:big"})) == [5, 3, 3]
    assert layers_of(stages(big, student, again | {"from": "stage:half"})) == [5, 3, 2]
    assert layers_of(stages(big, student, again | {"from": "model"})) == [5, 3, 3]
    assert layers_of(stages(student | {"name": "big"}, {"kind": "grpo"})) == [3, 3]


def test_all_that_a_stage_takes_follows_its_own_size() -> None:
    """Half of the layers, on a learner and a generator of their own."""
    recipe = stages({"kind": "grpo", "name": "big"}, {"kind": "grpo", "every_layer": 2})
    inputs = PlanInputs(recipe, shape(), GivenFigures(mean_tokens=100.0))
    plan = plan_of(inputs, roles_of(parse_stock("1xH100:learner,1xH20:generator"), True))
    whole, half = plan.stages
    for stage, weights in ((whole, 5 * LAYER + 1600), (half, 3 * LAYER + 1600)):
        learner, (group,) = stage.settled.learner_memory, stage.settled.groups
        assert learner.copies + learner.gradients + learner.optimizer == 18 * weights
        assert group.memory.weights == 2 * weights
        delta = 1.1 * changed_share(1e-5) * 2 * weights
        assert stage.parts.bytes == pytest.approx((19 * delta + 2 * weights) / 20)
        assert stage.parts.checkpoint == pytest.approx(12 * weights / 2e9)
    # What depends on layers alone: launches of a decoding step.
    assert half.parts.generation < whole.parts.generation
    assert half.parts.update < whole.parts.update and half.hours.middle < whole.hours.middle
    assert whole.settled.groups[0].memory.cache == pytest.approx(
        half.settled.groups[0].memory.cache * 5 / 3
    )


def _last(teachers: list[dict[str, Any]], tasks: list[dict[str, Any]]) -> dict[str, Any]:
    last = {"kind": "distill", "every_layer": 2, "teacher": teachers, "task": tasks}
    return last | {"loss": "topk"}


def _distilled(teachers: list[dict[str, Any]], tasks: list[dict[str, Any]]) -> StageWork:
    return workloads(stages(BIG, _last(teachers, tasks)), shape(), True)[1]


def test_each_teacher_reads_the_answers_of_its_tasks_with_its_own_weights(tmp_path: Path) -> None:
    (tmp_path / "run" / "weights").mkdir(parents=True)
    for name in ("manifest.json", "ledger.sqlite"):
        (tmp_path / "run" / name).touch()
    other = CONFIG | {"num_hidden_layers": 9}
    (tmp_path / "run" / "weights" / "config.json").write_text(json.dumps(other))
    tasks = [TASK | {"label": "a"}, TASK | {"label": "b", "weight": 3.0}]
    teachers = [
        {"name": "one", "model": "stage:big", "tasks": ["a"]},
        {"name": "two", "model": str(tmp_path / "run"), "tasks": ["b"]},
    ]
    work = _distilled(teachers, tasks)
    found = [(each.shape.layers, each.share, each.held) for each in work.teachers]
    assert found == [(5, 0.25, True), (9, 0.75, True)] and work.shape.layers == 3
    assert not any("teacher" in each for each in work.assumed)
    inputs = PlanInputs(stages(BIG, _last(teachers, tasks)), shape())
    plan = plan_of(inputs, roles_of(parse_stock("1xH100:both"), True))
    stage, rates = plan.stages[1], values()
    learners, load = stage.settled.learners, stage.work.load(rates)
    reading = [forward_s(learners._replace(shape=e.shape), load, rates) for e in work.teachers]
    assert stage.parts.scoring == pytest.approx(0.25 * reading[0] + 0.75 * reading[1])
    held = 2 * (5 + 9) * LAYER + 4 * 2 * WORDS  # in bfloat16
    assert stage.settled.learner_memory.held == held


def test_what_nobody_knows_of_a_teacher_is_assumed_and_told() -> None:
    work = _distilled([{"name": "far", "url": "http://localhost:1/v1"}], [TASK])
    assert [(each.shape.layers, each.held) for each in work.teachers] == [(5, False)]
    assert "the teacher 'far' is as large as [model]" in work.assumed
    assert any("reads as fast as the learner's chips" in each for each in work.assumed)


def test_a_reference_is_held_beside_the_weights_that_learn() -> None:
    kl = {"loss": {"kl_beta": 0.01}}
    inputs = PlanInputs(stages({"kind": "grpo"} | kl, {"kind": "grpo"}), shape())
    plan = plan_of(inputs, roles_of(parse_stock("1xH100:both"), True))
    held = [stage.settled.learner_memory.held for stage in plan.stages]
    assert held == [2 * shape().params, 0.0]


def test_a_model_with_experts_has_no_such_student() -> None:
    recipe = stages({"kind": "grpo"}, {"kind": "grpo", "every_layer": 2})
    with pytest.raises(ConfigError, match=r"^stage\.1 learns every 2\. layer, and Qwen3-30B-A3B"):
        workloads(recipe, model_shape("Qwen3-30B-A3B"), True)


def _planned(*changes: str) -> Plan:
    recipe = load_recipe(SHIPPED / "r1-tiny.toml", changes)
    inputs = PlanInputs(recipe, model_shape("SmolLM2-135M"), GivenFigures(65.0, 31.0))
    return plan_of(inputs, roles_of(parse_stock("1xcpu:both"), True))


def test_the_student_of_r1_tiny_costs_less_than_its_model_would() -> None:
    plan, as_large = _planned(), _planned("stage.4.every_layer=1")
    assert [stage.work.shape.layers for stage in plan.stages] == [30] * 5 + [15] * 2
    layer = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536
    assert plan.stages[5].work.shape.params == 15 * layer + 49_152 * 576
    assert [each.shape.layers for each in plan.stages[6].work.teachers] == [30]
    before, after = zip(plan.stages[:5], as_large.stages[:5], strict=True), plan.stages[5:]
    assert all(one.hours == other.hours for one, other in before)
    for small, large in zip(after, as_large.stages[5:], strict=True):
        assert small.hours.middle < 0.75 * large.hours.middle
        assert small.memory["learner"] < 0.75 * large.memory["learner"]
    assert plan.hours.middle < as_large.hours.middle
