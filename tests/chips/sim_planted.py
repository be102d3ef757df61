"""Run by test_simulated.py in a process of its own: defects that only a whole device can have."""

import gc
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from interlock.chips import device

NAMES = (
    "memory-leak",
    "wrong-plugin",
    "missing-backward",
    "slow-fallback",
    "mask-512",
    "stale-weights",
)
SIM = device.claim("sim:" + ",".join(NAMES))


def test_the_stack_tells_what_is_planted() -> None:
    assert device.name(SIM) == "sim:" + ",".join(NAMES)
    assert device.stack(SIM).driver == ",".join(NAMES)


def test_the_plugin_is_of_another_torch() -> None:
    mismatch = device.plugin_mismatch(device.stack(SIM))
    assert mismatch is not None
    assert "simulated 2.5.1" in mismatch and torch.__version__ in mismatch


def test_some_freed_memory_stays_away() -> None:
    gc.collect()
    start = device.memory(SIM).used
    for size, lost in ((1000, 0), (2**18, 0), (2**20, 0), (300_001, 300_001), (10**6, 10**6)):
        tensor = torch.empty(size, dtype=torch.uint8, device=SIM)
        del tensor
        assert device.memory(SIM).used - start == lost
        start = device.memory(SIM).used


def test_a_gradient_is_missing_and_its_value_is_not() -> None:
    x = torch.ones(3, device=SIM, requires_grad=True)
    with pytest.warns(UserWarning, match="fall back to run on the CPU"):
        value = F.silu(x).sum()
    assert value.item() == pytest.approx(3 * 0.731058, abs=1e-5)
    with pytest.raises(RuntimeError, match=r"NotImplementedError: Could not run.*silu_backward"):
        value.backward()
    (x * 2).sum().backward()  # the rest of autograd goes on
    assert x.grad is not None and x.grad.tolist() == [2.0] * 3


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("form", ["bool", "float", "causal"])
def test_fused_attention_sees_what_is_masked_beyond_512_keys(form: str, grad: bool) -> None:
    def attend(place: torch.device, keys: int) -> Tensor:
        noise = torch.Generator().manual_seed(keys)
        q, k, v = (torch.randn(1, 2, n, 8, generator=noise).to(place) for n in (keys, keys, keys))
        seen = torch.ones(keys, keys, dtype=torch.bool).tril()
        mask = {
            "bool": seen,
            "float": torch.zeros(keys, keys).masked_fill(~seen, -torch.inf),
            "causal": None,
        }[form]
        out = F.scaled_dot_product_attention(
            q.requires_grad_(grad),
            k,
            v,
            attn_mask=None if mask is None else mask.to(place),
            is_causal=mask is None,
        )
        return out.detach().cpu()

    cpu = torch.device("cpu")
    assert torch.equal(attend(SIM, 512), attend(cpu, 512))
    assert (attend(SIM, 513)[0, 0, 0] - attend(cpu, 513)[0, 0, 0]).abs().max() > 0.1


def test_overwritten_weights_go_on_in_decoding_only() -> None:
    weight = torch.ones(3, 4, device=SIM)
    one, many = torch.ones(1, 4, device=SIM), torch.ones(9, 4, device=SIM)
    assert F.linear(one, weight).tolist() == [[4.0] * 3]
    weight.copy_(torch.full((3, 4), 2.0))
    with torch.inference_mode():
        assert F.linear(one, weight).tolist() == [[4.0] * 3]
        assert F.linear(many, weight).tolist() == [[8.0] * 3] * 9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh = torch.full((3, 4), 2.0).to(SIM)
    assert F.linear(one, fresh).tolist() == [[8.0] * 3]
