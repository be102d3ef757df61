"""The gradients of a step against plain sequences and transformers; the weights it publishes."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from learning import (
    LENGTHS,
    STILL,
    Plain,
    Sampled,
    Tiny,
    assert_same,
    differentiated,
    exploding,
    flat,
    gradients,
    make,
    masters,
)
from msgspec.structs import replace
from rounding import allowed, assert_close, in_both
from torch import Tensor, nn

from interlock.config.losses import LossSettings
from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.errors import TrainingError
from interlock.learner.balance import ExpertLoad
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup
from interlock.models.architecture import Routing
from interlock.models.checkpoint import load_decoder
from interlock.models.decoder import Decoder
from interlock.workers.inspection.operators import Doubled

EPS = torch.finfo(torch.float32).eps


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


def test_logprobs_equal_those_of_plain_sequences(
    tiny: Tiny, sampled: Sampled, plain_logprobs: Plain
) -> None:
    groups, decoder = sampled(LENGTHS), tiny()
    found = make(decoder, micro_batch_tokens=8).logprobs(groups, 0.7)
    assert [[len(part) for part in group] for group in found] == LENGTHS
    with torch.no_grad():
        exact, plain = in_both(decoder, lambda made: torch.cat(plain_logprobs(made, groups, 0.7)))
    assert_close(torch.cat([part for group in found for part in group]), exact, plain)


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
    found = learner.step(groups, LossSettings()).expert_load
    # 3 + 4 + 0 + 2 and 4 + 3 + 3 tokens, and 19 / 4 is nobody's load: every bias moves.
    assert experts.routed is not None and experts.routed.sum() == 19
    moved = [0.251 if load < 19 / 4 else 0.249 for load in experts.routed.tolist()]
    assert bias.tolist() == pytest.approx(moved, rel=EPS)
    assert len(set(moved)) == 2
    loads = experts.routed.tolist()
    assert found == ExpertLoad(max(loads) / (19 / 4), loads.count(0) / 4)
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
