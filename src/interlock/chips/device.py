"""Which devices there are, what they are, and the few things to ask of one; none else asks torch.

    "cpu", "cuda:1", "npu", "sim:crash" ── claim ──> torch.device ──> stack, memory, …

Only `claim` changes anything in the process; the other functions look up, but for `load_plugins`,
`synchronize` and `empty_cache`, which do what they say. Every accelerator comes as a module of
torch's (torch.cuda) or of a plugin (torch_npu as torch.npu). Nothing is taken for granted of a
plugin: a function it lacks is an answer that stays empty. The CPU, which is no accelerator to
torch, gives answers of its own. What is special about one vendor stands in vendors/.
"""

import importlib
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from interlock.chips import mkl, vendors, versions
from interlock.chips.sim import accelerator, defects
from interlock.chips.sim import backend as simulated
from interlock.errors import ConfigError
from interlock.records.trust import Stack
from interlock.text import error_headline, one_line

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_LIKELY_FREE = 4 << 30  # bytes, of a device that does not tell


class Memory(NamedTuple):
    """Bytes; 0 where the device does not tell."""

    used: int  # by this process
    free: int  # to whoever asks first
    total: int


def claim(name: str) -> torch.device:
    """Make the device called `name` this process's own; to be called before it is used.

    What it changes in the process, the same however often it is called:
      - MKL's kernels are chosen, in one thread (mkl.py);
      - "sim": the simulated device is set up as torch's "npu", for good (sim/backend.py);
      - the device becomes the current one of its kind, where streams and libraries go by default;
      - products of float32 are made in float32: TF32 and HF32 are switched off, for all vendors.

    Args:
        name: as settings name it: "cpu", "cuda", "cuda:1", "npu:0", "sim:crash", …

    Returns:
        The device, proven to hold a tensor; one of several with its number, asked for or not.

    Raises:
        ConfigError: torch does not know the name, or this machine lacks the device.
    """
    mkl.choose_kernels()
    try:
        device = _opened(name)
        # torch refuses a device in many ways (RuntimeError, AssertionError, ImportError, …), and
        # only when it is used; "meta" would accept anything and compute nothing.
        if device.type != "meta":
            _make_current(device)
            one = torch.ones(1, device=device)
            if one.sum().item() == 1.0:
                _keep_float32()
                return one.device if _vendor(device).numbered and device.type != "cpu" else device
    except ConfigError:
        raise
    except Exception as error:
        reason = _why_not(name, error)
    else:
        reason = "it computes nothing"
    raise ConfigError(
        f"device {one_line(repr(name), 60)} cannot be used here: {reason}; "
        f"this machine has {', '.join(available())}"
    )


def load_plugins() -> None:
    """Do what torch does when it is imported, where that was told to leave the plugins out."""
    if torch._is_device_backend_autoload_enabled():
        torch._import_device_backends()


def _why_not(name: str, error: Exception) -> str:
    """What torch means by `error`: it answers a name that it does not know by a long list."""
    vendor = vendors.of(vendors.kind_of(name))
    package = vendor.plugin_module.partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and package and error.name == package:
        minor = vendors.minor(torch.__version__)
        return f"it needs {vendor.plugin}, its vendor's plugin for torch {minor}"
    reason = error_headline(error)
    return "torch knows no such device" if reason.startswith("Expected one of") else reason


def name(device: torch.device) -> str:
    """The name by which `claim` gives `device`."""
    return defects.device_name(simulated.planted()) if _simulated(device) else str(device)


def kind(device: torch.device) -> str:
    """ "cpu", "cuda", "npu", …; "sim" for the simulated one, which torch calls "npu"."""
    return "sim" if _simulated(device) else device.type


def chip(device: torch.device) -> str:
    """The name that its driver gives the chip."""
    if device.type == "cpu":
        return versions.processor()
    if path := _vendor(device).chip_name:
        return str(_answer(_below_torch(path)) or "")
    return str(_asked(device, "get_device_name", device) or "")


def available() -> list[str]:
    """The devices of this machine, as settings name them; the CPU last."""
    found = []
    for vendor in map(vendors.of, vendors.KINDS):
        if vendor.host or not _answer(_function(vendor.kind, "is_available")):
            continue
        some = torch.device(vendor.kind)
        numbers = range(count(some)) if vendor.numbered else ()
        each = [torch.device(vendor.kind, number) for number in numbers] or [some]
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
    wait(*([device] if _vendor(device).numbered else []))


def empty_cache(device: torch.device) -> None:
    """Give the memory that torch keeps at hand back to the device."""
    if (empty := _function(device.type, "empty_cache")) is not None:
        empty()


def memory(device: torch.device) -> Memory:
    """What the device has, in bytes; of the CPU, the machine's memory and this process's part."""
    if device.type == "cpu":
        return _host_memory()
    vendor = _vendor(device)
    of = [device] if vendor.numbered else []
    used = int(_asked(device, vendor.memory_used, *of) or 0)
    if vendor.memory_total:
        total = int(_asked(device, vendor.memory_total, *of) or 0)
        return Memory(used, max(0, total - used), total)
    free, total = _asked(device, "mem_get_info", *of) or (0, 0)
    return Memory(used, int(free), int(total))


def peak(device: torch.device) -> int:
    """Bytes of its memory that this process had at the most since this was last asked; where the
    device tells of no peak, those that it has now. 0: it does not tell, or is the CPU.
    """
    if device.type == "cpu":
        return 0
    of = [device] if _vendor(device).numbered else []
    most = _asked(device, "max_memory_allocated", *of)
    _asked(device, "reset_peak_memory_stats", *of)
    return int(most or memory(device).used)


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
    own = _vendor(device).collectives
    try:
        own = own or dist.get_default_backend_for_device(device)
        return f"cpu:gloo,{device.type}:{own}"
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
    wanted = vendors.wanted_torch(vendors.of(stack.kind), stack.plugin)
    of_torch = vendors.minor(stack.torch)
    if not stack.plugin or wanted in (None, of_torch):
        return None
    return (
        f"the plugin {stack.plugin} is not of torch {stack.torch}; install the plugin of torch "
        f"{of_torch}"
    )


def has_fused_adamw(device: torch.device) -> bool:
    """Whether torch has AdamW in one pass for it."""
    return _vendor(device).fused_adamw


def dtype(name: str) -> torch.dtype:
    """The torch dtype called `name`. Raises ConfigError on a name not offered."""
    if name not in _DTYPES:
        raise ConfigError(f"dtype {name!r} is not offered; choose one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _vendor(device: torch.device) -> vendors.Vendor:
    return vendors.of(kind(device))


def _simulated(device: torch.device) -> bool:
    return device.type == "npu" and simulated.active()


def _opened(name: str) -> torch.device:
    """torch's device of that name; the simulated one is set up."""
    kind, _, planted = name.partition(":")
    if kind == "sim":
        return simulated.activate([each for each in planted.split(",") if each])
    plugin = vendors.of(kind).plugin_module
    if plugin and not hasattr(torch, kind):  # one that torch does not load by itself
        importlib.import_module(plugin)
    return torch.device(name)


def _make_current(device: torch.device) -> None:
    use = _function(device.type, "set_device")
    # What is not available says so better when it is used.
    if use is not None and device.index is not None and _asked(device, "is_available"):
        use(device.index)


def _keep_float32() -> None:
    torch.set_float32_matmul_precision("highest")
    for switch in (each for vendor in vendors.VENDORS.values() for each in vendor.short_products):
        path, _, last = switch.rpartition(".")
        where = _below_torch(path)
        if getattr(where, last, False):
            with suppress(RuntimeError):  # torch's own tests, once imported, freeze some
                setattr(where, last, False)


def _below_torch(path: str) -> Any:
    """What torch has under a dotted name; None where it has not."""
    found: Any = torch
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


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
    except (OSError, ValueError, LookupError):  # not Linux
        return Memory(most_resident(), 0, 0)


def most_resident() -> int:
    """Bytes of the machine's memory that this process ever had at a time."""
    try:  # getrusage's begins, in a process that another started, with what that one had
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):  # not Linux
        pass
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10
