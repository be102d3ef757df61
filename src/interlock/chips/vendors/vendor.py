"""What a row of the table holds."""

from enum import StrEnum
from typing import NamedTuple

import msgspec


class Origin(StrEnum):
    """Where to look first for the cause of a crash; of several, the first explains the others."""

    HARDWARE = "hardware"
    LINK = "link"
    SOFTWARE = "software"
    MEMORY = "out of memory"
    PEER = "another process"


class Code(NamedTuple):
    """What a vendor's libraries say when they fail: a number, or a regular expression."""

    pattern: str
    origin: Origin
    meaning: str
    advice: str


class Told(NamedTuple):
    """Where a version is told: the first group of `pattern` in a file, or in what the vendor's
    command prints.
    """

    pattern: str
    file: str = ""  # may begin with "$VARIABLE/"; "": the command's output


class Setting(NamedTuple):
    """An environment variable that must be set, or is set against us."""

    variable: str
    right: str  # regular expression of all of a good value; "" is one that is not set
    otherwise: str  # what any other value does, or none where one is needed
    remedy: str


class Trap(NamedTuple):
    """A fault of a vendor's software that stands in a public thread."""

    thread: str  # "repository#number"
    what: str
    # What has it: "driver", "runtime", or a package; "" and no versions: all, as far as is known.
    part: str = ""
    versions: str = ""  # specifiers, as of Python packages: ">=7.12,<7.14"
    remedy: str = ""


class Vendor(msgspec.Struct, frozen=True, kw_only=True):
    """What is special about the devices of one vendor."""

    name: str
    kind: str  # what torch calls them; two vendors may share one, told apart by `build`
    host: bool = False  # computed by the CPU, at its speed
    numbered: bool = True  # a machine may have several, told apart by number: "cuda:1"
    fused_adamw: bool = False  # torch has AdamW in one pass for it
    wide_sums: bool = False  # torch.mm of bfloat16 gives float32 for it, by its out_dtype

    # How it comes to torch.
    build: str = ""  # the name in torch.version of what torch was built with for it
    plugin: str = ""  # the package that brings it; "": torch has it
    plugin_module: str = ""  # what to import of it, where torch does not by itself
    plugin_follows_torch: bool = False  # its version is that of the torch it is made for
    plain_torch: bool = False  # the plugin refuses a torch that is built for other devices too
    collectives: str = ""  # backend of torch.distributed; "": the one that torch names

    # How it is asked.
    chip_name: str = ""  # attribute below torch with the driver's name; "": get_device_name
    # Functions of torch's module for it that tell bytes; "": mem_get_info tells free and total.
    memory_used: str = "memory_allocated"
    memory_total: str = ""

    # How its numbers are kept right.
    ordered_sums: str = ""  # what has its collectives add up in one order
    # Environment that makes an error of computing a missing operator on the CPU in silence; to be
    # set before torch is imported.
    strict_env: dict[str, str] = {}
    # Attributes below torch that let products of float32 keep 10 bits of each factor (TF32, HF32).
    # Convolutions have them on by default.
    short_products: tuple[str, ...] = ()
    # Beginnings of environment variables that change its numbers, or where they are computed.
    variables: tuple[str, ...] = ()
    visible: str = ""  # the environment variable that chooses which devices a process sees
    settings: tuple[Setting, ...] = ()
    traps: tuple[Trap, ...] = ()
    codes: tuple[Code, ...] = ()
    vllm_env: dict[str, str] = {}  # set before vLLM is imported
    vllm_graphs: bool = False  # vLLM is left to capture graphs and to compile

    # Its versions, below torch.
    versions_command: tuple[str, ...] = ()
    versions_of_one: str = ""  # the beginning of its option for one device, before the serial
    driver: tuple[Told, ...] = ()
    firmware: tuple[Told, ...] = ()
    runtime: tuple[Told, ...] = ()  # "": the version that torch was built with
    runtime_name: str = ""
    # Packages with its libraries: a regular expression, and its first group -> name.
    libraries: str = ""
    library_names: dict[str, str] = {}

    # What prints the power of all its devices in watts, and a regular expression with the groups
    # `device`, a serial or a number from 0 on, and `watts`.
    power_command: tuple[str, ...] = ()
    power: str = ""

    # How a machine shows that it has some.
    system: str = ""  # "Darwin arm64": all machines of a kind have one
    nodes: str = ""  # regular expression of files below /dev
    bus: str = ""  # regular expression of "vendor:class" of PCI, as /sys has them
    group: str = ""  # whose members may open the files
    container: str = ""  # options with which a container is given them
    get_driver: str = ""  # one line: how to get what is missing
    get_torch: str = ""
