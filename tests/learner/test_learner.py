import copy
import math
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from rounding import allowed, assert_close, in_both
from torch import Tensor, nn

from interlock.config.schema import LearnerSettings, LossSettings, OptimizerSettings
from interlock.errors import TrainingError
from interlock.learner.learner import Learner, learning_rate
from interlock.learner.packing import TrainingGroup
from interlock.models.architecture import Routing
from interlock.models.checkpoint import load_decoder
from interlock.models.decoder import Decoder
from interlock.workers.inspection.operators import Doubled

Tiny = Callable[..., Decoder]
Sampled = Callable[..., list[TrainingGroup]]
Plain = Callable[..., list[Tensor]]

LENGTHS = [[5, 1, 3], [4, 4]]
EPS = torch.finfo(torch.float32).eps
FP32 = LearnerSettings(dtype="float32", logits_chunk=4)
STILL = OptimizerSettings(lr=1e-12, clip_norm=1e9)


def make(decoder: Decoder, optimizer: OptimizerSettings = STILL, **changes: object) -> Learner:
    settings = LearnerSettings(**{"dtype": "float32", "logits_chunk": 4} | changes)  # type: ignore
    return Learner(decoder, settings, optimizer, total_steps=10)


def gradients(
    learner: Learner,
    groups: list[TrainingGroup],
    loss: LossSettings | None,
    temperature: float = 1,
    old: list[list[Tensor]] | None = None,
) -> dict[str, Tensor]:
    """The gradients that the learner hands to AdamW."""
    caught: dict[str, Tensor] = {}

    def catch(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for name, parameter in learner.parameters.items():
            assert parameter.grad is not None
            caught[name] = parameter.grad.clone()

    handle = learner.optimizer.register_step_pre_hook(catch)
    learner.step(groups, loss, temperature, old)
    handle.remove()
    return caught


def differentiated(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def k3_and_slack(gap: Tensor, slack: Tensor) -> tuple[float, float]:
    """The mean k3 of log pi - log mu, and how far it moves where each moves by `slack`."""
    slope = torch.expm1(gap.double())
    return (slope - gap).mean().item(), (slope.abs() * slack + slack**2).mean().item()


def masters(decoder: Decoder) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in decoder.named_parameters()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert not [name for name in found if not torch.equal(found[name], expected[name])]


def flat(values: list[list[float]] | None) -> Tensor:
    assert values is not None
    return torch.tensor([value for part in values for value in part])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_packed_gradients_equal_those_of_plain_sequences(
    tiny: Tiny, sampled: Sampled, plain_logprobs: Plain, tied: bool, temperature: float
) -> None:
    groups, decoder = sampled(LENGTHS), tiny(tied=tied)
    weights = torch.cat([flat(group.weights) for group in groups])
    mu = torch.cat([flat(group.sampler_logprobs) for group in groups])

    def expected(decoder: Decoder) -> dict[str, Tensor]:
        logprobs = torch.cat(plain_logprobs(decoder, groups, temperature))
        # On-policy: the gradient of r is that of log pi, times the truncated pi / mu.
        factor = (logprobs.detach() - mu).exp().clamp(max=1.5)
        return differentiated(decoder, (-weights * factor * logprobs).sum())

    exact, plain = in_both(decoder, expected)
    found = gradients(make(decoder), groups, LossSettings(tis_cap=1.5), temperature)
    assert found.keys() == exact.keys()
    for name, gradient in found.items():
        assert_close(gradient, exact[name], plain[name], where=name)


def test_loss_and_gradients_equal_those_of_transformers(tmp_path: Path, sampled: Sampled) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    oracle = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=61,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
            initializer_range=0.3,
        )
    )
    oracle.save_pretrained(tmp_path)
    decoder = load_decoder(tmp_path, torch.float32, torch.device("cpu"))
    groups = sampled(LENGTHS, sampler=False)

    def expected(oracle: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        parts = []
        for group in groups:
            for completion, weights in zip(group.completions, group.weights, strict=True):
                tokens = torch.tensor([group.prompt + completion])
                logprobs = oracle(tokens).logits[0, len(group.prompt) - 1 : -1].log_softmax(-1)
                chosen = logprobs.gather(1, torch.tensor(completion)[:, None])[:, 0]
                parts.append(-torch.tensor(weights) * chosen)
        return torch.cat(parts).detach(), differentiated(oracle, torch.cat(parts).sum())

    with Doubled():
        exact_parts, exact = expected(copy.deepcopy(oracle).double())
    parts, plain = expected(oracle)
    learner = make(decoder)
    found = gradients(learner, groups, None)
    layout = decoder.layout()
    for name, gradient in exact.items():
        ours, index = layout[name]
        assert_close(found[ours][index], gradient, plain[name], where=name)
    slack = allowed(exact_parts, parts).sum().item()
    assert learner.step(groups, None).loss == pytest.approx(exact_parts.sum().item(), abs=slack)


def test_accumulated_micro_batches_equal_one_batch(tiny: Tiny, sampled: Sampled) -> None:
    groups = sampled(LENGTHS, kl=True)

    def found(tokens: int, groups: list[TrainingGroup]) -> dict[str, Tensor]:
        settings = LearnerSettings(dtype="float32", logits_chunk=4, micro_batch_tokens=tokens)
        learner = Learner(tiny(), settings, STILL, 10, keep_reference=True)
        return gradients(learner, groups, LossSettings())

    whole, split = found(1000, groups), found(8, groups)
    turned = [
        replace(
            group,
            completions=group.completions[::-1],
            weights=group.weights[::-1],
            sampler_logprobs=(group.sampler_logprobs or [])[::-1],
            kl_weights=(group.kl_weights or [])[::-1],
        )
        for group in groups[::-1]
    ]
    again = [found(tokens, turned) for tokens in (1000, 12)]
    for name, gradient in whole.items():
        assert_close(split[name], gradient, *(each[name] for each in again), where=name)


def test_activation_checkpointing_changes_no_bit(tiny: Tiny, sampled: Sampled) -> None:
    groups, results = sampled(LENGTHS), []
    for checkpointing in (False, True):
        decoder = tiny()
        learner = make(decoder, OptimizerSettings(lr=1e-2), activation_checkpointing=checkpointing)
        learner.step(groups, LossSettings())
        assert decoder.checkpointing is checkpointing
        results.append(masters(decoder))
    assert_same(*results)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # lr 8, two steps of warm-up, six in all, down to a quarter
        ("constant", [4, 8, 8, 8, 8, 8, 8]),
        ("linear", [4, 8, 8, 6, 4, 2, 2]),
        ("cosine", [4, 8, 8, 6.5, 3.5, 2, 2]),  # 2 + 6 (1 + cos(pi / 3)) / 2 = 6.5
    ],
)
def test_the_schedule_by_hand(schedule: str, expected: list[float]) -> None:
    settings = OptimizerSettings(lr=8, warmup_steps=2, schedule=schedule, final_lr=0.25)  # type: ignore
    # Warm-up ends at step 1; the way down begins at step 2: steps 2 to 5 are 0 to 3 thirds of it.
    assert [learning_rate(settings, step, 6) for step in range(7)] == pytest.approx(expected)


def test_a_schedule_of_one_step_is_its_end() -> None:
    settings = OptimizerSettings(lr=8, schedule="linear", final_lr=0.25)
    assert learning_rate(settings, 0, 1) == 2
    assert learning_rate(OptimizerSettings(lr=8), 0, 1) == 8


def test_clipping_and_adamw_by_formula(tiny: Tiny, sampled: Sampled) -> None:
    optimizer = OptimizerSettings(
        lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, clip_norm=0.05, warmup_steps=2
    )
    decoder, groups = tiny(), sampled(LENGTHS)
    learner = make(decoder, optimizer)
    by_formula = [AdamW(decoder, optimizer, dtype) for dtype in (np.float64, np.float32)]
    for step in (1, 2):
        caught = gradients(make(tiny_copy(decoder, tiny)), groups, LossSettings())
        squares = torch.cat([gradient.flatten() for gradient in caught.values()]) ** 2
        norm = math.sqrt(squares.double().sum())
        assert norm > 0.05  # so that clipping is tested
        result = learner.step(groups, LossSettings())
        # One term after the other: no order of summation errs more.
        assert_close(result.grad_norm, norm, math.sqrt(np.add.accumulate(squares.numpy())[-1]))
        assert result.lr == pytest.approx(1e-2 * step / 2)
        exact, plain = (each.step(step, caught, norm, result.lr) for each in by_formula)
        for name, value in masters(decoder).items():
            assert_close(value, exact[name], plain[name], where=name)


class AdamW:
    """Its formula, and the clipping before it, in numpy."""

    def __init__(self, decoder: Decoder, settings: OptimizerSettings, dtype: type) -> None:
        self.settings, self.dtype = settings, dtype
        self.weights = {name: x.numpy().astype(dtype) for name, x in masters(decoder).items()}
        self.first = {name: np.zeros_like(x) for name, x in self.weights.items()}
        self.second = {name: np.zeros_like(x) for name, x in self.weights.items()}

    def step(
        self, number: int, gradients: dict[str, Tensor], norm: float, lr: float
    ) -> dict[str, Tensor]:
        (beta1, beta2), rule = self.settings.betas, self.settings
        for name, weight in self.weights.items():
            gradient = gradients[name].numpy().astype(self.dtype) * (rule.clip_norm / norm)
            self.first[name] = beta1 * self.first[name] + (1 - beta1) * gradient
            self.second[name] = beta2 * self.second[name] + (1 - beta2) * gradient**2
            if weight.ndim > 1:
                weight *= 1 - lr * rule.weight_decay
            mean = self.first[name] / (1 - beta1**number)
            spread = self.second[name] / (1 - beta2**number)
            weight -= lr * mean / (np.sqrt(spread) + rule.eps)
        return {name: torch.from_numpy(weight.copy()) for name, weight in self.weights.items()}


def tiny_copy(decoder: Decoder, tiny: Tiny) -> Decoder:
    copied = tiny()
    copied.load_state_dict(decoder.state_dict())
    return copied


def exploding(groups: list[TrainingGroup]) -> list[TrainingGroup]:
    """Finite weights with which the fp32 loss is infinite."""
    return [
        TrainingGroup(
            group.prompt,
            group.completions,
            [[3e38] * len(tokens) for tokens in group.completions],
            group.sampler_logprobs,
        )
        for group in groups
    ]


def test_a_step_that_is_not_finite_changes_nothing(tiny: Tiny, sampled: Sampled) -> None:
    groups = sampled(LENGTHS)
    optimizer = OptimizerSettings(lr=1e-2, schedule="linear")
    left, right = tiny(), tiny()
    disturbed, calm = make(left, optimizer), make(right, optimizer)
    for learner in (disturbed, calm):
        learner.step(groups, LossSettings())
    bad = disturbed.step(exploding(groups), LossSettings(tis_cap=1e9))
    assert bad.skipped and not math.isfinite(bad.loss)
    assert (disturbed.steps, disturbed.bad_steps, disturbed.bad_in_row) == (1, 1, 1)
    assert_same(masters(left), masters(right))
    results = [learner.step(groups, LossSettings()) for learner in (disturbed, calm)]
    assert results[0] == results[1] and not results[0].skipped
    assert_same(masters(left), masters(right))
    assert (disturbed.steps, disturbed.bad_steps, disturbed.bad_in_row) == (2, 1, 0)


def test_bad_steps_in_a_row_stop_the_run(tiny: Tiny, sampled: Sampled) -> None:
    groups, learner = sampled(LENGTHS), make(tiny(), max_bad_steps=2)
    bad, loss = exploding(groups), LossSettings(tis_cap=1e9)
    learner.step(bad, loss)
    learner.step(groups, loss)
    learner.step(bad, loss)
    with pytest.raises(TrainingError, match=r"step 4: loss .*inf.* norm .*2 steps in a row"):
        learner.step(bad, loss)


def test_logprobs_equal_those_of_plain_sequences(
    tiny: Tiny, sampled: Sampled, plain_logprobs: Plain
) -> None:
    groups, decoder = sampled(LENGTHS), tiny()
    found = make(decoder, micro_batch_tokens=8).logprobs(groups, 0.7)
    assert [[len(part) for part in group] for group in found] == LENGTHS
    with torch.no_grad():
        exact, plain = in_both(decoder, lambda made: torch.cat(plain_logprobs(made, groups, 0.7)))
    assert_close(torch.cat([part for group in found for part in group]), exact, plain)


def test_the_ratio_of_the_first_update_is_exactly_one(tiny: Tiny, sampled: Sampled) -> None:
    groups, loss = sampled(LENGTHS), LossSettings()
    left, right = make(tiny()), make(tiny(), OptimizerSettings(lr=1e-12, clip_norm=1e9))
    old = right.logprobs(groups)
    plain, with_old = left.step(groups, loss), right.step(groups, loss, old=old)
    assert plain == with_old
    assert plain.clipped_share == 0
    assert plain.tokens == 17


def test_later_updates_are_clipped_against_the_old_policy(tiny: Tiny, sampled: Sampled) -> None:
    groups, loss = sampled(LENGTHS), LossSettings()
    learner = make(tiny(), OptimizerSettings(lr=0.05))
    old = learner.logprobs(groups)
    steps = [learner.step(groups, loss, old=old) for _ in range(4)]
    assert steps[0].clipped_share == 0 and (steps[-1].clipped_share or 0) > 0.2
    # The mismatch is that of the policy which was sampled, not of the one being updated.
    assert steps[-1].mismatch == steps[0].mismatch


def test_the_reference_stays_while_the_policy_moves(
    tiny: Tiny, sampled: Sampled, plain_logprobs: Plain
) -> None:
    groups, decoder = sampled(LENGTHS, kl=True), tiny()
    learner = Learner(decoder, FP32, OptimizerSettings(lr=1e-2), 10, keep_reference=True)

    @torch.no_grad()
    def now() -> tuple[Tensor, Tensor]:
        exact, plain = in_both(decoder, lambda made: torch.cat(plain_logprobs(made, groups)))
        return exact, allowed(exact, plain)

    before, slack_before = now()
    assert learner.step(groups, LossSettings()).kl == 0
    after, slack_after = now()
    expected, slack = k3_and_slack(before - after, slack_before + slack_after)
    assert slack < expected / 100
    assert learner.step(groups, LossSettings()).kl == pytest.approx(expected, abs=slack)
    with pytest.raises(TrainingError, match="no reference policy"):
        make(tiny()).step(groups, LossSettings())


def test_mismatch_of_a_step_is_against_the_sampler(
    tiny: Tiny, sampled: Sampled, plain_logprobs: Plain
) -> None:
    groups, decoder = sampled(LENGTHS), tiny()
    mu = torch.cat([flat(group.sampler_logprobs) for group in groups])
    with torch.no_grad():
        exact, plain = in_both(decoder, lambda made: torch.cat(plain_logprobs(made, groups)))
    gap, slack = exact - mu, allowed(exact, plain)
    k3, k3_slack = k3_and_slack(gap, slack)
    result = make(decoder, micro_batch_tokens=8).step(groups, LossSettings())
    assert result.mismatch is not None
    assert result.mismatch.k3 == pytest.approx(k3, abs=k3_slack)
    assert result.mismatch.max == pytest.approx(gap.abs().max().item(), abs=slack.max().item())
    assert result.mismatch.share_above_2 == (gap.exp() > 2).double().mean().item()


def relabelled(groups: list[TrainingGroup], labels: list[str]) -> list[TrainingGroup]:
    return [replace(group, label=label) for group, label in zip(groups, labels, strict=True)]


@pytest.mark.parametrize("micro_batch_tokens", [1000, 8])  # 8: groups are split
def test_mismatch_is_told_apart_by_label(
    tiny: Tiny, sampled: Sampled, plain_logprobs: Plain, micro_batch_tokens: int
) -> None:
    groups, decoder = sampled([[5, 1, 3], [4, 4], [2, 6]]), tiny()
    # e times as unlikely, so that some ratios of this group too are above 2
    groups[1] = replace(
        groups[1], sampler_logprobs=[[x - 1 for x in mu] for mu in groups[1].sampler_logprobs or []]
    )
    groups = relabelled(groups, ["b/0", "a/1", "b/0"])
    with torch.no_grad():
        exact, plain = in_both(decoder, lambda made: plain_logprobs(made, groups))
    slack = allowed(torch.cat(exact), torch.cat(plain)).max()
    parts = iter(exact)
    gaps: dict[str, list[float]] = {"b/0": [], "a/1": []}
    for group in groups:
        for mu in group.sampler_logprobs or []:
            gaps[group.label] += (next(parts) - torch.tensor(mu)).tolist()
    learner = make(decoder, micro_batch_tokens=micro_batch_tokens)
    result = learner.step(groups, LossSettings())
    assert {label: found.tokens for label, found in result.by_label.items()} == {
        "b/0": 17,
        "a/1": 8,
    }
    for label, values in gaps.items():
        found = result.by_label[label]
        k3, k3_slack = k3_and_slack(torch.tensor(values, dtype=torch.float64), slack)
        assert found.k3 == pytest.approx(k3, abs=k3_slack)
        assert found.max == pytest.approx(max(map(abs, values)), abs=slack.item())
        above = sum(gap > math.log(2) for gap in values)
        assert 0 < above < len(values)
        assert found.share_above_2 == pytest.approx(above / len(values))
    both = result.by_label["a/1"] + result.by_label["b/0"]
    assert both.tokens == result.tokens and both.max == result.mismatch.max
    assert both.k3 == pytest.approx(result.mismatch.k3, rel=1e-9)
    assert both.share_above_2 == pytest.approx(result.mismatch.share_above_2, rel=1e-9)


def token_by_token(
    loss: LossSettings,
    groups: list[TrainingGroup],
    now: list[Tensor],  # of each completion, with gradients
    old: list[Tensor],
) -> tuple[Tensor, int, int]:
    """The loss of each token with its gradients; how many were truncated or masked, and vetoed."""
    parts, corrected, vetoed = [], 0, 0
    members = [
        (weights, mu)
        for group in groups
        for weights, mu in zip(group.weights, group.sampler_logprobs or [], strict=True)
    ]
    for (weights, mu), pi, before in zip(members, now, old, strict=True):
        mean = sum(b - m for b, m in zip(before.tolist(), mu, strict=True)) / len(mu)
        for at, weight in enumerate(weights):
            rho, base, factor = math.exp(before[at].item() - mu[at]), before[at], 1.0
            if loss.correction == "bypass":
                base = torch.tensor(mu[at])
            elif loss.correction == "masked":
                inside = loss.mask_low <= rho <= loss.mask_high
                factor = rho if inside else 0.0
                corrected += not inside
            elif loss.correction != "off":
                wanted = math.exp(mean) if loss.correction == "geometric" else rho
                factor = min(wanted, loss.tis_cap)
                if rho < loss.tis_veto:
                    factor = 0.0
                    vetoed += 1
                else:
                    corrected += wanted > loss.tis_cap
            ratio = (pi[at] - base).exp()
            if weight > 0:
                bounded = ratio.clamp(max=1 + loss.clip_high)
            else:
                bounded = ratio.clamp(min=1 - loss.clip_low)
            parts.append(-weight * factor * bounded)
    return torch.stack(parts), corrected, vetoed


@pytest.mark.parametrize("correction", ["truncated", "masked", "geometric", "bypass", "off"])
@pytest.mark.parametrize("first", [True, False])
def test_corrections_equal_those_of_single_tokens(
    tiny: Tiny, sampled: Sampled, plain_logprobs: Plain, correction: str, first: bool
) -> None:
    groups, decoder = sampled(LENGTHS), tiny()
    loss = LossSettings(
        correction=correction,  # type: ignore[arg-type]
        tis_cap=0.4 if correction == "geometric" else 1.3,
        tis_veto=0.2,
        mask_low=0.5,
        mask_high=2.0,
    )
    old = None
    if not first:
        noise = torch.Generator().manual_seed(5)
        with torch.no_grad():
            parts = iter(plain_logprobs(decoder, groups, 0.8))
        old = [
            [part + torch.randn(part.shape, generator=noise) * 0.3 for part in islice(parts, count)]
            for count in map(len, LENGTHS)
        ]

    def expected(decoder: Decoder) -> tuple[Tensor, int, int, dict[str, Tensor]]:
        now = plain_logprobs(decoder, groups, 0.8)
        before = [part.detach() for part in now] if old is None else [*chain(*old)]
        parts, corrected, vetoed = token_by_token(loss, groups, now, before)
        return parts.detach(), corrected, vetoed, differentiated(decoder, parts.sum())

    (parts, corrected, vetoed, exact), (plain_parts, *_, plain) = in_both(decoder, expected)
    learner = make(decoder, micro_batch_tokens=8)
    found = gradients(learner, groups, loss, 0.8, old)
    for name, gradient in found.items():
        assert_close(gradient, exact[name], plain[name], where=name)
    result = learner.step(groups, loss, 0.8, old)
    slack = allowed(parts, plain_parts).sum().item()
    assert result.loss == pytest.approx(parts.sum().item(), abs=slack)
    assert result.corrected_share == corrected / 17 and result.vetoed == vetoed
    if correction in ("truncated", "masked", "geometric"):
        assert corrected > 0  # so that something is tested
    if correction in ("truncated", "geometric"):
        assert vetoed > 0


def test_logprobs_that_a_correction_lacks_are_an_error(tiny: Tiny, sampled: Sampled) -> None:
    good, bad = sampled(LENGTHS), sampled(LENGTHS, sampler=False)
    learner = make(tiny())
    before = masters(learner.decoder)
    labels = ["gpu/0", "npu/2"]
    for correction in ("truncated", "masked", "geometric", "bypass", "off"):
        loss = LossSettings(correction=correction)  # type: ignore[arg-type]
        for groups in ([good[0], bad[1]], [bad[1]]):
            with pytest.raises(TrainingError, match=r"\(npu/2\) has no sampler log-probabilities"):
                learner.step(relabelled(groups, labels[-len(groups) :]), loss)
        values = [list(part) for part in good[1].sampler_logprobs or []]
        for value, message in (
            (math.nan, "holds nan"),
            (0.01, "holds 0.01"),
            (None, "of .* values"),
        ):
            spoiled = [list(part) for part in values]
            spoiled[1][-1:] = [] if value is None else [value]
            group = replace(good[1], sampler_logprobs=spoiled)
            with pytest.raises(TrainingError, match=rf"\(npu/2\): .*sampler_logprobs.*{message}"):
                learner.step(relabelled([good[0], group], labels), loss)
    assert learner.steps == learner.bad_steps == 0
    assert_same(masters(learner.decoder), before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_score_is_the_plain_logprobs_of_the_current_weights(
    tiny: Tiny, sampled: Sampled, plain_logprobs: Plain, dtype: str
) -> None:
    decoder = tiny()
    learner = make(decoder, OptimizerSettings(lr=1e-2), dtype=dtype)
    text = TrainingGroup([7], [[3, 11, 60, 0, 3, 3]], [[1.0] * 6])
    scores = []
    for _ in range(2):
        with torch.no_grad():
            exact, plain = in_both(decoder, lambda made: torch.cat(plain_logprobs(made, [text])))
        scores.append(learner.score([7, 3, 11, 60, 0, 3, 3]))
        if dtype == "float32":
            assert_close(scores[-1], exact, plain)
        else:  # products of other shapes round a logit to its neighbour, one in thousands
            apart = (torch.tensor(scores[-1]) - plain).abs().sort().values
            assert apart[-2] <= 16 * EPS and apart[-1] <= torch.finfo(torch.bfloat16).eps * 4
        learner.step(sampled(LENGTHS), LossSettings())
    assert scores[0] != pytest.approx(scores[1], abs=1e-3)
    assert learner.score([7]) == []


def test_likelihood_training_reports_no_mismatch(tiny: Tiny, sampled: Sampled) -> None:
    learner = make(tiny(), OptimizerSettings(lr=1e-2))
    groups = [
        TrainingGroup(
            group.prompt, group.completions, [[1 / 17] * len(c) for c in group.completions]
        )
        for group in sampled(LENGTHS, sampler=False)
    ]
    losses = [learner.step(groups, None) for _ in range(8)]
    assert losses[0].loss > losses[-1].loss + 0.5
    assert losses[0].mismatch is None and losses[0].kl is None and losses[0].vetoed is None
    assert losses[0].corrected_share is None and losses[0].by_label == {}


def test_a_step_without_any_weight_is_an_error(tiny: Tiny, sampled: Sampled) -> None:
    learner = make(tiny())
    with pytest.raises(TrainingError, match="no token of the step's groups has a weight"):
        learner.step([], LossSettings())
    with pytest.raises(TrainingError, match="no token"):
        learner.step([TrainingGroup([1], [[2]], [[0.0]])], None)


def test_published_weights_are_the_rounded_masters(tiny: Tiny, sampled: Sampled) -> None:
    decoder = tiny()
    learner = Learner(
        decoder, LearnerSettings(dtype="bfloat16"), OptimizerSettings(lr=1e-2), 10, version=3
    )
    number, tensors = learner.publish()
    views = decoder.tensors()
    assert number == 3
    assert tensors.keys() == views.keys()
    assert all(torch.equal(tensors[name], views[name].bfloat16()) for name in views)
    assert learner.publish()[0] == 3
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    learner.step(sampled(LENGTHS), LossSettings())
    assert_same(tensors, kept)  # what was published does not move with the masters
    number, after = learner.publish()
    assert number == 4
    assert [name for name in after if not torch.equal(after[name], tensors[name])]
    learner.step(exploding(sampled(LENGTHS)), LossSettings(tis_cap=1e9))
    number, same = learner.publish()
    assert number == 4
    assert_same(same, after)


def test_fp32_publication_is_a_copy(tiny: Tiny, sampled: Sampled) -> None:
    learner = make(tiny(), OptimizerSettings(lr=1e-2))
    _, tensors = learner.publish()
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    learner.step(sampled(LENGTHS), LossSettings())
    assert_same(tensors, kept)


def test_experts_are_balanced_after_good_steps_only(tiny: Tiny, sampled: Sampled) -> None:
    routing = Routing(
        layers=frozenset({1}),
        experts=4,
        per_token=1,
        inner=8,
        shared_inner=0,
        gate="sigmoid",
        corrected=True,
        groups=1,
        kept_groups=1,
        group_top=1,
        normalize=False,
        scale=1.0,
    )
    decoder, groups = tiny(routing=routing), sampled(LENGTHS)
    experts = next(decoder._experts())
    bias = experts.router.correction
    assert bias is not None
    with torch.no_grad():
        bias.fill_(0.25)
    learner = make(decoder, OptimizerSettings(lr=1e-2))
    learner.step(exploding(groups), LossSettings(tis_cap=1e9))
    assert bias.tolist() == [0.25] * 4 and experts.load is None
    learner.step(groups, LossSettings())
    # 3 + 4 + 0 + 2 and 4 + 3 + 3 tokens, and 19 / 4 is nobody's load: every bias moves.
    assert experts.routed is not None and experts.routed.sum() == 19
    moved = [0.251 if load < 19 / 4 else 0.249 for load in experts.routed.tolist()]
    assert bias.tolist() == pytest.approx(moved, rel=EPS)
    assert len(set(moved)) == 2
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert learner.publish()[1][name].dtype == torch.float32


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_two_runs_on_two_threads_give_the_same_bits(smollm2: Path, sampled: Sampled) -> None:
    """In float32: in bfloat16 a step takes a minute where the CPU has no instructions for it."""
    groups, results = sampled([[9, 14, 3], [12, 7, 12]]), []
    for _ in range(3):
        decoder = load_decoder(smollm2, torch.float32, torch.device("cpu"))
        learner = Learner(decoder, LearnerSettings(dtype="float32"), OptimizerSettings(lr=1e-4), 2)
        for _ in range(2):
            learner.step(groups, LossSettings())
        results.append(masters(decoder))
    for other in results[1:]:
        assert_same(results[0], other)
