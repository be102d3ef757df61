"""What the simulated accelerator has besides operators: memory that is counted, and the functions
that torch and its users find under torch.npu.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from interlock.chips.sim.defects import DEFECTS
from interlock.chips.sim.faults.fault import ReturnedBytes, Run, run_on_host

CHIP = "Interlock simulated accelerator"
BUDGET = 8 << 30  # bytes of memory
_MIB = 2**20


class Chip:
    """The state of the one device of this process, with the defects called `planted`."""

    def __init__(self, planted: Sequence[str]) -> None:
        self.planted = tuple(planted)
        self.run: Run = run_on_host
        self.plugin = f"simulated {torch.__version__.partition('+')[0]}"
        returned: ReturnedBytes = int
        for name in planted:
            defect = DEFECTS[name]
            self.run = defect.plant(self.run)
            returned = defect.returned or returned
            self.plugin = defect.plugin or self.plugin
        self.memory = MemoryCounter(BUDGET, returned)


class MemoryCounter:
    """How many bytes the device has lent, at most `budget`."""

    def __init__(self, budget: int, returned: ReturnedBytes = int) -> None:
        self.budget = budget
        self.used = self.peak = 0
        self._returned = returned
        self._blocks: WeakValueDictionary[int, Block] = WeakValueDictionary()
        # Reentrant: collecting garbage may free a block while another is counted.
        self._lock = threading.RLock()

    def block(self, host: Tensor) -> "Block":
        """The block behind `host`. Raises torch.OutOfMemoryError when it is new and too large."""
        storage = host.untyped_storage()
        found = self._blocks.get(storage._cdata)
        if found is None:
            found = self._blocks[storage._cdata] = Block(self, storage)
        return found

    def take(self, size: int) -> None:
        """Lend `size` bytes more. Raises torch.OutOfMemoryError when there are none left."""
        with self._lock:
            if size > self.budget - self.used:
                raise self.exhausted(f"Tried to allocate {size / _MIB:.2f} MiB")
            self.used += size
            self.peak = max(self.peak, self.used)

    def exhausted(self, what: str) -> torch.OutOfMemoryError:
        """The error in torch_npu's words."""
        return torch.OutOfMemoryError(
            f"NPU out of memory. {what} (NPU 0; {self.budget / _MIB:.2f} MiB total capacity; "
            f"{self.used / _MIB:.2f} MiB already allocated)"
        )

    def give_back(self, size: int) -> None:
        """Take back `size` bytes, or what a defect leaves of them."""
        with self._lock:
            self.used -= self._returned(size)


class Block:
    """One storage of the device, which every tensor that looks at it holds."""

    def __init__(self, memory: MemoryCounter, storage: torch.UntypedStorage) -> None:
        self._bytes = 0
        self._memory = memory
        self._storage = storage  # held, so that its address means this block as long as it lives
        self.resize()

    def resize(self) -> None:
        """Count the storage as it is now."""
        size = self._storage.nbytes()
        self._memory.take(size - self._bytes)
        self._bytes = size

    def __del__(self) -> None:
        self._memory.give_back(self._bytes)


class NpuModule:
    """torch.npu, with what of it torch_npu offers and the device has."""

    def __init__(self, chip: Chip) -> None:
        self._chip = chip

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: int | str | torch.device) -> None:
        index = device if isinstance(device, int) else torch.device(device).index
        check_index(index)

    @contextmanager
    def device(self, device: int | str | torch.device) -> Iterator[None]:
        self.set_device(device)
        yield

    def get_device_name(self, device: object = None) -> str:
        return CHIP

    def synchronize(self, device: object = None) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def memory_allocated(self, device: object = None) -> int:
        return self._chip.memory.used

    def max_memory_allocated(self, device: object = None) -> int:
        return self._chip.memory.peak

    def reset_peak_memory_stats(self, device: object = None) -> None:
        self._chip.memory.peak = self._chip.memory.used

    def mem_get_info(self, device: object = None) -> tuple[int, int]:
        """Bytes free, and bytes in all."""
        memory = self._chip.memory
        return memory.budget - memory.used, memory.budget

    # Random numbers are the CPU's, drawn from its generator.

    def manual_seed(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.default_generator.get_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        torch.default_generator.set_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def check_index(index: int | None) -> None:
    """Raises RuntimeError, as vendors do, on the number of a device that is not there."""
    if index not in (None, 0):
        raise RuntimeError(f"invalid device ordinal {index}: this machine has one {CHIP}")
