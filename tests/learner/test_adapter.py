"""A learner of an adapter: what it moves, what it keeps, and what it refuses."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from learning import assert_same, gradients, make, masters
from torch import Tensor

from interlock.config.losses import LossSettings
from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.errors import RunError
from interlock.learner import checkpoint
from interlock.learner.learner import Learner
from interlock.models import adapters
from interlock.models.architecture import Routing
from interlock.models.decoder import Decoder
from interlock.records.adapters import AdapterForm

FORM = AdapterForm(rank=2, alpha=4.0)
MOVING = OptimizerSettings(lr=1e-2)
ROUTED = Routing(
    layers=frozenset({1}),
    experts=4,
    per_token=2,
    inner=8,
    shared_inner=8,
    gate="sigmoid",
    corrected=True,
    groups=1,
    kept_groups=1,
    group_top=1,
    normalize=True,
    scale=1.0,
)


def adapted(decoder: Decoder, form: AdapterForm = FORM) -> Decoder:
    adapters.attach(decoder, form, torch.float32, seed=1)
    return decoder


def test_one_step_moves_the_adapter_alone(
    tiny: Callable[..., Decoder], sampled: Callable[..., list]
) -> None:
    """Nor do the biases of experts move, which follow no gradient."""
    decoder = adapted(tiny(routing=ROUTED))
    learner = make(decoder, MOVING)
    before, base = masters(decoder), learner.base
    assert set(learner.parameters) == {owner for owner, _ in decoder.adapter_layout.values()}
    learner.step(sampled([[5, 1, 3], [4, 4]]), LossSettings())
    moved = {n for n, p in decoder.named_parameters() if not torch.equal(p, before[n])}
    assert moved and moved <= set(learner.parameters)
    assert all(name.endswith(".b") for name in moved)  # A has no slope where B is zero
    learner.step(sampled([[5, 1, 3], [4, 4]], seed=1), LossSettings())
    assert any(not torch.equal(decoder.get_parameter(n), before[n]) for n in moved)
    assert adapters.base_digest(decoder) == base
    assert all(p.grad is None for n, p in decoder.named_parameters() if n not in moved)


def test_gradients_are_those_of_full_training_through_the_product(
    tiny: Callable[..., Decoder], sampled: Callable[..., list]
) -> None:
    """With B zero, that of B is s dW Aᵀ; that of W is what the full learner has."""
    groups = sampled([[5, 1, 3], [4, 4]])
    full = gradients(make(tiny()), groups, LossSettings())
    decoder = adapted(tiny())
    found = gradients(make(decoder), groups, LossSettings())
    layout, slopes = decoder.layout(), {}
    for name, (owner, index) in layout.items():
        slopes[name.removesuffix(".weight")] = full[owner][index]
    for name, (owner, index) in decoder.adapter_layout.items():
        module, _, which = name.removeprefix("base_model.model.").rpartition(".lora_")
        a_owner, a_index = decoder.adapter_layout[name.replace("lora_B", "lora_A")]
        a = decoder.get_parameter(a_owner).detach()[a_index]
        expected: Tensor = 2.0 * slopes[module] @ a.T
        if which.startswith("B"):
            torch.testing.assert_close(found[owner][index], expected, atol=1e-6, rtol=1e-4)
        else:
            assert not found[owner][index].any()


def test_resuming_is_exact_and_keeps_the_adapter_alone(
    tiny: Callable[..., Decoder], sampled: Callable[..., list], tmp_path: Path
) -> None:
    def learner() -> Learner:
        settings = LearnerSettings(dtype="float32", logits_chunk=4)
        return Learner(adapted(tiny()), settings, MOVING, 10, keep_reference=True)

    def step(on: Learner, seed: int) -> None:
        on.step(sampled([[5, 1, 3], [4, 4]], seed=seed, kl=True), LossSettings(kl_beta=0.1))

    whole, stopped = learner(), learner()
    for seed in (0, 1):
        step(whole, seed)
        step(stopped, seed)
    whole.renew_reference()
    stopped.renew_reference()
    directory = tmp_path / "kept"
    directory.mkdir()
    checkpoint.save(stopped, directory, {})
    assert checkpoint.gather_state(stopped, "masters").keys() == stopped.parameters.keys()
    resumed = learner()
    checkpoint.load(resumed, directory)
    for seed in (2, 3):
        step(whole, seed)
        step(resumed, seed)
    assert_same(masters(resumed.decoder), masters(whole.decoder))


def test_the_reference_is_the_base_before_the_first_step(
    tiny: Callable[..., Decoder], sampled: Callable[..., list]
) -> None:
    settings = LearnerSettings(dtype="float32", logits_chunk=4)
    learner = Learner(adapted(tiny()), settings, MOVING, 10, keep_reference=True)
    assert learner.reference is not None
    assert learner.reference.embed.data_ptr() == learner.decoder.embed.data_ptr()
    first = learner.step(sampled([[5, 3]], kl=True), LossSettings(kl_beta=0.1))
    second = learner.step(sampled([[5, 3]], kl=True), LossSettings(kl_beta=0.1))
    assert first.kl == 0.0 and second.kl is not None and second.kl > 0


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (lambda tiny: adapted(tiny(seed=1)), "holds an adapter of other weights than these"),
        (lambda tiny: tiny(), "is of a run with learner.lora; resume with the recipe"),
        (lambda tiny: adapted(tiny(), AdapterForm(4, 4.0)), "is of another model: it differs in"),
    ],
)
def test_an_adapter_of_another_base_is_refused_and_nothing_is_changed(
    other: Callable[..., Decoder],
    told: str,
    tiny: Callable[..., Decoder],
    sampled: Callable[..., list],
    tmp_path: Path,
) -> None:
    learner = make(adapted(tiny()), MOVING)
    learner.step(sampled([[5, 3]]), LossSettings())
    checkpoint.save(learner, tmp_path, {})
    stranger = make(other(tiny), MOVING)
    before = masters(stranger.decoder)
    with pytest.raises(RunError) as refused:
        checkpoint.load(stranger, tmp_path)
    assert told in str(refused.value) and "\n" not in str(refused.value)
    assert_same(masters(stranger.decoder), before)
    assert stranger.steps == 0
