"""Routing, load counting and balancing, worked out by hand."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import PreTrainedModel

from interlock.errors import ModelError
from interlock.models.architecture import Routing
from interlock.models.attention import causal
from interlock.models.checkpoint import load_decoder
from interlock.models.moe import Experts, Router

CPU = torch.device("cpu")
PLAIN = Routing(
    layers=frozenset({0}),
    experts=4,
    per_token=2,
    inner=3,
    shared_inner=0,
    gate="sigmoid",
    corrected=True,
    groups=1,
    kept_groups=1,
    group_top=1,
    normalize=False,
    scale=2.0,
)
LOGITS = torch.tensor([0.0, 1.0, 2.0, -1.0])


def router(routing: Routing, correction: list[float]) -> Router:
    """A router whose logits are LOGITS for the input [1]."""
    made = Router(1, routing)
    with torch.no_grad():
        made.weight.copy_(LOGITS[:, None])
        made.get_parameter("correction").copy_(torch.tensor(correction))
    return made


def chosen(routing: Routing, correction: list[float]) -> dict[int, float]:
    choice, weights = router(routing, correction)(torch.ones(1, 1))
    return dict(zip(choice[0].tolist(), weights[0].tolist(), strict=True))


def test_correction_moves_the_choice_but_not_the_weights() -> None:
    gate = LOGITS.sigmoid().tolist()
    assert chosen(PLAIN, [0.0, 0.0, 0.0, 0.0]) == pytest.approx({2: 2 * gate[2], 1: 2 * gate[1]})
    assert chosen(PLAIN, [0.0, -1.0, 0.0, 1.0]) == pytest.approx({2: 2 * gate[2], 3: 2 * gate[3]})


def test_normalized_weights_sum_to_the_scale() -> None:
    weights = chosen(msgspec.structs.replace(PLAIN, normalize=True), [0.0] * 4)
    gate = LOGITS.sigmoid().tolist()
    assert weights == pytest.approx({e: 2 * gate[e] / (gate[1] + gate[2]) for e in (1, 2)})


def test_a_token_chooses_within_the_best_groups() -> None:
    # Sums of the two best: {0, 1} 0.5 + 0.731, {2, 3} 0.881 + 0.269. The best one: {2, 3}.
    by_two = msgspec.structs.replace(PLAIN, groups=2, kept_groups=1, group_top=2)
    assert chosen(by_two, [0.0] * 4).keys() == {0, 1}
    assert chosen(msgspec.structs.replace(by_two, group_top=1), [0.0] * 4).keys() == {2, 3}


def test_balance_moves_each_bias_against_its_load() -> None:
    experts = Experts(1, PLAIN)
    bias = experts.router.get_parameter("correction")
    with torch.no_grad():
        bias.copy_(torch.tensor([0.5, 0.5, 0.5, 0.5]))
    experts.routed = torch.tensor([3, 0, 1, 2])
    experts.count()
    experts.routed = torch.tensor([3, 0, 1, 0])
    experts.count()  # load 6, 0, 2, 2; mean 2.5
    experts.balance(0.25)
    assert bias.tolist() == [0.25, 0.75, 0.75, 0.75]
    experts.routed = torch.tensor([1, 1, 1, 1])
    experts.count()  # the count began anew
    experts.balance(0.25)
    assert bias.tolist() == [0.25, 0.75, 0.75, 0.75]


@pytest.mark.parametrize("recompute", [False, True])
def test_the_load_is_counted_once_and_only_when_learning(
    reference: Callable[[str], PreTrainedModel], tmp_path: Path, recompute: bool
) -> None:
    reference("deepseek-v3").save_pretrained(tmp_path)
    decoder = load_decoder(tmp_path, torch.float32, CPU)
    decoder.checkpointing = recompute
    ids, attend = torch.arange(10), causal(10, CPU)
    with torch.no_grad():
        decoder(ids, attend.positions, attend)
    decoder(ids, attend.positions, attend).sum().backward()
    experts = [layer.get_submodule("mlp") for layer in decoder.layers][1:]
    before = [e.router.get_parameter("correction").clone() for e in experts]
    loads = [e.load for e in experts]
    assert [load.sum().item() for load in loads] == [30, 30]  # 10 tokens, 3 experts each
    decoder.balance_experts(0.01)
    for layer, old, load in zip(experts, before, loads, strict=True):
        moved = layer.router.get_parameter("correction") - old
        expected = 0.01 * (30 / 8 - load).sign()
        # One rounding of a bias that is smaller than 1/2, and none where the old one is taken off.
        torch.testing.assert_close(moved, expected, atol=torch.finfo(torch.float32).eps / 4, rtol=0)


def test_families_without_a_bias_cannot_be_balanced(
    reference: Callable[[str], PreTrainedModel], tmp_path: Path
) -> None:
    reference("qwen3-moe").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="qwen3_moe has no expert bias"):
        load_decoder(tmp_path, torch.float32, CPU).balance_experts(0.01)


def test_the_bias_is_not_trained_and_stays_exact(
    reference: Callable[[str], PreTrainedModel], tmp_path: Path
) -> None:
    model = reference("deepseek-v3")
    model.save_pretrained(tmp_path)
    decoder = load_decoder(tmp_path, torch.bfloat16, CPU)
    bias = decoder.get_parameter("layers.1.mlp.router.correction")
    assert not bias.requires_grad
    wanted = model.state_dict()["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert bias.dtype == torch.float32 and torch.equal(bias, wanted)
    kept = {name: x.dtype for name, x in decoder.published(torch.bfloat16)}
    exact = [name for name, dtype in kept.items() if dtype == torch.float32]
    assert exact == [f"model.layers.{i}.mlp.gate.e_score_correction_bias" for i in (1, 2)]
