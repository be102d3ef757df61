"""Which devices there are, what they are, and the few things to ask of one; none else asks torch.

    "cpu", "cuda:1", "npu", "sim:crash" ─ resolve ─> torch.device ─> stack, memory, …

Every accelerator comes as a module of torch's (torch.cuda) or of a plugin (torch_npu as torch.npu).
Nothing is taken for granted of a plugin: a function it lacks is an answer that stays empty. The
CPU, which is no accelerator to torch, gives answers of its own. "sim" is the simulated one.
"""

import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from interlock.chips import mkl, versions
from interlock.chips.sim import accelerator, defects
from interlock.chips.sim import backend as simulated
from interlock.errors import ConfigError
from interlock.records.trust import Stack
from interlock.text import error_headline

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_KINDS = ("cuda", "npu", "xpu", "mps", "mlu", "musa")  # of accelerators
_SINGLE = ("mps",)  # of which a machine has one, without a number
# Devices for which torch has AdamW in one pass.
_FUSED = ("cpu", "cuda", "xpu")
# What turns the silent use of the CPU for a missing operator into an error: Ascend/pytorch's
# environment variables, torch's docs on MPS, intel/torch-xpu-ops.
_STRICT = {
    "npu": {"TORCH_NPU_FALLBACK_CPU_DISABLE": "1"},
    "mps": {"PYTORCH_ENABLE_MPS_FALLBACK": "0"},
    "xpu": {"PYTORCH_ENABLE_XPU_FALLBACK": "0"},
}

# Switches that let products of float32 be made with 10 bits of each factor: TF32 of cuDNN, CNNL and
# MUSA, HF32 of Ascend. Convolutions have them on by default.
_SHORT_PRODUCTS = (
    "backends.cudnn.allow_tf32",
    "backends.cnnl.allow_tf32",
    "backends.mlu.matmul.allow_tf32",
    "backends.mudnn.allow_tf32",
    "npu.conv.allow_hf32",
    "npu.matmul.allow_hf32",
)
_LIKELY_FREE = 4 << 30  # bytes, of a device that does not tell


class Memory(NamedTuple):
    """Bytes; 0 where the device does not tell."""

    used: int  # by this process
    free: int  # to whoever asks first
    total: int


def resolve(name: str) -> torch.device:
    """The device called `name` ("cpu", "cuda", "cuda:1", "npu:0", "sim:crash", …), proven to hold
    a tensor; one of several has its number, asked for or not.

    What this changes in the process: the device becomes the current one of its kind, where streams
    and libraries go that are not told; products of float32 are made in float32, TF32 and
    HF32 being nobody's choice; MKL's kernels are chosen. Raises ConfigError when torch does not
    know the name or this machine lacks the device.
    """
    mkl.choose_kernels()
    kind, _, planted = name.partition(":")
    try:
        if kind == "sim":
            device = simulated.activate([each for each in planted.split(",") if each])
        else:
            device = torch.device(name)
        # torch refuses a device in many ways (RuntimeError, AssertionError, ImportError, …), and
        # only when it is used; "meta" would accept anything and compute nothing.
        if device.type != "meta":
            _make_current(device)
            one = torch.ones(1, device=device)
            if one.sum().item() == 1.0:
                _keep_float32()
                return device if device.type in ("cpu", *_SINGLE) else one.device
    except ConfigError:
        raise
    except Exception as error:
        reason = error_headline(error)
    else:
        reason = "it computes nothing"
    raise ConfigError(f"device {name!r} cannot be used here: {reason}; 'cpu' always works")


def name(device: torch.device) -> str:
    """What `resolve` makes `device` of."""
    return defects.device_name(simulated.planted()) if _simulated(device) else str(device)


def kind(device: torch.device) -> str:
    """ "cpu", "cuda", "npu", …; "sim" for the simulated one, which torch calls "npu"."""
    return "sim" if _simulated(device) else device.type


def chip(device: torch.device) -> str:
    """The name that its driver gives the chip."""
    if device.type == "cpu":
        return versions.processor()
    known = _asked(device, "get_device_name", device)
    if known is None and device.type == "mps":
        known = _answer(getattr(torch.backends.mps, "get_name", None))
    return str(known or "")


def available() -> list[str]:
    """The devices of this machine, as settings name them; the CPU last."""
    found = []
    for kind in _KINDS:
        some = torch.device(kind) if _function(kind, "is_available") else None
        if some is None or not _asked(some, "is_available"):
            continue
        each = [some] if kind in _SINGLE else [torch.device(kind, i) for i in range(count(some))]
        found += [name(device) for device in each]
    return [*found, "cpu"]


def count(device: torch.device) -> int:
    """How many devices of its kind this machine has."""
    return 1 if device.type == "cpu" else int(_asked(device, "device_count") or 1)


def synchronize(device: torch.device) -> None:
    """Wait until everything asked of `device` is done. Raises what the device did not tell yet."""
    if device.type == "cpu":
        return
    wait = _function(device.type, "synchronize") or torch.accelerator.synchronize
    wait(*([] if device.type in _SINGLE else [device]))


def empty_cache(device: torch.device) -> None:
    """Give the memory that torch keeps at hand back to the device."""
    if (empty := _function(device.type, "empty_cache")) is not None:
        empty()


def memory(device: torch.device) -> Memory:
    if device.type == "cpu":
        return _host_memory()
    if device.type == "mps":
        used = int(_asked(device, "current_allocated_memory") or 0)
        total = int(_asked(device, "recommended_max_memory") or 0)
        return Memory(used, max(0, total - used), total)
    free, total = _asked(device, "mem_get_info", device) or (0, 0)
    return Memory(int(_asked(device, "memory_allocated", device) or 0), int(free), int(total))


def room(device: torch.device) -> int:
    """Bytes that are free; of a device that does not tell, what any is likely to have."""
    known = memory(device)
    return known.free if known.total else _LIKELY_FREE


def backend(device: torch.device) -> str:
    """For init_process_group: gloo for the host's tensors, and the vendor's own for the device's.

    Raises ConfigError where torch has no collectives for the device.
    """
    if device.type == "cpu":
        return "gloo"
    if _simulated(device):
        return f"cpu:gloo,{device.type}:gloo"
    try:
        return f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"
    except ValueError:
        raise ConfigError(
            f"device {name(device)!r} has no collectives in this torch; use one process, or "
            "install the vendor's"
        ) from None


def stack(device: torch.device) -> Stack:
    """What a certificate is of. Never raises: what cannot be found out is empty."""
    if _simulated(device):
        planted = ",".join(simulated.planted()) or "healthy"
        return versions.stack("sim", accelerator.CHIP, driver=planted, plugin=simulated.plugin())
    properties = _asked(device, "get_device_properties", device)
    return versions.stack(
        device.type,
        chip(device),
        serial=str(getattr(properties, "uuid", "")),
        driver=str(getattr(properties, "driver_version", "")),
    )


def plugin_mismatch(stack: Stack) -> str | None:
    """Why plugin and torch do not belong together; None where they do, there is no plugin, or it
    does not say.

    A plugin is built for one minor version of torch (vllm-ascend#117).
    """
    wanted, of_torch = versions.wanted_torch(stack), versions.minor(stack.torch)
    if not stack.plugin or wanted in (None, of_torch):
        return None
    return (
        f"the plugin {stack.plugin} is not of torch {stack.torch}; install the plugin of torch "
        f"{of_torch}"
    )


def strict_env(kind: str) -> dict[str, str]:
    """What turns silent fallback to the CPU into an error, set before torch is imported."""
    return dict(_STRICT.get(kind, {}))


def has_fused_adamw(device: torch.device) -> bool:
    return device.type in _FUSED or _simulated(device)


def settled_dtype(name: str, device: torch.device) -> str:
    """`name`, or for "auto" the format that `device` is built to multiply fast.

    Accelerators have bfloat16 units. A CPU without matrix tiles multiplies bfloat16 no faster than
    float32 (bench/RESULTS.md has both).
    """
    if name != "auto":
        return name
    # torch has no public name for this; where the private one is gone, float32 is always right.
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return "bfloat16" if device.type != "cpu" or has_tiles() else "float32"


def dtype(name: str) -> torch.dtype:
    """The torch dtype called `name`. Raises ConfigError on a name not offered."""
    if name not in _DTYPES:
        raise ConfigError(f"dtype {name!r} is not offered; choose one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _simulated(device: torch.device) -> bool:
    return device.type == "npu" and simulated.active()


def _make_current(device: torch.device) -> None:
    use = _function(device.type, "set_device")
    # What is not available says so better when it is used.
    if use is not None and device.index is not None and _asked(device, "is_available"):
        use(device.index)


def _keep_float32() -> None:
    torch.set_float32_matmul_precision("highest")
    for switch in _SHORT_PRODUCTS:
        *path, last = switch.split(".")
        where: Any = torch
        for part in path:
            where = getattr(where, part, None)
        if getattr(where, last, False):
            with suppress(RuntimeError):  # torch's own tests, once imported, freeze some
                setattr(where, last, False)


def _function(kind: str, name: str) -> Callable[..., Any] | None:
    """What the module of a kind of device offers under a name."""
    found = getattr(getattr(torch, kind, None), name, None)
    return found if callable(found) else None


def _asked(device: torch.device, function: str, *arguments: object) -> Any:
    """A fact that the module of a device tells; None where it does not."""
    return _answer(_function(device.type, function), *arguments)


def _answer(ask: Callable[..., Any] | None, *arguments: object) -> Any:
    """None where there is no such function, or it fails, which plugins do in many ways."""
    try:
        return None if ask is None else ask(*arguments)
    except Exception:
        return None


def _host_memory() -> Memory:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return Memory(pages * resource.getpagesize(), found["MemAvailable"], found["MemTotal"])
    except (OSError, ValueError, LookupError):  # not Linux: the most that was ever resident
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return Memory(most if sys.platform == "darwin" else most << 10, 0, 0)
