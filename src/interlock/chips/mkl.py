"""Intel's MKL, by which torch computes functions of floats on x86, chooses its kernels in peace."""

import torch

# Those that ATen/cpu/vml.h hands to MKL; others of torch's functions are compiled into it.
_FUNCTIONS = (
    *("abs", "acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp"),
    *("log", "log10", "log2", "sin", "sqrt", "tan", "tanh", "trunc"),
)


def choose_kernels() -> None:
    """Call each function of MKL in one thread, before any of them is called in several.

    MKL looks for the kernel of a function when it is first called. When several threads make that
    call, one of them may compute its share by a kernel of low accuracy, wrong from the fourth
    digit on: pytorch/pytorch#188792, MKL 2024.2, which torch 2.13 is built with. In rotary tables,
    made once, that error would stay. Takes milliseconds the first time, then nothing.
    """
    for dtype in (torch.float32, torch.float64):
        half = torch.full((1,), 0.5, dtype=dtype)
        for name in _FUNCTIONS:
            getattr(torch, name)(half)
