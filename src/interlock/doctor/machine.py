"""What is known of a machine: plain facts, which a file can hold."""

from typing import NamedTuple

import msgspec

from interlock.chips.vendors import Software


class DeviceFile(NamedTuple):
    """A file below /dev by which a driver offers a device."""

    name: str  # "kfd", "accel/accel0"
    opens: bool = True  # for this user
    maker: str = ""  # of the PCI card behind it, where that is told: "1da3"


class Torch(msgspec.Struct, frozen=True, kw_only=True):
    """What torch says of itself, asked in a process of its own."""

    version: str = ""  # "": it is not installed
    built: dict[str, str] = {}  # the names in torch.version that have a value: {"cuda": "13.0"}
    devices: list[str] = []  # as settings name them, the CPU among them
    error: str = ""  # why it could not be imported
    refused: str = ""  # why the device that was asked for cannot be used


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes are in bytes; 0 and "" are what could not be found out."""

    python: str = ""
    system: str = ""  # "Linux x86_64"
    interlock: str = ""
    torch: Torch = Torch()
    files: list[DeviceFile] = []
    bus: list[str] = []  # cards, as "vendor:class" of PCI: "10de:0302"
    software: dict[str, Software] = {}  # by the vendor's name, of those that may be here
    packages: dict[str, str] = {}  # name -> version, of all that is installed
    requirements: list[str] = []  # Interlock's, of all its extras
    env: dict[str, str] = {}
    cores: int = 0  # that this process may run on
    quota: float = 0.0  # CPUs that its control group may use
    memory: int = 0  # that is free, within the limit of the control group
    shared_memory: int = 0  # free in /dev/shm
    cache: str = ""  # the directory
    cache_free: int = 0
    runs_free: int = 0  # in the working directory
    sandbox: str = ""  # the way that isolates
    sandbox_fault: str = ""  # why none does
