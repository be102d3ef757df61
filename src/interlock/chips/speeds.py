"""How fast a device multiplies, in every dtype and kernel there is, and how exactly: timed.

A few products of the sizes of decoding and of learning, forward and backward, with their error
against float64; on a CPU attention, by plain products and fused, and micro-batches as well. What is
taken of it says probe.py.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from interlock.chips import device, graphs, products, vendors
from interlock.chips.graphs import RecordedWork
from interlock.processes.run_delay import RunDelay

DTYPES = ("float32", "bfloat16")  # the plainer first
KEYS = (256, 512, 1024)  # that attention may switch over at
MICRO_BATCHES = (512, 256, 1024)  # tokens, the usual first
_HOPELESS = 4.0  # times slower than float32 in a small product: not measured any further
_DECODED, _LEARNED = (64, 4), 128  # rows of a product
_LAYER, _VOCABULARY = (1536, 576), (4096, 576)  # W [out, in], of a small model
STEP_LAYERS = 8
_SHORT_S = 0.01
_BUDGET_S = 0.002  # for the repetitions of one measurement

Run = Callable[[], object]


class Speed(msgspec.Struct, frozen=True):
    """One way to multiply: GFLOP/s, 0 where it is hopeless."""

    dtype: str  # one of DTYPES
    kernel: str  # one of products.KERNELS
    decode: float  # few rows, with W packed where the kernel packs
    learn: float  # forward, and both gradients
    error: float  # root mean square, relative to that of the exact product


class StepSpeed(msgspec.Struct, frozen=True):
    """A decoding step of STEP_LAYERS small layers on a device that records (graphs.py)."""

    eager: float  # seconds, its kernels asked for one by one
    recorded: float  # seconds, launched as a whole
    apart: float  # root mean square of the two results' difference, relative to the first


class Table(msgspec.Struct, frozen=True):
    """What was measured on one device."""

    chip: str
    threads: int
    speeds: list[Speed]
    # By keys: seconds, forward and backward, as plain products and as the fused kernel.
    attention: dict[int, tuple[float, float]] = {}
    micro_batch: dict[int, float] = {}  # by tokens: seconds per thousand of them
    steps: dict[str, StepSpeed] = {}  # by dtype; none where nothing can be recorded
    seconds: float = 0.0  # that measuring took
    waited: float = 0.0  # share of these that a thread waited for a processor


def measure(place: torch.device) -> Table:
    """Time what there is on `place`; on two cores of a CPU it takes about 0.2 s.

    Of an accelerator the dtypes are compared, and steps that are recorded with those that are not;
    of the simulated one, which computes at the CPU's speed, nothing.
    """
    of = device.chip(place), torch.get_num_threads()
    if vendors.simulated(device.kind(place)):
        return Table(*of, _SIMULATED)
    began, delay = time.perf_counter(), RunDelay([os.getpid()])
    speeds = _speeds(place)
    attention, tokens = (_attention(), _micro_batches()) if place.type == "cpu" else ({}, {})
    steps = _steps(place, [each.dtype for each in speeds if each.decode])
    seconds = time.perf_counter() - began
    return Table(*of, speeds, attention, tokens, steps, seconds, delay.seconds / seconds)


# As of most accelerators: twice as fast in bfloat16.
_SIMULATED = [Speed("float32", "torch", 1.0, 1.0, 0.0), Speed("bfloat16", "torch", 2.0, 2.0, 0.0)]


def _speeds(place: torch.device) -> list[Speed]:
    """Every dtype and kernel that there is, the plainest first."""
    found: list[Speed] = []
    for name in DTYPES:
        with suppress(RuntimeError):  # a chip without this dtype
            found += _of_dtype(name, place)
    return found


def _of_dtype(name: str, place: torch.device) -> list[Speed]:
    dtype = device.dtype(name)
    small = [_trial(each, place) for each in (torch.float32, dtype)]
    exact_s, ours_s = _in_turns(small, place)
    if ours_s > _HOPELESS * exact_s:
        return [Speed(name, "torch", 0.0, 0.0, 0.0)]
    noise = torch.Generator().manual_seed(0)
    layer, vocabulary, x = (
        torch.randn(shape, generator=noise).to(place, dtype)
        for shape in (_LAYER, _VOCABULARY, (_LEARNED, _LAYER[1]))
    )
    kernels = [each for each in products.KERNELS if products.offered(each, dtype, place.type)]
    decode_s = _in_turns([_decoding(each, x, (layer, vocabulary)) for each in kernels], place)
    plain = [each for each in kernels if each != "mkl"]  # which packs, and learns by torch's own
    learns = _in_turns([_learning(each, x, layer) for each in plain], place)
    learn_s = dict(zip(plain, learns, strict=True))
    decode = 2e-9 * sum(_DECODED) * (layer.numel() + vocabulary.numel())  # GFLOP
    learn = 3 * 2e-9 * _LEARNED * layer.numel()
    return [
        Speed(
            name,
            kernel,
            decode / decoding_s,
            learn / learn_s.get(kernel, learn_s["torch"]),
            _error(kernel, x[:16], layer),
        )
        for kernel, decoding_s in zip(kernels, decode_s, strict=True)
    ]


def _trial(dtype: torch.dtype, place: torch.device) -> Run:
    """A small product and one of its gradients: some CPUs emulate bfloat16."""
    x, weight = (torch.ones(rows, 256, dtype=dtype, device=place) for rows in (16, 256))
    return lambda: F.linear(F.linear(x, weight), weight.mT)


def _decoding(kernel: str, x: Tensor, weights: Sequence[Tensor]) -> Run:
    """Products of few rows, as an engine makes them."""
    ways = [_product(kernel, weight) for weight in weights]
    inputs = [x[:rows] for rows in _DECODED]
    return lambda: [multiply(each) for multiply in ways for each in inputs]


def _product(kernel: str, weight: Tensor) -> Callable[[Tensor], Tensor]:
    if kernel == "torch":
        return partial(F.linear, weight=weight)
    packed = products.pack(kernel, weight, _DECODED[0])
    return lambda x: packed(x, None)


def _learning(kernel: str, x: Tensor, weight: Tensor) -> Run:
    """A product and both of its gradients, each a product too."""
    grad, multiply = torch.ones(len(x), len(weight)).to(x), products.plain(kernel)
    return lambda: (
        multiply(x, weight, None),
        multiply(grad, weight.mT, None),
        multiply(grad.mT, x.mT, None),
    )


def _error(kernel: str, x: Tensor, weight: Tensor) -> float:
    """The largest of the product's and its gradients', against float64."""
    grad = torch.linspace(-1, 1, len(x) * len(weight)).view(len(x), len(weight)).to(x)
    multiply = products.plain(kernel)
    pairs = [(x, weight), (grad, weight.mT), (grad.mT, x.mT)]
    found = [(multiply(left, right, None), left, right) for left, right in pairs]
    if kernel != "torch":
        found.append((products.pack(kernel, weight, len(x))(x, None), x, weight))
    return max(_apart(*each) for each in found)


def _apart(found: Tensor, left: Tensor, right: Tensor) -> float:
    exact = F.linear(left.cpu().double(), right.cpu().double())
    return ((found.cpu().double() - exact).norm() / exact.norm()).item()


def _attention() -> dict[int, tuple[float, float]]:
    """Seconds as plain products and as the fused kernel: at the middle one of KEYS, and at the
    next one on the side where the two may be even."""
    least, middle, most = KEYS
    found = {middle: _attending(middle)}
    explicit, fused = found[middle]
    other = most if explicit < fused else least
    return found | {other: _attending(other)}


def _attending(keys: int) -> tuple[float, float]:
    heads, size = max(2, torch.get_num_threads()), 64
    q, k, v = (torch.randn(1, heads, keys, size, requires_grad=True) for _ in range(3))
    mask = torch.ones(keys, keys, dtype=torch.bool).tril()
    bias = torch.zeros(keys, keys).masked_fill_(~mask, torch.finfo(torch.float32).min)

    def explicit() -> None:
        ((q @ k.mT).add_(bias).softmax(-1) @ v).sum().backward()

    def fused() -> None:
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()

    plain_s, fused_s = _in_turns([explicit, fused], torch.device("cpu"))
    return plain_s, fused_s


def _micro_batches() -> dict[int, float]:
    """Seconds per thousand tokens of a narrow MLP with its gradients, by tokens at a time."""
    hidden, inner = 192, 512
    up = torch.randn(2 * inner, hidden, requires_grad=True)
    down = torch.randn(hidden, inner, requires_grad=True)

    def mlp(x: Tensor) -> None:
        gate, value = F.linear(x, up).chunk(2, dim=-1)
        F.linear(F.silu(gate) * value, down).sum().backward()

    runs = [partial(mlp, torch.randn(tokens, hidden)) for tokens in MICRO_BATCHES]
    seconds = _in_turns(runs, torch.device("cpu"))
    return {n: took * 1000 / n for n, took in zip(MICRO_BATCHES, seconds, strict=True)}


def _steps(place: torch.device, dtypes: Sequence[str]) -> dict[str, StepSpeed]:
    found = {}
    for name in dtypes if graphs.offered(place) else ():
        with suppress(RuntimeError):  # a device that records, but not all
            found[name] = _step(device.dtype(name), place)
    return found


def _step(dtype: torch.dtype, place: torch.device) -> StepSpeed:
    """Of layers that have about as many kernels as a decoder's."""
    noise = torch.Generator().manual_seed(0)
    width = _LAYER[1]
    up, down, x = (
        (torch.randn(shape, generator=noise) / width**0.5).to(place, dtype)
        for shape in (_LAYER, _LAYER[::-1], (_DECODED[1], width))
    )

    def layers() -> Tensor:
        y = x
        for _ in range(STEP_LAYERS):
            wide = F.linear(F.rms_norm(y, (width,)), up)
            first, second = wide.chunk(2, dim=-1)
            turned = torch.cat([second, first], dim=-1)
            weights = (wide + turned * 0.5).float().softmax(-1).to(dtype)
            y = y + F.linear(F.silu(wide) * weights, down)
        return y

    with torch.inference_mode():
        eager = layers().clone()
        recorded = RecordedWork(place, layers)
        exact, ours = eager.cpu().double(), recorded.replay().cpu().double()
        eager_s, recorded_s = _in_turns([layers, recorded.replay], place)
    return StepSpeed(eager_s, recorded_s, ((ours - exact).norm() / exact.norm()).item())


def _in_turns(runs: Sequence[Run], place: torch.device) -> list[float]:
    """Seconds of the fastest of several runs of each, one after the other, so that a slow moment is
    everybody's. A short one is run twice in its turn: the first finds another's data in the caches.
    """
    least, spent, rounds = [float("inf")] * len(runs), 0.0, 0
    while rounds < 2 or spent < _BUDGET_S * len(runs):
        rounds += 1
        for index, run in enumerate(runs):
            took = _timed(run, place)
            took = min(took, _timed(run, place)) if took < _SHORT_S else took
            least[index], spent = min(least[index], took), spent + took
    return least


def _timed(run: Run, place: torch.device) -> float:
    device.synchronize(place)
    began = time.perf_counter()
    run()
    device.synchronize(place)
    return time.perf_counter() - began
