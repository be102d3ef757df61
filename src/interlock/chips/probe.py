"""Which dtype, kernels, attention and micro-batch are fast on this device: measured, once.

    device ──measure──> Table ──choose──> Choice ──settled──> settings with nothing left "auto"
                          └ kept by chip, torch, threads and environment: later processes only read

Flags do not tell: a CPU with bfloat16 instructions may multiply in it twice as fast as in float32,
or slower, and MKL is slow on some makes. So a few products of the sizes of decoding and of learning
are timed, forward and backward, in every way that there is, and their error is taken against
float64. What is not as exact as its dtype (`LIMITS`), such as a quantised product, is not chosen.
Of what is less than a tenth apart the plainer is taken. A run keeps what it chose in its settings.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, TextIO, TypeVar

import msgspec
import torch
import torch.nn.functional as F
from msgspec.structs import replace
from torch import Tensor

from interlock.chips import device, products, vendors
from interlock.config.schema import GeneratorSettings, LearnerSettings
from interlock.errors import ConfigError, RunError
from interlock.rundir.files import write_atomically
from interlock.text import error_line

# Largest root mean square error of a product relative to that of the exact one. Rounding the result
# to bfloat16 gives 1.1e-3, factors in it besides 2.9e-3; int8 by rows 1.2e-2; TF32 3e-4.
LIMITS = {"float32": 2e-5, "bfloat16": 4e-3}
GAIN = 1.1  # how much faster something must be to be taken instead of what is plainer
BUSY = 0.1  # share of the time spent waiting, from which on figures are not kept for long
_BUSY_KEPT_S = 3600.0
_LINE_S = 10.0  # to wait for other processes that measure
_HOPELESS = 4.0  # times slower than float32 in a small product: not measured any further
_DECODED, _LEARNED = (64, 4), 128  # rows of a product
_LAYER, _VOCABULARY = (1536, 576), (4096, 576)  # W [out, in], of a small model
_KEYS = (256, 512, 1024)  # that attention may switch over at
_MICRO_BATCHES = (512, 256, 1024)  # tokens; the first where no other is faster
_SHORT_S = 0.01
_BUDGET_S = 0.002  # for the repetitions of one measurement

# Settings as they are when they are left to a measurement.
_UNSET = {"dtype": "auto", "kernel": "auto", "fused_attention_above": 0, "micro_batch_tokens": 0}

# The environment variable that names a file with the CPU's table, taken instead of a measurement:
# machines of one kind then choose alike.
GIVEN = "INTERLOCK_PROBE"

Run = Callable[[], object]
Part = TypeVar("Part", LearnerSettings, GeneratorSettings)


class Speed(msgspec.Struct, frozen=True):
    """One way to multiply: GFLOP/s, 0 where it is hopeless."""

    dtype: str  # one of LIMITS
    kernel: str  # one of products.KERNELS
    decode: float  # few rows, with W packed where the kernel packs
    learn: float  # forward, and both gradients
    error: float  # see LIMITS


class Table(msgspec.Struct, frozen=True):
    """What was measured on one device."""

    chip: str
    threads: int
    speeds: list[Speed]
    # By keys: seconds, forward and backward, as plain products and as the fused kernel.
    attention: dict[int, tuple[float, float]] = {}
    micro_batch: dict[int, float] = {}  # by tokens: seconds per thousand of them
    seconds: float = 0.0  # that measuring took
    waited: float = 0.0  # share of these that a thread waited for a processor


class _Printed(msgspec.Struct, frozen=True):
    """What `interlock bench --json` prints."""

    measured: Table


class Choice(msgspec.Struct, frozen=True):
    """What to take, by a table."""

    dtype: str
    generator: str  # kernels
    learner: str
    fused_above: int
    micro_batch: int


def left_open(part: LearnerSettings | GeneratorSettings) -> list[str]:
    """The names of the settings that are left to a measurement."""
    return [name for name, unset in _UNSET.items() if getattr(part, name, None) == unset]


def settled(part: Part, place: torch.device) -> Part:
    """`part` with what it leaves to a measurement decided for the device `place`.

    Raises ConfigError when its kernel does not multiply its dtype there.
    """
    if left := left_open(part):
        measured = table(place)
        if part.kernel != "auto":
            ours = [speed for speed in measured.speeds if speed.kernel == part.kernel]
            measured = replace(measured, speeds=ours)
        taken = choose(measured, None if part.dtype == "auto" else part.dtype)
        found: dict[str, Any] = {
            "dtype": taken.dtype,
            "kernel": taken.learner if isinstance(part, LearnerSettings) else taken.generator,
            "fused_attention_above": taken.fused_above,
            "micro_batch_tokens": taken.micro_batch,
        }
        part = replace(part, **{name: found[name] for name in left})
    for_what = device.dtype(part.dtype), place.type
    if not products.offered(part.kernel, *for_what):
        able = [kernel for kernel in products.KERNELS if products.offered(kernel, *for_what)]
        raise ConfigError(
            f"kernel = {part.kernel!r} does not multiply {part.dtype} on {device.name(place)}; "
            f'choose one of {", ".join(able)}, or "auto"'
        )
    return part


def choose(found: Table, dtype: str | None = None) -> Choice:
    """The fastest admissible dtype and kernels of a table; of one dtype only, where it is given.

    What a dtype costs is the time of a token that is generated (forward, at few rows) and learned
    from (forward, and backward twice that). Generator and learner take the same: two dtypes differ
    by more than the order in which things are added up.
    """
    able = [speed for speed in found.speeds if speed.error <= LIMITS[speed.dtype]]
    if dtype is None:
        cost = {name: _cost([each for each in able if each.dtype == name]) for name in LIMITS}
        dtype = "bfloat16" if cost["bfloat16"] * GAIN < cost["float32"] else "float32"
    ours = [each for each in able if each.dtype == dtype]
    return Choice(
        dtype,
        _fastest({each.kernel: each.decode for each in ours}),
        _fastest({each.kernel: each.learn for each in ours if each.kernel != "mkl"}),
        _switch(found.attention),
        _micro_batch(found.micro_batch),
    )


def why(part: LearnerSettings | GeneratorSettings, place: torch.device) -> str:
    """In one line what settled settings take, and by which figures."""
    line = f"{part.dtype} by {part.kernel}"
    measured = table(place)
    if not measured.attention:
        return f"{line}: of this device no kernels are measured"
    told = [f"{line}, fused attention above {part.fused_attention_above} keys"]
    if isinstance(part, LearnerSettings):
        told[0] += f", {part.micro_batch_tokens} tokens at a time"
    told += [
        f"{each.dtype} {each.kernel} {each.decode:.0f}/{each.learn:.0f}"
        for each in measured.speeds
        if each.decode
    ]
    figures = ", ".join(told[1:])
    return (
        f"{told[0]}; measured, GFLOP/s decoding/learning on {measured.threads} threads: {figures}"
    )


def table(place: torch.device) -> Table:
    """What is measured on `place`: now, or by an earlier process under the same conditions."""
    return _table(str(place), torch.get_num_threads())


@cache
def _table(place: str, threads: int) -> Table:
    if place == "cpu" and (given := os.environ.get(GIVEN)):
        return _given(Path(given))
    kept = _kept(torch.device(place), threads)
    if (found := _read(kept)) is not None:
        return found
    with _in_line(kept):
        if (found := _read(kept)) is not None:  # by one that stood before in the line
            return found
        found = measure(torch.device(place))
        with suppress(OSError, RunError):  # where nothing can be kept, it is measured again
            write_atomically(kept, msgspec.json.encode(found))
    return found


def _given(path: Path) -> Table:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Printed).measured
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{GIVEN} = {str(path)!r} holds no measurement ({error_line(error)}); give what "
            "`interlock bench --json` prints"
        ) from None


def _read(kept: Path) -> Table | None:
    with suppress(OSError, msgspec.DecodeError):
        age_s = time.time() - kept.stat().st_mtime
        found = msgspec.json.decode(kept.read_bytes(), type=Table)
        # Processes of one run are to choose alike, on a busy machine too.
        if found.waited < BUSY or age_s < _BUSY_KEPT_S:
            return found
    return None


@contextmanager
def _in_line(kept: Path) -> Iterator[None]:
    """Processes that begin at the same time measure one after the other. For a while: what stands
    at the head of the line may be stopped, and what cannot be kept needs no line.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(kept.with_suffix(".lock").open("w"))
            late = time.monotonic() + _LINE_S
            while not _locked(file) and time.monotonic() < late:
                time.sleep(0.02)
        yield


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _kept(place: torch.device, threads: int) -> Path:
    """Where a table is kept: by all that decides which kernels there are, and how fast."""
    numbers = {k: v for k, v in os.environ.items() if vendors.changes_numbers(k)}
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    torch_version = str(torch.__version__)
    key = [device.kind(place), device.chip(place), torch_version, threads, numbers, source]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "interlock" / "probe" / f"{digest}.json"


def measure(place: torch.device) -> Table:
    """Time what there is on `place`; on two cores of a CPU it takes about 0.2 s.

    Of an accelerator the dtypes are compared; of the simulated one, which computes at the CPU's
    speed, nothing.
    """
    began, waited = time.perf_counter(), _waited_s()
    on_cpu = place.type == "cpu"
    if vendors.simulated(device.kind(place)):
        return Table(device.chip(place), torch.get_num_threads(), _SIMULATED)
    speeds = _speeds(place)
    attention = _attention() if on_cpu else {}
    tokens = _micro_batches() if on_cpu else {}
    seconds = time.perf_counter() - began
    threads = torch.get_num_threads()
    share = (_waited_s() - waited) / seconds
    return Table(device.chip(place), threads, speeds, attention, tokens, seconds, share)


# As of most accelerators: twice as fast in bfloat16.
_SIMULATED = [Speed("float32", "torch", 1.0, 1.0, 0.0), Speed("bfloat16", "torch", 2.0, 2.0, 0.0)]


def _speeds(place: torch.device) -> list[Speed]:
    """Every dtype and kernel that there is, the plainest first."""
    found: list[Speed] = []
    for name in LIMITS:
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
    """The largest of the product's and its gradients', see LIMITS."""
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
    """Seconds as plain products and as the fused kernel: at the middle one of _KEYS, and at the
    next one on the side where the two may be even."""
    least, middle, most = _KEYS
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

    runs = [partial(mlp, torch.randn(tokens, hidden)) for tokens in _MICRO_BATCHES]
    seconds = _in_turns(runs, torch.device("cpu"))
    return {n: took * 1000 / n for n, took in zip(_MICRO_BATCHES, seconds, strict=True)}


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


def _waited_s() -> float:
    """How long this process's busiest thread was ready to run and no processor was free."""
    waited = 0.0
    with suppress(OSError, ValueError, LookupError):  # not Linux, or a kernel without it
        for task in Path("/proc/self/task").iterdir():
            waited = max(waited, int((task / "schedstat").read_text().split()[1]) / 1e9)
    return waited


def _cost(speeds: list[Speed]) -> float:
    """Of a token, in units of its forward pass per GFLOP/s; without any admissible, infinite."""
    decode = max((each.decode for each in speeds), default=0.0)
    learn = max((each.learn for each in speeds), default=0.0)
    return 1 / decode + 3 / learn if decode and learn else float("inf")


def _fastest(rates: Mapping[str, float]) -> str:
    """The first that no other beats by GAIN; torch's own kernels where there is nothing."""
    best = max(rates.values(), default=0.0)
    return next((name for name, rate in rates.items() if rate * GAIN >= best), "torch")


def _switch(attention: Mapping[int, tuple[float, float]]) -> int:
    """The middle one of _KEYS; the next where plain products win there too, the one before where
    they lose at it, by GAIN."""
    least, middle, most = _KEYS
    even = (1.0, 1.0)
    explicit, fused = attention.get(most, even)
    if explicit * GAIN < fused:
        return most
    explicit, fused = attention.get(middle, even)
    return least if fused * GAIN < explicit else middle


def _micro_batch(seconds: Mapping[int, float]) -> int:
    """The first that no other beats by GAIN."""
    best = min(seconds.values(), default=0.0)
    fast = (each for each, took in seconds.items() if took <= best * GAIN)
    return next(fast, _MICRO_BATCHES[0])
