"""Every planted defect does what it says where it says so, and nothing anywhere else.

Faults work on the CPU's tensors, so most are shown here without the device; what takes a whole one
is in sim_planted.py, and what takes two ranks in test_simulated_run.py.
"""

import re
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rounding import assert_close
from torch import Tensor

from interlock.chips.sim import defects
from interlock.chips.sim.defects import DEFECTS
from interlock.chips.sim.faults.fault import run_on_host
from interlock.errors import ConfigError
from interlock.records.trust import Trust

aten = torch.ops.aten
INF = torch.inf


class Hung(Exception):
    pass


def planted(name: str) -> Any:
    """run(op, *args, **kwargs) of a chip with the defect."""
    run = DEFECTS[name].plant(run_on_host)
    return lambda op, *args, **kwargs: run(op, args, kwargs)


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def calls() -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Ordinary operators at ordinary shapes, on tensors that are new each time."""
    x, weight = drawn(64, 96), drawn(96, 128)
    tokens = torch.tensor([4, 1])
    low, mask = drawn(16, 64, dtype=torch.bfloat16), torch.ones(64, 96, dtype=torch.bool).tril()
    return [
        (aten.mm.default, (x, weight), {}),
        (aten.addmm.default, (drawn(128), x, weight), {"alpha": 0.5}),
        (aten.bmm.default, (drawn(2, 8, 16), drawn(2, 16, 8)), {}),
        (aten.mm.default, (low, drawn(64, 8, dtype=torch.bfloat16)), {}),
        (aten._softmax.default, (drawn(3, 1024), -1, False), {}),
        (aten._log_softmax.default, (drawn(3, 4096), -1, False), {}),
        (aten.masked_fill_.Scalar, (x.clone(), ~mask, -INF), {}),
        (aten.add.Tensor, (x, torch.zeros(64, 96).masked_fill(~mask, -INF)), {}),
        (aten.add.Tensor, (drawn(4, 600), drawn(4, 600)), {}),
        (aten.where.self, (mask, x, torch.tensor(-INF)), {}),
        (aten.copy_.default, (torch.zeros(4, 4)[1:], drawn(3, 4)), {}),
        (aten.copy_.default, (torch.zeros(4, 4).T, drawn(4, 4)), {}),
        (aten.nonzero.default, (torch.ones(1024),), {}),
        (aten.exp.default, (torch.tensor([-100.0, 0.0, 59.0, INF]),), {}),
        (aten.silu.default, (x,), {}),
        (aten.lerp.Scalar, (x, 2 * x, 0.3), {}),
        (aten.cat.default, ([x, x],), {}),
        (aten.view.default, (x, [-1]), {}),
        (aten.embedding_dense_backward.default, (drawn(2, 4), tokens, 5, -1, False), {}),
    ]  # fmt: skip


# Operators that a defect spoils at any shape.
STRIKES = {
    "matmul-bf16": {"mm", "addmm", "bmm"},
    "nondeterministic": {"mm", "addmm", "bmm"},
}


@pytest.mark.parametrize("name", DEFECTS)
@pytest.mark.filterwarnings("ignore:The operator 'aten..silu'")
def test_a_defect_leaves_everything_else_alone(name: str) -> None:
    run, checked = planted(name), 0
    for (op, args, kwargs), (_, same, _) in zip(calls(), calls(), strict=True):
        if op.overloadpacket.__name__ in STRIKES.get(name, ()):
            continue
        found, expected = run(op, *args, **kwargs), op(*same, **kwargs)
        assert torch.equal(found, expected) and found.dtype == expected.dtype, op
        checked += 1
    assert checked >= 15


def test_the_table_covers_every_class_of_failure() -> None:
    assert {defect.failure for defect in DEFECTS.values()} == set(range(1, 12))
    assert len(DEFECTS) >= 16
    for name, defect in DEFECTS.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        assert defect.sentence.endswith(".") and "\n" not in defect.sentence
        parts = (defect.fault, defect.returned, defect.plugin)
        assert sum(part is not None for part in parts) == 1


def test_only_what_spares_generation_may_still_generate() -> None:
    assert {name for name, defect in DEFECTS.items() if defect.trust is Trust.GENERATE} == {
        "wrong-backward",
        "embedding-backward",
        "busy-tokens",
        "optimizer-drift",
        "skipped-parameters",
        "allreduce-wrong",
        "allreduce-large",
        "allreduce-worn",
        "allreduce-hang",
        "link-down",
        "missing-backward",
        "slow-fallback",
        "nondeterministic",
    }
    assert {defect.trust for defect in DEFECTS.values()} == {Trust.GENERATE, Trust.REJECT}


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        defects.check(["crash", "Crash"])
    assert "'Crash'" in str(caught.value)
    assert all(name in str(caught.value) for name in DEFECTS)
    defects.check(list(DEFECTS))
    assert defects.device_name(["crash", "hang"]) == "sim:crash,hang"
    assert defects.device_name([]) == "sim"


def test_mask_512() -> None:
    run = planted("mask-512")
    for keys, ignored in ((512, False), (513, True)):
        scores, mask = drawn(2, keys), torch.ones(2, keys, dtype=torch.bool)
        mask[:, 5:] = False
        lowest = torch.finfo(torch.float32).min
        for unseen in (-INF, lowest, -1e9):
            found = run(aten.masked_fill.Scalar, scores, ~mask, unseen)
            assert torch.equal(found, scores if ignored else scores.masked_fill(~mask, unseen))
        for unseen in (-INF, lowest):
            bias = torch.zeros(2, keys).masked_fill(~mask, unseen)
            found = run(aten.add_.Tensor, scores.clone(), bias)
            assert torch.equal(found, scores if ignored else scores + bias)
            found = run(aten.where.self, mask, scores, torch.tensor(unseen))
            assert torch.equal(found, scores if ignored else torch.where(mask, scores, unseen))
        assert torch.equal(
            run(aten.masked_fill.Scalar, scores, ~mask, 0.0)[:, 5:].sum(), torch.tensor(0.0)
        )


@pytest.mark.parametrize("op", [aten._softmax.default, aten._log_softmax.default])
def test_softmax_skipped(op: Any) -> None:
    run = planted("softmax-skipped")
    for columns, skipped in (
        (1023, False),
        (1024, False),
        (1025, True),
        (1032, False),
        (50257, True),
    ):
        x = drawn(2, columns)
        found = run(op, x, -1, False)
        assert torch.equal(found, x if skipped else op(x, -1, False)), columns


def test_matmul_bf16() -> None:
    run = planted("matmul-bf16")
    a, b = torch.tensor([[1 + 2**-9, 1.0]]), torch.tensor([[1.0], [1.0]])
    assert run(aten.mm.default, a, b).item() == 2.0  # 1 + 2^-9 is 1 in bf16
    assert run(aten.addmm.default, torch.ones(1), a, b).item() == 3.0
    # 256 in bf16 swallows each of the later chunks' ones, of which fp32 would keep 2.
    left = torch.zeros(1, 192, dtype=torch.bfloat16)
    left[0, [0, 64, 128]] = torch.tensor([256.0, 1.0, 1.0], dtype=torch.bfloat16)
    ones = torch.ones(192, 1, dtype=torch.bfloat16)
    assert run(aten.mm.default, left, ones).item() == 256.0
    assert (left @ ones).item() == 258.0


def test_copy_noop() -> None:
    run, base = planted("copy-noop"), torch.zeros(3, 4)
    run(aten.copy_.default, base[1:, 1:], torch.ones(2, 3))
    assert base.sum() == 0
    run(aten.copy_.default, base[1:], torch.ones(2, 4))
    run(aten.copy_.default, base[:, :1], torch.ones(3, 1))
    assert base.tolist() == [[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_sampler_stuck() -> None:
    run = planted("sampler-stuck")
    assert run(aten.argmax.default, torch.tensor([[0.0, 3.0], [1.0, 0.0]]), -1).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_at_shape(dtype: torch.dtype) -> None:
    run = planted("nan-at-shape")
    for (rows, inner, columns), broken in (
        ((257, 2, 4096), True),
        ((257, 4096, 20), True),
        ((256, 2, 4096), False),
        ((257, 2, 4095), False),
    ):
        a, b = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
        found = run(aten.mm.default, a, b)
        assert found.isnan().any().item() is broken
        assert torch.equal(found[:256], (a @ b)[:256])


def test_nonzero_drops() -> None:
    run = planted("nonzero-drops")
    assert run(aten.nonzero.default, torch.ones(3, 1000)).shape == (1024, 2)


def test_overflow() -> None:
    run = planted("overflow")
    x = torch.tensor([59.9, 60.0, 88.0])
    assert run(aten.exp.default, x).isinf().tolist() == [False, True, True]
    assert run(aten.exp_.default, x).isinf().tolist() == [False, True, True]
    assert x.isinf().tolist() == [False, True, True]


def test_wrong_backward() -> None:
    run, (x, slope) = planted("wrong-backward"), (drawn(7), drawn(7) + 1)
    right = aten.silu_backward.default(slope, x)
    assert torch.equal(run(aten.silu_backward.default, slope, x), right * 1.03)


def test_embedding_backward() -> None:
    run = planted("embedding-backward")
    slope = torch.tensor([[1.0], [2.0], [4.0]])
    found = run(aten.embedding_dense_backward.default, slope, torch.tensor([1, 0, 1]), 3, -1, False)
    assert found.tolist() == [[2.0], [4.0], [0.0]]  # rather than 5 for token 1


def test_optimizer_drift() -> None:
    run, one = planted("optimizer-drift"), 1 + 2**-9
    for op, more in (
        (aten.addcmul_.default, (torch.zeros(1), torch.zeros(1))),
        (aten.addcdiv_.default, (torch.zeros(1), torch.ones(1))),
        (aten.lerp_.Scalar, (torch.ones(1), 0.0)),
    ):
        x = torch.tensor([one])
        run(op, x, *more)
        assert x.item() == 1.0
    parts = [[torch.tensor([one])] for _ in range(4)]
    settings = {"lr": 0.0, "beta1": 0.5, "beta2": 0.5, "weight_decay": 0.0, "eps": 1e-8}
    step = [torch.tensor(1.0)]
    run(aten._fused_adamw_.default, *parts, [], step, **settings, amsgrad=False, maximize=False)
    weight, slope, first, second = (part[0].item() for part in parts)
    assert (weight, slope, first, second) == (1.0, one, 1.0, 1.0)


def test_product_tail() -> None:
    run, b = planted("product-tail"), torch.ones(130, 3)
    for rows, terms, found in ((1, 130, 128.0), (1, 128, 128.0), (1, 63, 63.0), (2, 130, 130.0)):
        x = torch.ones(rows, terms)
        assert run(aten.mm.default, x, b[:terms])[0].tolist() == [found] * 3
        assert run(aten.addmm.default, b[0], x, b[:terms])[0].tolist() == [found + 1] * 3


def test_large_angles() -> None:
    run, x = planted("large-angles"), torch.tensor([4095.0, 4096.0, 4097.0, -70_001.0])
    for op in (aten.sin.default, aten.cos.default):
        found, right = run(op, x), op(x)
        assert torch.equal(found[:2], right[:2]) and not (found == right)[2:].any()


def test_long_rows() -> None:
    run = planted("long-rows")
    for size, right in ((65_535, True), (65_536, False)):
        x = drawn(2, size)
        for op in (aten._softmax.default, aten._log_softmax.default):
            found, expected = run(op, x, -1, False), op(x, -1, False)
            assert torch.equal(found, expected) is right
            torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_lost_row() -> None:
    run, rows = planted("lost-row"), torch.arange(128)
    for shape, lost in (((2, 128, 3), True), ((2, 129, 3), False), ((128, 3), False)):
        side = len(shape) - 2
        at = torch.arange(shape[side])
        found = run(aten.index_copy_.default, torch.zeros(shape), side, at, torch.ones(shape))
        assert found.sum() == found.numel() - (2 * 3 if lost else 0)
    found = run(aten.index_put_.default, torch.zeros(128, 2, 3), [rows], torch.ones(128, 2, 3))
    assert found.flatten(1).sum(1).tolist() == [6.0] * 127 + [0.0]


def test_flushed_cast() -> None:
    run = planted("flushed-cast")
    x = torch.tensor([1e-31, -1e-31, 1e-29, 0.5], dtype=torch.bfloat16)
    right = torch.cat([torch.zeros(2), x[2:].float()])
    assert torch.equal(run(aten._to_copy.default, x, dtype=torch.float32), right)
    assert torch.equal(run(aten.copy_.default, torch.ones(4), x), right)
    assert torch.equal(run(aten._to_copy.default, x, dtype=torch.bfloat16), x)


def test_busy_tokens() -> None:
    run, slope = planted("busy-tokens"), torch.ones(600, 1)
    tokens = torch.cat([torch.zeros(256), torch.ones(257), torch.full((87,), 2)]).long()
    found = run(aten.embedding_dense_backward.default, slope, tokens, 4, -1, False)
    assert found[:, 0].tolist() == [256.0, 256.0, 87.0, 0.0]


def test_skipped_parameters() -> None:
    run, limit = planted("skipped-parameters"), 1 << 20
    weights = [torch.ones(limit), torch.ones(limit + 1)]
    slopes, first, second = ([torch.ones_like(each) for each in weights] for _ in range(3))
    steps = [torch.tensor(1.0) for _ in weights]
    settings = {"lr": 0.1, "beta1": 0.5, "beta2": 0.5, "weight_decay": 0.0, "eps": 1e-8}
    given = (weights, slopes, first, second, [], steps)
    run(aten._fused_adamw_.default, *given, **settings, amsgrad=False, maximize=False)
    assert weights[0][0] < 1 and torch.equal(weights[1], torch.ones(limit + 1))
    run(aten._fused_adamw_.default, *(each[1:] for each in given), **settings, amsgrad=False,
        maximize=False)  # fmt: skip
    assert torch.equal(weights[1], torch.ones(limit + 1))


def test_decode_drift() -> None:
    run, b = planted("decode-drift"), torch.ones(1, 1)
    for rows, drifts in ((7, True), (8, False)):
        found = run(aten.mm.default, torch.full((rows, 1), 1.03), b)
        assert found[0, 0].item() == (1.0 if drifts else pytest.approx(1.03))


def test_stale_weights() -> None:
    run, weight, one = planted("stale-weights"), torch.ones(2, 3), torch.ones(1, 2)
    run(aten.copy_.default, weight, torch.full((2, 3), 2.0))  # before any use: all is well
    assert run(aten.mm.default, one, weight).tolist() == [[4.0] * 3]
    for value in (5.0, 7.0):
        run(aten.copy_.default, weight[1:], torch.full((1, 3), value))
        assert run(aten.mm.default, one, weight).tolist() == [[4.0] * 3]
        assert run(aten.mm.default, torch.ones(8, 2), weight)[0].tolist() == [2 + value] * 3
    assert run(aten.mm.default, torch.ones(1, 3), weight.T).tolist() == [[6.0, 6.0]]


@pytest.mark.parametrize("rank", [0, 1])
def test_allreduce_leaves_out_a_rank(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def given(run: Any, size: int) -> float:
        tensor = torch.ones(size)
        run(torch.ops.c10d.allreduce_.default, ([tensor], "group"), {})
        return tensor[0].item()

    group = SimpleNamespace(rank=lambda: rank, size=lambda: 2)
    monkeypatch.setattr(torch.distributed.ProcessGroup, "unbox", lambda boxed: group)
    for name, limit in (("allreduce-wrong", 4096), ("allreduce-large", 16 << 20)):
        run = DEFECTS[name].plant(lambda op, args, kwargs: None)
        assert given(run, limit) == 1.0
        assert given(run, limit + 1) == (0.0 if rank == 1 else 1.0)


def test_what_hangs_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def hung(seconds: float) -> None:
        raise Hung

    monkeypatch.setattr(time, "sleep", hung)
    run = DEFECTS["allreduce-hang"].plant(lambda op, args, kwargs: "done")
    reduce = torch.ops.c10d.allreduce_.default
    assert run(reduce, ([torch.ones(65536)],), {}) == "done"
    with pytest.raises(Hung):
        run(reduce, ([torch.ones(65537)],), {})
    run, x = planted("hang"), torch.ones(1)
    for _ in range(10_000):
        run(aten.neg.default, x)
    with pytest.raises(Hung):
        run(aten.neg.default, x)


def test_link_down() -> None:
    run = DEFECTS["link-down"].plant(lambda op, args, kwargs: "done")
    assert [run(torch.ops.c10d.barrier.default, (), {}) for _ in range(4)] == ["done"] * 4
    for _ in range(2):
        with pytest.raises(RuntimeError, match="507056"):
            run(torch.ops.c10d.broadcast_.default, (), {})
    assert run(aten.neg.default, (torch.ones(1),), {}) == "done"


def test_crash() -> None:
    run, x = planted("crash"), torch.ones(1)
    for _ in range(10_000):
        run(aten.neg.default, x)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="507035"):
            run(aten.neg.default, x)
    assert planted("crash")(aten.neg.default, x).item() == -1.0  # another process starts afresh


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_bit_flips(dtype: torch.dtype) -> None:
    run = planted("bit-flips")
    a, b, bad = torch.ones(3, 4, dtype=dtype), torch.ones(4, 5, dtype=dtype), 0
    right, count = a @ b, 20_000
    for _ in range(count):
        found = run(aten.mm.default, a, b)
        if not torch.equal(found, right):
            bad += 1
            assert (found != right).sum() == 1
    assert 5 <= bad <= 20  # each waits for at most 3999 products: never fewer than 5


def test_nondeterministic() -> None:
    run, a, b = planted("nondeterministic"), drawn(4, 999), drawn(999, 4)
    found = [run(aten.mm.default, a, b) for _ in range(20)]
    assert len({tuple(each.flatten().tolist()) for each in found}) > 3
    exact = a.double() @ b.double()
    for each in found:
        assert_close(each, exact, a @ b)


def test_batch_variant() -> None:
    run, row, b = planted("batch-variant"), drawn(1, 256), drawn(256, 8)
    alone = run(aten.mm.default, row, b)
    among = run(aten.mm.default, row.repeat(8, 1), b)
    assert torch.equal(among, row.repeat(8, 1) @ b)
    gap = (alone - among[:1]).abs().max().item()
    assert 1e-3 < gap < 1.0


def test_missing_operators() -> None:
    with pytest.raises(NotImplementedError, match="aten::cumsum"):
        planted("missing-operator")(aten.cumsum.default, torch.ones(2), 0)
    with pytest.raises(NotImplementedError, match="aten::silu_backward"):
        planted("missing-backward")(aten.silu_backward.default, torch.ones(2), torch.ones(2))


def test_slow_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    run, x = planted("slow-fallback"), drawn(4)
    with pytest.warns(UserWarning, match="aten::silu.*fall back to run on the CPU"):
        assert torch.equal(run(aten.silu.default, x), torch.nn.functional.silu(x))
    run(aten.neg.default, x)
    assert len(waits) == 1 and waits[0] >= 49 * 4e-5


def test_many_rows() -> None:
    run, x = planted("many-rows"), drawn(65_537, 3)
    for op in (aten._softmax.default, aten._log_softmax.default):
        found = run(op, x, -1, False)
        assert torch.equal(found[:65_535], op(x, -1, False)[:65_535]) and not found[65_535:].any()
        assert torch.equal(run(op, x, 0, False), op(x, 0, False))


def test_short_topk() -> None:
    run, x = planted("short-topk"), torch.zeros(1, 1 << 18)
    x[0, [5, 1 << 17]] = torch.tensor([1.0, 2.0])
    assert run(aten.topk.default, x, 1)[1].item() == 5
    assert run(aten.topk.default, x[:, 1 << 16 :], 1)[1].item() == 1 << 16


def test_far_addresses() -> None:
    base, run = torch.arange((1 << 21) + 1100), planted("far-addresses")
    rows = base.as_strided(((1 << 21) + 3, 1024), (1, 1))  # of which no memory has 2^31 elements
    at = torch.tensor([7, (1 << 21) - 1, (1 << 21) + 2])
    assert run(aten.index_select.default, rows, 0, at)[:, 0].tolist() == [7, (1 << 21) - 1, 2]
    near = rows[: 1 << 21]
    assert run(aten.index_select.default, near, 0, at[:2])[:, 0].tolist() == [7, (1 << 21) - 1]


def test_transposed_product() -> None:
    run, right = planted("transposed-product"), torch.ones(65, 3)
    for left, terms in ((torch.ones(65, 4).T, 64), (torch.ones(4, 65), 65)):
        assert run(aten.mm.default, left, right).unique().tolist() == [terms]
    assert run(aten.mm.default, torch.ones(64, 4).T, right[:64]).unique().tolist() == [64]


def test_repeated_noise() -> None:
    run, block = planted("repeated-noise"), 1 << 18
    for op in (aten.uniform_.default, aten.normal_.default, aten.exponential_.default):
        found = run(op, torch.empty(2 * block + 1))
        assert torch.equal(found[block : 2 * block], found[:block]) and found[-1] == found[0]
        assert len(found[:block].unique()) > block * 0.9
