"""Which device and number format a setting names. The only module that asks torch about devices."""

import torch

from interlock.errors import ConfigError

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def resolve(name: str) -> torch.device:
    """The device called `name` ("cpu", "cuda", "cuda:1", "npu:0", …), proven to hold a tensor.

    Raises ConfigError when torch does not know the name or this machine lacks the device.
    """
    try:
        device = torch.device(name)
        # torch refuses a device in many ways (RuntimeError, AssertionError, ImportError, …), and
        # only when it is used; "meta" would accept anything and compute nothing.
        if device.type != "meta" and torch.ones(1, device=device).sum().item() == 1.0:
            return device
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    else:
        reason = "it computes nothing"
    raise ConfigError(f"device {name!r} cannot be used here: {reason}; 'cpu' always works")


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
