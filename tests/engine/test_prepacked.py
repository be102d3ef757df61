"""Packed products against plain ones, for numbers of rows they were not packed for too."""

from collections.abc import Callable
from typing import NoReturn

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from interlock.chips import products
from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.engine.portable.prepacked import LEAST_STEPS, MOST_ROWS, Packed, PackedProducts
from interlock.models.decoder import Decoder
from interlock.models.layers import Linear
from interlock.records.rl import Sampling

KERNELS = [
    ("mkl", torch.float32),
    ("onednn", torch.float32),
    ("onednn", torch.bfloat16),
]


def packing_kernel() -> str:
    """One that packs float32 here."""
    found = [each for each in ("mkl", "onednn") if products.offered(each, torch.float32, "cpu")]
    return found[0] if found else pytest.skip("this torch packs no weights")


@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
@pytest.mark.parametrize("shape", [(192, 64), (33, 17), (1000, 576)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_product_is_the_product(
    kernel: str, dtype: torch.dtype, shape: tuple[int, int], bias: bool
) -> None:
    if not products.offered(kernel, dtype, "cpu"):
        pytest.skip(f"this CPU has no {kernel} for {dtype}")
    torch.manual_seed(0)
    weight, b = torch.randn(shape).to(dtype), torch.randn(shape[0]).to(dtype) if bias else None
    multiply = Packed(kernel, weight, 64, F.linear)
    for rows in (1, 2, 3, 7, 31, 64, MOST_ROWS, MOST_ROWS + 1, 300):
        x = torch.randn(rows, shape[1]).to(dtype)
        exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
        error = (multiply(x, weight, b).double() - exact).abs().max()
        # The result is rounded to dtype, and its terms are added up in fp32: errors as of a walk.
        walked = shape[1] ** 0.5 * (x.double().abs() @ weight.double().abs().mT).max()
        terms = torch.finfo(torch.float32).eps * walked
        assert error <= torch.finfo(dtype).eps * exact.abs().max() + terms


def used(decoder: Decoder) -> set[object]:
    maps = [m.lent or m.product for m in decoder.modules() if isinstance(m, Linear)]
    return {type(product) for product in (*maps, decoder.head_product)}


def test_weights_are_packed_until_the_end_and_plain_after_it(tiny: Callable[..., Decoder]) -> None:
    decoder = tiny().requires_grad_(False)
    plain, packed = used(decoder), PackedProducts(decoder, packing_kernel())
    x = torch.randn(4, decoder.arch.hidden)
    packed.begin(4, LEAST_STEPS)
    assert used(decoder) == {Packed}
    before = decoder.logits(x)
    packed.end()
    assert used(decoder) == plain
    decoder.head.mul_(2)
    packed.begin(4, LEAST_STEPS)
    assert torch.equal(decoder.logits(x), 2 * before)


@pytest.mark.parametrize(("rows", "steps"), [(1, 100), (MOST_ROWS + 1, 100), (64, LEAST_STEPS - 1)])
def test_what_would_not_pay_is_not_packed(
    rows: int, steps: int, tiny: Callable[..., Decoder]
) -> None:
    decoder = tiny().requires_grad_(False)
    PackedProducts(decoder, packing_kernel()).begin(rows, steps)
    assert Packed not in used(decoder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_who_was_alone_is_packed_for_with_its_company(
    dtype: torch.dtype, tiny: Callable[..., Decoder]
) -> None:
    if not products.offered("onednn", torch.float32, "cpu"):
        pytest.skip("this torch packs no weights")
    decoder = tiny().to(dtype).requires_grad_(False)
    decoder.dtype = dtype
    decoder.use("onednn")
    plain, packed = used(decoder), PackedProducts(decoder, "onednn")
    packed.begin(1, 100)
    assert Packed not in used(decoder)
    packed.begin(2, 100)
    assert Packed in used(decoder)
    kept = decoder.head_product
    packed.begin(7, 100)
    assert decoder.head_product is kept
    packed.end()
    assert used(decoder) == plain


def test_an_engine_packs_while_it_decodes_and_never_outside(
    tiny: Callable[..., Decoder], letters: type
) -> None:
    engine = PortableEngine(tiny(), letters(), 4, packing_kernel())
    plain = used(engine.decoder)
    engine.add("a", Request("a", [1, 2], 2, Sampling(max_tokens=LEAST_STEPS), 0))
    assert used(engine.decoder) == plain
    engine.step()
    assert used(engine.decoder) == {Packed}
    engine.load({name: 2 * view for name, view in engine.decoder.tensors().items()}, 1)
    assert used(engine.decoder) == plain
    engine.step()
    assert used(engine.decoder) == {Packed}
    engine.abort("a")
    assert used(engine.decoder) == plain


def test_what_the_cpu_cannot_pack_is_not_packed(
    tiny: Callable[..., Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN refuses bfloat16 where a CPU has neither AVX-512 nor AVX-NE-CONVERT."""

    def refuse(weight: Tensor, rows: int) -> NoReturn:
        raise RuntimeError("bf16 path needs the cpu support avx_ne_convert or avx512bw")

    monkeypatch.setitem(products._PACK, "onednn", refuse)
    products.offered.cache_clear()
    decoder = tiny().requires_grad_(False).bfloat16()
    decoder.dtype = torch.bfloat16
    PackedProducts(decoder, "onednn").begin(4, LEAST_STEPS)
    assert Packed not in used(decoder)
    products.offered.cache_clear()


@pytest.mark.parametrize("kernel", products.KERNELS)
@pytest.mark.parametrize("rows", [1, 4, MOST_ROWS + 1])
def test_a_narrow_vocabulary_gives_wide_logits_in_every_way(
    kernel: str, rows: int, tiny: Callable[..., Decoder]
) -> None:
    """Against float64 products of the rounded weights: what differs is fp32's adding up alone."""
    decoder = tiny().requires_grad_(False).bfloat16()
    decoder.dtype = torch.bfloat16
    hidden = torch.randn(rows, decoder.arch.hidden)
    exact = hidden.double() @ decoder.head.double().mT
    packed = PackedProducts(decoder, kernel)
    for begun in (False, True):
        if begun:
            packed.begin(rows, LEAST_STEPS)
        logits = decoder.logits(hidden)
        assert logits.dtype == torch.float32
        assert (logits - exact).abs().max() <= 1e-6 * hidden.shape[1] * exact.abs().max()
    decoder.head.mul_(2)
    packed.end()
    assert torch.equal(decoder.logits(hidden), F.linear(hidden, decoder.head.float()))
