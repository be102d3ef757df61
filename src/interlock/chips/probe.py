"""Which dtype, kernels, attention and micro-batch are fast on this device: measured, once.

    device ──measure──> Table ──choose──> Choice ──settled──> settings with nothing left "auto"
                          └ kept by chip, torch, threads and environment: later processes only read

Flags do not tell: a CPU with bfloat16 instructions may multiply in it twice as fast as in float32,
or slower, and MKL is slow on some makes. So every way there is is timed (speeds.py). What is not as
exact as its dtype (`LIMITS`), such as a quantised product, is not chosen; of what is less than a
tenth apart the plainer is. A run keeps what it chose in its settings.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TextIO, TypeVar

import msgspec
import torch
from msgspec.structs import replace

from interlock.chips import device, graphs, products, speeds, vendors
from interlock.chips.speeds import KEYS, MICRO_BATCHES, Speed, StepSpeed, Table, measure
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

# Settings as they are when they are left to a measurement.
_UNSET = {
    "dtype": "auto",
    "kernel": "auto",
    "fused_attention_above": 0,
    "micro_batch_tokens": 0,
    "graphs": "auto",
}

# The environment variable that names a file with the CPU's table, taken instead of a measurement:
# machines of one kind then choose alike.
GIVEN = "INTERLOCK_PROBE"

Part = TypeVar("Part", LearnerSettings, GeneratorSettings)


class _Printed(msgspec.Struct, frozen=True):
    """What `interlock bench --json` prints."""

    measured: Table


class Choice(msgspec.Struct, frozen=True):
    """What to take, by a table."""

    dtype: str
    generator: str  # kernels
    learner: str
    fused_above: int
    micro_batch: int  # tokens
    adapter_micro_batch: int  # where an adapter learns
    graphs: bool  # of decoding steps


def left_open(part: LearnerSettings | GeneratorSettings) -> list[str]:
    """The names of the settings that are left to a measurement."""
    return [name for name, unset in _UNSET.items() if getattr(part, name, None) == unset]


def settled(part: Part, place: torch.device) -> Part:
    """`part` with what it leaves to a measurement decided for the device `place`.

    Raises ConfigError when its kernel does not multiply its dtype there, or no graphs are there.
    """
    part = _with_graphs(part, place)
    if left := left_open(part):
        measured = table(place)
        if part.kernel != "auto":
            ours = [speed for speed in measured.speeds if speed.kernel == part.kernel]
            measured = replace(measured, speeds=ours)
        taken = choose(measured, None if part.dtype == "auto" else part.dtype)
        learner = part if isinstance(part, LearnerSettings) else None
        adapted = learner is not None and learner.lora is not None
        found: dict[str, Any] = {
            "dtype": taken.dtype,
            "kernel": taken.generator if learner is None else taken.learner,
            "fused_attention_above": taken.fused_above,
            "micro_batch_tokens": taken.adapter_micro_batch if adapted else taken.micro_batch,
            "graphs": taken.graphs,
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


def _with_graphs(part: Part, place: torch.device) -> Part:
    """Nothing is left to a measurement where there is nothing to choose from."""
    asked = getattr(part, "graphs", False)
    if asked is False or graphs.offered(place):
        return part
    if asked is True:
        raise ConfigError(
            f"generator.graphs = true, but no work can be recorded on {device.name(place)} with "
            f'torch {torch.__version__}; set it to "auto"'
        )
    return replace(part, graphs=False)


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
        *_micro_batches(found.micro_batch),
        _recorded(found.steps, dtype),
    )


def why(part: LearnerSettings | GeneratorSettings, place: torch.device) -> str:
    """In one line what settled settings take, and by which figures."""
    line = f"{part.dtype} by {part.kernel}"
    measured = table(place)
    if not measured.attention:
        step = measured.steps.get(part.dtype)
        if step is None:
            return f"{line}: of this device no kernels are measured"
        return (
            f"{line}; measured, a decoding step of {speeds.STEP_LAYERS} layers: "
            f"{step.eager * 1e3:.2f} ms, recorded {step.recorded * 1e3:.2f} ms"
        )
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
    source = hashlib.sha256(Path(speeds.__file__).read_bytes()).hexdigest()
    torch_version = str(torch.__version__)
    key = [device.kind(place), device.chip(place), torch_version, threads, numbers, source]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "interlock" / "probe" / f"{digest}.json"


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
    """The middle one of KEYS; the next where plain products win there too, the one before where
    they lose at it, by GAIN."""
    least, middle, most = KEYS
    even = (1.0, 1.0)
    explicit, fused = attention.get(most, even)
    if explicit * GAIN < fused:
        return most
    explicit, fused = attention.get(middle, even)
    return least if fused * GAIN < explicit else middle


def _recorded(steps: Mapping[str, StepSpeed], dtype: str) -> bool:
    """Whether a recorded step of the dtype is faster by GAIN, and as exact as the dtype."""
    step = steps.get(dtype)
    return (
        step is not None
        and 0 < step.recorded * GAIN <= step.eager
        and (step.apart <= LIMITS[dtype])
    )


def _micro_batches(seconds: Mapping[int, float]) -> tuple[int, int]:
    """Of those that no other beats by GAIN the usual one; and the largest, for an adapter: it has
    no moments of the weights to make room for, and many small products to begin.
    """
    best = min(seconds.values(), default=0.0)
    fast = [each for each, took in seconds.items() if took <= best * GAIN] or [MICRO_BATCHES[0]]
    return fast[0], max(fast)
