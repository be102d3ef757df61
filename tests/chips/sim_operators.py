"""Run by test_simulated.py in a process of its own: the sound device is the CPU, bit for bit."""

import copy
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from interlock.chips import device, probe
from interlock.config.schema import GeneratorSettings
from interlock.errors import ConfigError
from interlock.qualify import opinfo

CPU = torch.device("cpu")
SIM = device.claim("sim")
Compute = Callable[[torch.device], Any]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def same(compute: Compute) -> None:
    """Both devices give equal bits, shapes, strides and dtypes."""
    torch.manual_seed(7)
    expected = compute(CPU)
    torch.manual_seed(7)
    found = compute(SIM)
    for ours, theirs in zip(_tensors(found), _tensors(expected), strict=True):
        assert ours.device == SIM
        assert (ours.dtype, ours.shape, ours.stride()) == (
            theirs.dtype,
            theirs.shape,
            theirs.stride(),
        )
        assert torch.equal(ours.cpu(), theirs)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for each in value:
            yield from _tensors(each)


@pytest.mark.parametrize(
    "make",
    [
        lambda d: torch.tensor([[1.5, 2], [3, 4]], device=d),
        lambda d: torch.tensor(3, device=d),
        lambda d: torch.as_tensor([True, False], device=d),
        lambda d: torch.zeros(2, 3, device=d).new_tensor([1, 2]),
        lambda d: torch.zeros(2, 3, device=d).new_zeros(4),
        lambda d: torch.ones(2, 0, 3, device=d),
        lambda d: torch.full((3,), -torch.inf, device=d),
        lambda d: torch.arange(2, 11, 3, device=d),
        lambda d: torch.linspace(0, 1, 7, device=d),
        lambda d: torch.eye(3, device=d, dtype=torch.bfloat16),
        lambda d: torch.randperm(9, device=d),
        lambda d: torch.tril_indices(3, 3, device=d),
        lambda d: torch.randn(4, device=d),
        lambda d: torch.rand(4, device=d),
        lambda d: torch.randint(0, 9, (5,), device=d),
        lambda d: torch.zeros_like(torch.ones(2, 3, device=d)[:, 1:]),
        lambda d: torch.empty(5, device=d).normal_(),
        lambda d: torch.frombuffer(bytearray(b"abc"), dtype=torch.uint8).to(d),
    ],
)
def test_tensors_are_made(make: Compute) -> None:
    same(make)


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x[1],
        lambda x: x[:, 1:3],
        lambda x: x[..., -1],
        lambda x: x[[2, 0, 2]],
        lambda x: x[[0, 1], [2, 3]],
        lambda x: x[torch.tensor([1, 0], device=x.device)],
        lambda x: x[torch.tensor([1, 0])],  # indices may stay on the host
        lambda x: x[x > 0],
        lambda x: x[None, :, 2:].transpose(0, 1),
        lambda x: x.T.contiguous(),
        lambda x: x.unfold(1, 2, 1),
        lambda x: x.split(2),
        lambda x: x.to(torch.bfloat16),
        lambda x: x.view(torch.int32),
        lambda x: x.cumsum(-1).topk(2),
        lambda x: x.sort(descending=True),
        lambda x: torch.cat([x, x]).unflatten(0, (2, -1)),
        lambda x: x.index_select(1, torch.tensor([3, 1], device=x.device)),
        lambda x: (x @ x.T).softmax(-1),
        lambda x: (torch.complex(x, -x).conj() * 2, torch.complex(x, x).conj().imag),
        lambda x: torch._foreach_mul([x, x + 1], 3.0),
    ],
)
def test_tensors_are_looked_at(look: Callable[[Tensor], Any]) -> None:
    same(lambda d: look(drawn(4, 5).to(d)))


def test_views_share_memory_and_what_is_written_in_place_shows_in_all_of_them() -> None:
    def write(d: torch.device) -> list[Tensor]:
        base = torch.zeros(4, 6, device=d)
        rows, flat = base[1:3], base.view(-1)
        rows += 1
        rows[:, [0, 2]] = torch.tensor([5.0, 6.0], device=d)
        flat[20:].fill_(9)
        base.T[3].copy_(torch.arange(4.0))
        base.index_copy_(0, torch.tensor([3], device=d), drawn(1, 6).to(d))
        base.masked_fill_(base > 8, -1)
        base.detach().unsqueeze(0).mul_(2)
        return [base, rows, flat]

    same(write)


def test_tensors_change_their_shape_in_place() -> None:
    def change(d: torch.device) -> list[Tensor]:
        x, y, out = torch.ones(2, 3, device=d), torch.ones(6, device=d), torch.empty(0, device=d)
        x.t_()
        y.resize_(3).unsqueeze_(0)
        torch.add(x, 1, out=out)
        z = torch.ones(2, device=d)
        z.data = torch.full((3,), 2.0, device=d).bfloat16()
        z.mul_(4)
        return [x, y, out, z]

    same(change)


def test_copies_go_both_ways() -> None:
    host = drawn(3, 4)
    there = host.to(SIM)
    assert there.device == SIM and there.cpu().device == CPU
    assert torch.equal(there.cpu(), host)
    back = torch.zeros(4, 3)
    back.T.copy_(there)
    assert torch.equal(back.T, host)
    there[1].copy_(torch.ones(4))
    assert there[1].tolist() == [1.0] * 4
    assert there[1, 2].item() == 1.0 and float(there.sum()) == float(there.cpu().sum())
    assert bool(there.isfinite().all()) and len(there) == 3
    assert there.double().to("cpu", torch.float16).dtype == torch.float16
    with pytest.raises(TypeError, match=r"Tensor.cpu\(\)"):
        there.numpy()
    assert there.cpu().numpy()[1, 0] == 1.0


def test_gradients_are_those_of_the_cpu() -> None:
    def learn(d: torch.device) -> list[Tensor]:
        table = nn.Parameter(drawn(11, 6).to(d))
        net = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.LayerNorm(8), nn.Linear(8, 3))
        for number, parameter in enumerate(net.parameters()):
            parameter.data = drawn(*parameter.shape) / (number + 2)
        net = net.to(d)
        trained = [table, *net.parameters()]
        optimizer = torch.optim.AdamW(trained, lr=0.1, fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            x = F.embedding(torch.tensor([1, 5, 1, 10], device=d), table)
            out = checkpoint(net, x, use_reentrant=False)
            F.cross_entropy(out, torch.tensor([0, 2, 1, 1], device=d)).backward()
            nn.utils.clip_grad_norm_(trained, 0.5)
            optimizer.step()
        frozen = copy.deepcopy(net)
        net[0].weight.data.zero_()
        return [p.detach() for p in trained] + [p.detach() for p in frozen.parameters()]

    same(learn)


def test_a_copied_parameter_is_a_parameter_of_its_own() -> None:
    layer = nn.Linear(2, 2).to(SIM)
    copied = copy.deepcopy(layer)
    assert isinstance(copied.weight, nn.Parameter) and copied.weight.requires_grad
    with torch.no_grad():
        layer.weight.zero_()
    assert copied.weight.abs().sum().item() > 0
    layer.weight.data = layer.weight.data.bfloat16()
    assert layer.weight.dtype == torch.bfloat16 and (layer.weight * 2).dtype == torch.bfloat16


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", ["none", "bool", "float", "causal"])
def test_attention_is_that_of_the_cpu(mask: str, dtype: torch.dtype, inference: bool) -> None:
    seen = drawn(9, 33) > -0.5
    seen[:, 0] = True
    masks = {"bool": seen, "float": drawn(9, 33, dtype=dtype)}

    def attend(d: torch.device) -> list[Tensor]:
        q, k, v = (
            drawn(2, heads, tokens, 8, dtype=dtype).to(d).requires_grad_(not inference)
            for heads, tokens in ((4, 9), (2, 33), (2, 33))
        )
        with torch.inference_mode(inference):
            out = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=masks[mask].to(d) if mask in masks else None,
                is_causal=mask == "causal",
                enable_gqa=True,
            )
        if inference:
            return [out]
        out.sum().backward()
        return [out.detach(), *(x.grad for x in (q, k, v) if x.grad is not None)]

    same(attend)


SAMPLED = {"addmm", "gather", "index_add", "logsumexp", "masked_fill", "nn.functional.linear"}
SAMPLED |= {"nn.functional.silu", "repeat_interleave", "scatter_reduce", "std", "where", "rsub"}


def test_samples_of_torchs_own_database_pass_after_a_move() -> None:
    names, count = set(), 0
    for operator in opinfo.torch_database():
        if operator.name not in SAMPLED:
            continue
        for sample in operator.sample_inputs("cpu", torch.float32):
            moved = sample.transform(lambda x: x.to(SIM) if isinstance(x, Tensor) else x)
            expected = operator(sample.input, *sample.args, **sample.kwargs)
            found = operator(moved.input, *moved.args, **moved.kwargs)
            torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0, equal_nan=True)
            names.add(operator.name)
            count += 1
    assert names == SAMPLED and count > 60


def test_inference_mode_makes_the_tensors_that_the_cpu_makes() -> None:
    def kinds(d: torch.device) -> list[bool]:
        x = torch.ones(2, 2, device=d)
        with torch.inference_mode():
            made = [x, x + 1, x[0], *x.unbind(), x.T, (x + 1)[0], torch.ones(2, device=d)]
        made += [made[1][0], x.clone()]
        return [each.is_inference() for each in made]

    assert kinds(SIM) == kinds(CPU)


def test_a_dispatch_mode_sees_the_operators() -> None:
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, op: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(op.overloadpacket.__name__)
            return op(*args, **kwargs or {})

    with Watch():
        x = torch.ones(2, 2).to(SIM) @ torch.tensor([[1.0], [2.0]], device=SIM)
        assert (x[[1]] + torch.zeros(1, device=SIM)).tolist() == [[3.0]]
    assert {"mm", "index", "add", "_to_copy"} <= set(seen)


def test_devices_do_not_mix() -> None:
    x = torch.ones(3, device=SIM)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        F.linear(x, torch.ones(2, 3))
    assert (x + torch.tensor(2.0)).tolist() == [3.0] * 3  # a number is no tensor of a device
    with pytest.raises(RuntimeError, match="invalid device ordinal 1"):
        torch.ones(3, device="npu:1")


def test_what_raises_on_the_cpu_raises() -> None:
    x = torch.ones(3, 2, device=SIM)
    with pytest.raises(RuntimeError):
        x @ x
    with pytest.raises(IndexError):
        x[[5]]
    with pytest.raises(RuntimeError):
        x.view(4)
    leaf = torch.ones(2, device=SIM, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf"):
        leaf.add_(1)


def test_what_fails_in_autograds_thread_is_raised_where_the_gradient_was_asked_for() -> None:
    gc.collect()  # or what earlier tests left is given back meanwhile
    x = torch.ones(3, device=SIM, requires_grad=True)
    for compute in (lambda: (x * 2).sum(), lambda: F.layer_norm(x, (3,)).sum()):
        value = compute()
        with pytest.raises(RuntimeError, match="out of memory"):
            filler = torch.empty(device.memory(SIM).free - 4, dtype=torch.uint8, device=SIM)
            value.backward()
        del filler
    x.exp().sum().backward()  # and the thread goes on


def test_memory_is_counted_by_storages_and_comes_back() -> None:
    gc.collect()
    start = device.memory(SIM).used
    x = torch.zeros(1000, device=SIM)
    views = [x[:10], x.view(10, 100), x.detach()]
    assert device.memory(SIM).used - start == 4000
    y = x.double()
    assert device.memory(SIM).used - start == 12000
    x.resize_(2000)
    assert device.memory(SIM).used - start == 16000
    torch.npu.reset_peak_memory_stats()
    del x, y
    assert device.memory(SIM).used - start == 8000  # the views hold it
    views.clear()
    assert device.memory(SIM).used == start
    assert device.peak(SIM) - start == 16000
    assert device.peak(SIM) == start  # it began anew
    free, total = torch.npu.mem_get_info()
    assert (total - free, total) == (start, 8 << 30)


def test_memory_beyond_the_budget_is_refused_and_nothing_is_lost() -> None:
    start = device.memory(SIM).used
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        torch.empty(9 << 30, dtype=torch.uint8, device=SIM)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        torch.empty(1 << 50, dtype=torch.uint8, device=SIM)  # more than the host has
    assert device.memory(SIM).used == start
    assert torch.ones(2, device=SIM).sum().item() == 2.0


def test_threads_share_the_device() -> None:
    start, results = device.memory(SIM).used, []

    def work() -> None:
        x = torch.ones(64, 64, device=SIM, requires_grad=True)
        for _ in range(50):
            (x @ x).sum().backward()
        assert x.grad is not None
        results.append(x.grad[0, 0].item())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert results == [50 * 128.0] * 4
    assert device.memory(SIM).used == start


def test_random_numbers_can_be_set_back() -> None:
    state = torch.npu.get_rng_state()
    first = torch.rand(3, device=SIM)
    torch.npu.set_rng_state(state)
    assert torch.equal(torch.rand(3, device=SIM), first)
    torch.npu.manual_seed(3)
    again = torch.rand(3, device=SIM)
    assert torch.equal(again.cpu(), torch.rand(3, generator=torch.Generator().manual_seed(3)))


def test_it_is_what_device_says_it_is() -> None:
    stack = device.stack(SIM)
    assert (stack.kind, stack.chip) == ("sim", "Interlock simulated accelerator")
    assert (stack.driver, stack.plugin) == ("healthy", f"simulated {torch.__version__[:6]}")
    assert device.plugin_mismatch(stack) is None
    assert device.available()[-2:] == ["sim", "cpu"]
    assert (device.name(SIM), device.kind(SIM), device.count(SIM)) == ("sim", "sim", 1)
    assert device.chip(SIM) == torch.npu.get_device_name() == stack.chip
    assert device.backend(SIM) == "cpu:gloo,npu:gloo"
    assert probe.settled(GeneratorSettings(), SIM).dtype == "bfloat16"
    assert torch.accelerator.current_accelerator() == torch.device("npu")
    device.synchronize(SIM)
    device.empty_cache(SIM)


def test_it_is_set_up_once() -> None:
    assert device.claim("sim") == SIM
    with pytest.raises(ConfigError, match=r"'sim:crash' cannot.*has 'sim' already"):
        device.claim("sim:crash")
    with pytest.raises(ConfigError, match=r"defect 'colour' is not offered.*mask-512"):
        device.claim("sim:colour")
