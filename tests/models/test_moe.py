"""Routing, load counting and balancing, worked out by hand."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from interlock.chips.products import grouped
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", [[3, 0, 5, 1], [0, 0, 0, 9], [0, 0, 0, 0], [1, 1, 1, 1]])
@pytest.mark.parametrize("size", [16, 12, 5])  # 12 in bf16, and 5, are not whole 16 bytes
def test_one_operator_gives_the_bits_of_expert_after_expert(
    dtype: torch.dtype, counts: list[int], size: int
) -> None:
    noise = torch.Generator().manual_seed(0)
    rows = torch.randn(sum(counts), size, generator=noise).to(dtype)
    weights = torch.randn(4, 8, size, generator=noise).to(dtype)
    out, found = [], []
    for product in (F.linear, lambda x, w, b: F.linear(x, w, b)):
        x, w = rows.clone().requires_grad_(), weights.clone().requires_grad_()
        with torch.no_grad():
            out.append(grouped(x, w, torch.tensor(counts), product))
        y = grouped(x, w, torch.tensor(counts), product)
        assert torch.equal(y, out[-1])
        (y * y).sum().backward()
        found.append((x.grad, w.grad))
    by_hand = [part @ weight.T for part, weight in zip(rows.split(counts), weights, strict=True)]
    assert torch.equal(out[0], out[1]) and out[0].shape == (sum(counts), 8)
    torch.testing.assert_close(out[0], torch.cat(by_hand))
    for ours, loop in zip(*found, strict=True):
        assert (ours is None) == (loop is None)
        if ours is not None:
            torch.testing.assert_close(ours, loop)


@pytest.mark.parametrize(("groups", "kept"), [(1, 1), (4, 2)])
def test_balancing_leads_from_a_skewed_start_to_an_even_load(groups: int, kept: int) -> None:
    """DeepSeek-V3's rule alone, on a router that never learns and prefers two experts of 16."""
    routing = msgspec.structs.replace(
        PLAIN, experts=16, per_token=4, groups=groups, kept_groups=kept, group_top=2
    )
    experts, noise = Experts(8, routing), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(0, 0.5, generator=noise)
        experts.router.weight[:2, 0] += 2.0
        experts.router.get_parameter("correction").zero_()

    def tokens() -> torch.Tensor:
        drawn = torch.randn(512, 8, generator=noise)
        drawn[:, 0] += 1.0
        return drawn

    def unevenness() -> float:
        """Over eight steps' tokens, of the busiest and of the least busy expert."""
        counted = torch.zeros(16)
        for _ in range(8):
            experts(tokens())
            counted += experts.routed
        return ((counted / counted.mean() - 1).abs().max()).item()

    with torch.no_grad():
        assert unevenness() > 1.0  # more than twice the mean, or nothing
        for _ in range(400):
            experts(tokens())
            experts.count()
            experts.balance(0.005)
        assert unevenness() < 0.2


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
