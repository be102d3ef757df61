"""Our losses and their gradients are those of TRL 1.16, run here or as recorded from it."""

import json
from importlib import metadata

import pytest
import torch
from trl_losses import CASES, MAX_TOKENS, RECORDED, Batch, Case, batch, by_trl

from interlock.config.losses import LossSettings
from interlock.learner.losses.corrections import completion_ratio
from interlock.learner.losses.policy import policy_loss
from interlock.learner.losses.terms import Terms
from interlock.learner.packing import TrainingGroup
from interlock.recipes.off_policy import gaps_of

LENGTHS = [5, 3, 2, 4]


def by_us(case: Case, given: Batch) -> tuple[float, list[list[float]]]:
    """As trl_losses.by_trl, by the learner's loss over the tokens without their padding."""
    settings = LossSettings(**{"correction": "off"} | case.ours)
    inside = given.mask.bool()
    rows = given.mask.sum(1, keepdim=True).expand_as(given.mask)
    share = {
        "token": 1 / given.mask.sum().expand_as(rows),
        "sequence": 1 / (4 * rows),
        "constant": torch.full_like(rows, 1 / (4 * MAX_TOKENS)),
    }[settings.normalize]
    signed = given.advantages[:, None] * share
    if case.threshold is not None:
        signed = signed * kept(given, case.threshold)[:, None]
    leaf = given.logprobs[inside].clone().requires_grad_()
    terms = Terms(
        weights=signed[inside],
        sampler=given.sampler[inside],
        old=given.old[inside],
        reference=given.reference[inside],
        kl_weights=(settings.kl_beta * share)[inside] if settings.kl_beta else None,
        sequence=completion_ratio(given.logprobs[inside], given.old[inside], LENGTHS).double()
        if settings.rule == "gspo"
        else None,
    )
    loss = policy_loss(leaf, terms, settings).sum()
    (slope,) = torch.autograd.grad(loss, leaf)
    padded = torch.zeros_like(given.mask)
    padded[inside] = slope
    return loss.item(), padded.tolist()


def kept(given: Batch, threshold: float) -> torch.Tensor:
    """[4], 0 where the answer is left out."""
    found = []
    for row, length in enumerate(LENGTHS):
        own = given.logprobs[row, :length]
        mu, weight = given.sampler[row, :length].tolist(), given.advantages[row].item()
        group = TrainingGroup([0], [[0] * length], [[weight] * length], [mu])
        (gap,) = gaps_of(group, [own])
        assert gap is not None
        found.append(0.0 if weight < 0 and gap > threshold else 1.0)
    return torch.tensor(found, dtype=torch.float64)


def assert_near(
    found: tuple[float, list[list[float]]], expected: tuple[float, list[list[float]]]
) -> None:
    assert found[0] == pytest.approx(expected[0], abs=1e-6)
    for one, other in zip(found[1], expected[1], strict=True):
        assert one == pytest.approx(other, abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_what_trl_gave(name: str) -> None:
    loss, slopes = json.loads(RECORDED.read_text())[name]
    assert_near(by_us(CASES[name], batch()), (loss, slopes))


def test_every_kind_of_token_is_in_the_batch() -> None:
    """Clipped on either side, left alone, and an answer that is left out: else all would agree."""
    given = batch()
    ratio = (given.logprobs - given.old).exp()[given.mask.bool()]
    assert (ratio > 1.28).any() and (ratio < 0.8).any()
    assert kept(given, 0.1).tolist() not in ([1.0] * 4, [1.0, 0.0, 1.0, 0.0])
    recorded = json.loads(RECORDED.read_text())
    losses = [round(loss, 9) for loss, _ in recorded.values()]
    assert len(set(losses)) == len(CASES)


@pytest.mark.slow  # to import TRL takes seconds
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_trl(name: str) -> None:
    pytest.importorskip("trl", reason="TRL is in the extra `bench`; else its record is compared")
    assert metadata.version("trl").startswith("1.16"), "record trl_losses.json anew"
    assert_near(by_us(CASES[name], batch()), by_trl(CASES[name], batch()))
