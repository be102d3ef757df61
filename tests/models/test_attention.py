"""Packed groups against each sequence on its own, in float64, output and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import assert_close
from torch import Tensor

from interlock.models.attention import Groups, attention, repeated

CPU = torch.device("cpu")
HEADS, KV_HEADS, SIZE, V_SIZE, SCALE = 4, 2, 6, 5, 0.37

lengths = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(0, 5), max_size=4)), min_size=1, max_size=4
)


def alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of one sequence, a query and a head at a time."""
    rows = []
    for at in range(len(q)):
        for head in range(HEADS):
            kv_head = head * KV_HEADS // HEADS
            weights = (k[: at + 1, kv_head] @ q[at, head] * SCALE).softmax(0)
            rows.append(weights @ v[: at + 1, kv_head])
    return torch.stack(rows).view(len(q), HEADS, V_SIZE)


def one_by_one(q: Tensor, k: Tensor, v: Tensor, groups: list[tuple[int, list[int]]]) -> Tensor:
    """The oracle: every completion behind its own copy of the prompt."""
    out, at = [], 0
    for prompt, completions in groups:
        head = list(range(at, at + prompt))
        out.append(alone(q[head], k[head], v[head]))
        at += prompt
        for length in completions:
            rows = head + list(range(at, at + length))
            out.append(alone(q[rows], k[rows], v[rows])[prompt:])
            at += length
    return torch.cat(out)


@pytest.mark.parametrize("fused_above", [0, 10**9], ids=["fused", "explicit"])
@settings(max_examples=40, deadline=None)
@given(groups=lengths)
def test_groups_equal_separate_sequences(
    fused_above: int, groups: list[tuple[int, list[int]]]
) -> None:
    prompts, completions = [p for p, _ in groups], [c for _, c in groups]
    count = sum(prompts) + sum(map(sum, completions))
    generator = torch.Generator().manual_seed(count)
    q, k, v, weight = (
        torch.randn(count, heads, size, dtype=torch.float64, generator=generator)
        for heads, size in ((HEADS, SIZE), (KV_HEADS, SIZE), (KV_HEADS, V_SIZE), (HEADS, V_SIZE))
    )
    inputs = [x.requires_grad_() for x in (q, k, v)]
    found = Groups(prompts, completions, CPU, fused_above)(0, q, k, v, SCALE)
    found_gradients = torch.autograd.grad((found * weight).sum(), inputs)
    expected = one_by_one(q, k, v, groups)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        found_gradients, torch.autograd.grad((expected * weight).sum(), inputs)
    )


def test_positions_go_on_behind_the_prompt() -> None:
    groups = Groups([2, 1], [[3, 0, 1], []], CPU)
    assert groups.positions.tolist() == [0, 1, 2, 3, 4, 2, 0]


@pytest.mark.parametrize("fused_above", [0, 10**9], ids=["fused", "explicit"])
def test_bf16_stays_in_its_band(fused_above: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(8, 40, heads, 16, generator=generator) for heads in (4, 2, 2))
    mask = torch.ones(1, 40, 40, dtype=torch.bool).tril()
    inputs = [x.bfloat16() for x in (q, k, v)]

    def plain(dtype: torch.dtype) -> Tensor:  # in bfloat16 every step is rounded
        heads = [x.to(dtype).repeat_interleave(4 // x.shape[2], 2).transpose(1, 2) for x in inputs]
        scores = (heads[0] * 0.25 @ heads[1].mT).masked_fill(~mask[:, None], -torch.inf)
        return (scores.softmax(-1) @ heads[2]).transpose(1, 2)

    found = attention(*inputs, mask, 0.25, fused_above)
    assert found.dtype == torch.bfloat16
    assert_close(found, plain(torch.float64), plain(torch.bfloat16), dtype=torch.bfloat16)


def test_a_query_that_sees_nothing_gives_a_number() -> None:
    x = torch.ones(1, 1, 2, 4)
    nothing = torch.zeros(1, 1, 1, dtype=torch.bool)
    assert attention(x, x, x, nothing, 0.5).isfinite().all()


def test_gradients_of_a_row_named_often_are_the_same_bits_every_time() -> None:
    """With two threads: a prompt's gradient comes from all of its completions."""
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(6, 40, 3, 32, generator=noise, requires_grad=True)
    rows = torch.randint(0, 6, (48,), generator=noise)
    slope = torch.randn(48, 40, 3, 32, generator=noise)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = [torch.autograd.grad(repeated(x, rows), x, slope)[0] for _ in range(30)]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(repeated(x, rows), x[rows])
    assert all(torch.equal(found[0], other) for other in found)
    expected = torch.zeros(6, 40, 3, 32, dtype=torch.float64)
    expected.index_add_(0, rows, slope.double())
    plain = torch.zeros(6, 40, 3, 32).index_add_(0, rows.flip(0), slope.flip(0))
    assert_close(found[0], expected, plain)
