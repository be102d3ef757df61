"""A recipe to plan, and how it is planned."""

from collections.abc import Callable
from typing import Any

import pytest

from interlock.config.reading import parse_recipe
from interlock.plan.chips import parse_stock
from interlock.plan.plan import Plan, PlanInputs, plan_of
from interlock.plan.roles import roles_of
from interlock.plan.shapes import model_shape

GRPO: dict[str, Any] = {
    "name": "planned",
    "model": {"path": "hf:Qwen/Qwen3-8B"},
    "stage": [
        {
            "kind": "grpo",
            "steps": 100,
            "problems_per_step": 64,
            "completions": 16,
            "sampling": {"max_tokens": 8192},
            "task": {"name": "arithmetic", "workers": 4},
        }
    ],
}


@pytest.fixture
def inputs() -> Callable[..., PlanInputs]:
    """`inputs(model=…, stage={…}, link=…)`: the recipe with changes."""

    def make(
        model: str = "Qwen3-8B", stage: dict[str, Any] | None = None, **rest: Any
    ) -> PlanInputs:
        recipe_rest = {key: rest.pop(key) for key in ("sync", "fleet", "learner") if key in rest}
        tree = GRPO | {"stage": [GRPO["stage"][0] | (stage or {})]} | recipe_rest
        return PlanInputs(recipe=parse_recipe(tree), shape=model_shape(model), **rest)

    return make


@pytest.fixture
def planned(inputs: Callable[..., PlanInputs]) -> Callable[..., Plan]:
    """`planned("8xH100:both", …)`"""

    def make(chips: str, **rest: Any) -> Plan:
        return plan_of(inputs(**rest), roles_of(parse_stock(chips), True))

    return make
