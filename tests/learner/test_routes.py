"""Replay of routes: experts by record, weights by the learner's own router, against plain loops."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from expert_models import ROUTING, mixture
from msgspec.structs import replace
from rounding import assert_close
from torch import Tensor

from interlock.config.losses import LossSettings
from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.errors import TrainingError
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup, pack
from interlock.learner.routes import stream_routes
from interlock.mismatch import mismatch
from interlock.models.decoder import Decoder
from interlock.models.moe import Experts
from interlock.models.routes import packed, problem, route_shape, unpacked
from interlock.records.replay import Replay, RouteShape
from interlock.records.rl import Sampling

GROUPED: dict[str, Any] = {
    "gate": "sigmoid",
    "corrected": True,
    "groups": 4,
    "kept_groups": 2,
    "group_top": 2,
    "scale": 2.5,
}
SHAPE = RouteShape(layers=3, per_token=4, experts=16)


def layer(**routing: Any) -> Experts:
    found = Experts(32, replace(ROUTING, experts=16, per_token=4, inner=8, **routing))
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=noise) * 0.3)
    return found


def plain_experts(own: Experts, x: Tensor, choice: Tensor) -> Tensor:
    """Token by token, expert by expert; the choice is a constant."""
    routing, rows = own.router.routing, []
    inner = routing.inner
    for token, chosen in zip(x, choice.tolist(), strict=True):
        logits = own.router.weight @ token
        scores = logits.softmax(-1) if routing.gate == "softmax" else logits.sigmoid()
        weights = torch.stack([scores[expert] for expert in chosen])
        if routing.normalize:
            weights = weights / weights.sum()
        total = torch.zeros_like(token)
        for weight, expert in zip(weights * routing.scale, chosen, strict=True):
            gate, up = own.gate_up[expert] @ token, None
            gate, up = gate[:inner], gate[inner:]
            hidden = torch.nn.functional.silu(gate) * up
            total = total + weight * (own.down[expert] @ hidden)
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize("routing", [{}, {"normalize": False}, GROUPED], ids=str)
def test_given_experts_equal_a_plain_loop_with_its_gradients(routing: dict[str, Any]) -> None:
    """Gradients flow through the router's weights too, as of a formula with the choice fixed."""
    own, noise = layer(**routing), torch.Generator().manual_seed(5)
    x = torch.randn(7, 32, generator=noise).requires_grad_()
    choice = torch.stack([torch.randperm(16, generator=noise)[:4] for _ in range(7)])
    slope = torch.randn(7, 32, generator=noise)
    parameters = [x, own.router.weight, own.gate_up, own.down]

    out = own(x, choice.to(torch.int16))
    found = [out, *torch.autograd.grad((out * slope).sum(), parameters)]
    assert own.choice is not None and own.choice.equal(choice)
    assert own.routed is not None and own.routed.sum() == 7 * 4

    def expected(module: Experts, x: Tensor) -> list[Tensor]:
        out = plain_experts(module, x, choice)
        wanted = [x, module.router.weight, module.gate_up, module.down]
        return [out, *torch.autograd.grad((out * slope.to(x.dtype)).sum(), wanted)]

    wide = copy.deepcopy(own).double()
    exact = expected(wide, x.detach().double().requires_grad_())
    for one, *others in zip(found, exact, expected(own, x), strict=True):
        assert_close(one, *others)
    assert found[2].abs().sum() > 0


@pytest.mark.parametrize("routing", [{}, GROUPED], ids=str)
def test_own_experts_given_change_no_bit_and_minus_one_is_a_tokens_own(
    routing: dict[str, Any],
) -> None:
    own = layer(**routing)
    x = torch.randn(9, 32, generator=torch.Generator().manual_seed(1))
    free = own(x)
    assert own.choice is not None
    choice = own.choice.clone()
    assert torch.equal(own(x, choice.to(torch.int16)), free)
    others = (choice + 1) % 16
    others[::2] = -1
    mixed = own(x, others.to(torch.int16))
    assert torch.equal(own.choice[::2], choice[::2])
    assert torch.equal(own.choice[1::2], others[1::2])
    torch.testing.assert_close(mixed[::2], free[::2])
    assert not torch.allclose(mixed[1::2], free[1::2])


def test_bytes_are_read_back_in_one_byte_or_two() -> None:
    noise = torch.Generator().manual_seed(0)
    for experts, size in ((256, 1), (257, 2)):
        shape = RouteShape(2, 3, experts)
        choice = torch.stack(
            [torch.randperm(experts, generator=noise)[:3] for _ in range(10)]
        ).reshape(5, 2, 3)
        routes = packed(choice.numpy(), shape)
        assert len(routes) == 5 * shape.token_bytes == 5 * 2 * 3 * size
        assert unpacked(routes, shape).tolist() == choice.tolist()
        assert problem(routes, 5, shape) is None
    assert problem(b"\1" * 12, 1, SHAPE) == "a route through one expert twice"
    assert problem(b"\1\2\3\20" * 3, 1, SHAPE) == "a route through expert 16, where there are 16"
    assert problem(b"\1" * 11, 1, SHAPE) == "routes of 11 bytes where 1 tokens have 12 each"


def test_a_stream_has_the_route_of_each_of_its_tokens() -> None:
    """Routes that count up: of a prompt's token t, expert t; of the token before answer a's token
    t, expert 10 a + t."""
    shape = RouteShape(1, 1, 100)
    parts = [
        ([5, 6, 7], [[1, 2, 3], [4]], bytes([0, 1]), [bytes([10, 11, 12]), bytes([20])]),
        ([8, 9], [[1, 2]], b"", [bytes([30, 31])]),
        ([8], [[1, 2], [3, 4]], b"", [b"", bytes([50, 51])]),
    ]
    found = stream_routes(parts, shape)
    assert found is not None
    # prompt, then inputs of answers: all but their last tokens
    assert found[:, 0, 0].tolist() == [0, 1, 10, 11, 12, -1, 30, 31, -1, -1, 51]
    assert stream_routes([([1, 2], [[3]], b"", [])], shape) is None


Drawn = tuple[Decoder, list[TrainingGroup]]


def drawn(seed: int, dtype: torch.dtype, **routing: Any) -> Drawn:
    """A decoder of fp32 masters, and what a sampler in `dtype` drew with them and told."""
    decoder = mixture(seed, **routing)
    sampler = copy.deepcopy(decoder)
    sampler.dtype = dtype
    with torch.no_grad():
        for own, theirs in zip(decoder.parameters(), sampler.parameters(), strict=True):
            if own.requires_grad:  # both have the weights that are published
                theirs.data = theirs.data.to(dtype)
                own.copy_(theirs)
    engine = PortableEngine(sampler, Silent(), 16)
    replay, rule = Replay(routes=route_shape(decoder.arch)), Sampling(max_tokens=40)
    asked = [
        Request(str(n), list(range(n + 1, n + 9)), 4, rule, 3, replay=replay) for n in range(4)
    ]
    groups = [
        TrainingGroup(
            prompt=request.prompt_tokens,
            completions=[each.tokens for each in answers],
            weights=[[0.01 * (n - 1.5)] * len(a.tokens) for n, a in enumerate(answers)],
            sampler_logprobs=[each.logprobs for each in answers],
            prompt_routes=answers[0].prompt_routes,
            routes=[each.routes for each in answers],
        )
        for request, answers in zip(asked, engine.generate(asked), strict=True)
    ]
    return decoder, groups


class Silent:
    eos_ids: frozenset[int] = frozenset()

    def decode(self, ids: list[int]) -> str:
        return ""

    def stream(self) -> "Silent":
        return self

    def definition(self) -> str:
        return ""

    def push(self, token: int) -> str:
        return ""


def open_learner(decoder: Decoder, tokens: int = 128) -> Learner:
    settings = LearnerSettings(dtype="float32", micro_batch_tokens=tokens)
    return Learner(decoder, settings, OptimizerSettings(), 10)


def forgotten(groups: list[TrainingGroup]) -> list[TrainingGroup]:
    return [replace(group, prompt_routes=b"", routes=[]) for group in groups]


@pytest.mark.parametrize("routing", [{}, GROUPED], ids=["softmax", "grouped"])
def test_the_mismatch_of_a_bf16_sampler_is_at_least_halved(routing: dict[str, Any]) -> None:
    decoder, groups = drawn(0, torch.bfloat16, **routing)
    learner = open_learner(decoder)
    mu = [v for group in groups for values in group.sampler_logprobs or [] for v in values]

    def k3(groups: list[TrainingGroup]) -> float:
        pi = torch.cat([part for each in learner.logprobs(groups) for part in each])
        return mismatch(pi.tolist(), mu).k3

    before, after = k3(forgotten(groups)), k3(groups)
    assert len(mu) == 640 and 0 < after < before / 2
    result = learner.step(groups, LossSettings())
    assert result.mismatch is not None and result.mismatch.k3 == pytest.approx(after, rel=1e-3)


def test_in_one_dtype_replay_changes_nothing(sampled: Callable[..., Any]) -> None:
    decoder, groups = drawn(0, torch.float32)
    whole, small = open_learner(copy.deepcopy(decoder)), open_learner(copy.deepcopy(decoder), 24)
    own, given = (whole.logprobs(each) for each in (forgotten(groups), groups))
    for a, b in zip(own, given, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    # Split over micro-batches, the prompt repeated, it is the same but for rounding.
    a, b = (each.step(groups, LossSettings()) for each in (whole, small))
    assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)


def test_other_routes_change_the_policy_and_not_the_reference() -> None:
    decoder, groups = drawn(0, torch.float32)
    settings = LearnerSettings(dtype="float32")
    learner = Learner(decoder, settings, OptimizerSettings(), 10, keep_reference=True)
    moved = [
        replace(
            group,
            routes=[packed((unpacked(r, SHAPE) + 1) % 16, SHAPE) for r in group.routes],
            kl_weights=[[0.001] * len(tokens) for tokens in group.completions],
        )
        for group in groups
    ]
    own = torch.cat([part for each in learner.logprobs(forgotten(groups)) for part in each])
    given = torch.cat([part for each in learner.logprobs(moved) for part in each])
    assert (own - given).abs().mean() > 0.01
    apart = (own - given).double()  # the reference routes by itself
    result = learner.step(moved, LossSettings(kl_beta=0.1))
    assert result.kl == pytest.approx((torch.expm1(apart) - apart).mean().item(), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"routes": [b""]}, "1 routes for 4 completions"),
        ({"routes": [b"\0"] * 4}, "routes of 1 bytes where 40 tokens"),
        ({"prompt_routes": b"\0" * 12}, "routes of 12 bytes where 7 tokens"),
        ({"prompt_routes": b"\0" * 84}, "one expert twice"),
    ],
)
def test_malformed_routes_are_refused(change: dict[str, Any], said: str) -> None:
    decoder, groups = drawn(0, torch.float32)
    with pytest.raises(TrainingError, match=said):
        open_learner(decoder).step([replace(groups[0], **change)], LossSettings())
    with pytest.raises(TrainingError, match="the model has no experts"):
        pack(groups, 128, 61, torch.device("cpu"))
