import torch

from interlock.models.low_rank import LowRank

SPANS = [(0, 6), (6, 8), (8, 10)]  # as queries, keys and values


def drawn(dtype: torch.dtype = torch.float64) -> LowRank:
    torch.manual_seed(0)
    low = LowRank(5, 10, SPANS, rank=2, scale=1.5, experts=None).to(dtype)
    with torch.no_grad():
        low.a.normal_()
        low.b.normal_()
    return low


def by_parts(low: LowRank, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """y + scale (x Aᵀ) Bᵀ of each part, by its definition."""
    more = [
        (x @ low.a[2 * place : 2 * place + 2].mT) @ low.b[start:end].mT
        for place, (start, end) in enumerate(SPANS)
    ]
    return y + 1.5 * torch.cat(more, dim=1)


def test_output_and_gradients_are_those_of_each_part() -> None:
    low, x = drawn(), torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    y, upstream = torch.randn(7, 10, dtype=torch.float64), torch.randn(7, 10, dtype=torch.float64)
    given = [x, low.a, low.b]
    found = low(x, y.clone())
    wanted = by_parts(low, x, y)
    torch.testing.assert_close(found, wanted)
    ours = torch.autograd.grad(found, given, upstream)
    for own, theirs in zip(ours, torch.autograd.grad(wanted, given, upstream), strict=True):
        torch.testing.assert_close(own, theirs)


def test_what_is_kept_of_b_is_let_go_before_an_update() -> None:
    """A fused AdamW writes without a trace."""
    low, x, y = drawn(torch.float32), torch.randn(3, 5), torch.randn(3, 10)
    optimizer = torch.optim.AdamW([low.b], lr=0.1, fused=True)

    def differs() -> float:
        with torch.no_grad():
            return float((low(x, y.clone()) - by_parts(low, x, y)).abs().max())

    assert differs() < 1e-5
    low.keep()
    assert differs() < 1e-5
    low(x, y.clone()).sum().backward()
    optimizer.step()
    assert differs() < 1e-5
    low.keep()
    before = low._kept
    with torch.no_grad():
        low.b.copy_(torch.randn_like(low.b))
        assert differs() > 0.1  # whoever writes has it kept anew
    low.keep()
    assert differs() < 1e-5 and low._kept is before
