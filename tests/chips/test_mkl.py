"""MKL's functions are called in one thread before anything else is computed."""

import subprocess
import sys

# A process of its own: in this one torch has computed long since.
PROGRAM = """
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from interlock.chips import device, mkl

calls = []

class Recorder(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        of = args[0] if args and isinstance(args[0], torch.Tensor) else torch.empty(0)
        calls.append((func.overloadpacket.__name__, of.dtype, of.numel()))
        return func(*args, **kwargs or {})

with Recorder():
    device.claim("cpu")
functions = [each for each in calls if each[0] in mkl._FUNCTIONS]
wanted = {(name, dtype, 1) for name in mkl._FUNCTIONS for dtype in (torch.float32, torch.float64)}
assert set(functions) == wanted, wanted ^ set(functions)
names = [name for name, _, _ in calls]
assert max(names.index(name) for name in mkl._FUNCTIONS) < names.index("sum"), names
print(len(functions))
"""


def test_claim_calls_each_function_of_one_number_first() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "34\n"), ended.stderr
