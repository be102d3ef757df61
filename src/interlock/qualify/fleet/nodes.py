"""Which nodes there are, and how each is reached: from the command line, a file or a Ray cluster.

    "n1,n2" │ hosts.txt │ hosts.toml ──> LocalFleet and a remote shell ┐
    "ray://head:6379" ─────────────────> RayFleet, an actor a node ────┴─> fleet, [Place …]

What a name may hold is bounded: it becomes a word of a command, which a remote shell reads, and the
name of a folder.
"""

import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import NamedTuple

import msgspec

from interlock.chips import vendors
from interlock.errors import ConfigError
from interlock.fleet.base import Fleet, Spec
from interlock.fleet.local import LocalFleet
from interlock.regular import read_regular
from interlock.text import one_line

_RAY = "ray://"
_NODE = "interlock.qualify.fleet.node"
# What no shell reads anything into, and ssh no option. "~" a shell replaces, as is wanted.
_HOST = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_:][A-Za-z0-9_.:%-]*")
_ADDRESS = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]*")
_PYTHON = re.compile(r"[A-Za-z0-9_~/.][A-Za-z0-9_~/.+=@:-]*")


class HostLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A `[[host]]` of a file of hosts."""

    name: str
    address: str = ""  # by which the other nodes reach it; "": its name
    devices: list[str] = []  # []: all of its accelerators, else its CPU
    python: str = ""  # the interpreter there; "": that of the command line


class HostFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """hosts.toml."""

    host: list[HostLine]


class Place(NamedTuple):
    """A node to be asked."""

    name: str
    address: str
    devices: list[str]
    spec: Spec


def places(
    given: str, logs: Path, *, remote_shell: str, python: str | None, devices: list[str]
) -> tuple[Fleet, list[Place]]:
    """The fleet that reaches the nodes of `given`, and the nodes.

    Args:
        given: names with commas between, a file, or ray://host:port (ray:// alone: RAY_ADDRESS).
        logs: what each node prints is kept there.
        remote_shell: the command before a host's name.
        python: the interpreter on nodes; None: "python3", or Ray's own.
        devices: of each node that names none itself.

    Raises ConfigError.
    """
    if given.startswith(_RAY):
        return _of_ray(given.removeprefix(_RAY), logs, python, devices)
    hosts = _hosts(given)
    shell = _shell(remote_shell)
    found = []
    for host in hosts:
        _check(host)
        interpreter = host.python or python or "python3"
        if not _PYTHON.fullmatch(interpreter):
            raise ConfigError(
                f"{one_line(repr(interpreter), 80)} is no interpreter that a remote shell reads as "
                "one word; give a path of letters, digits and /~._+=@:- (a link will do)"
            )
        log = logs / f"{folder(host.name)}.log"
        spec = Spec(host.name, _NODE, log, python=interpreter, reach=[*shell, host.name])
        address = host.address or host.name.rpartition("@")[2]
        found.append(Place(host.name, address, _checked(host.devices or devices), spec))
    return LocalFleet(), found


def folder(name: str) -> str:
    """A name as that of a folder, another for every name."""
    return re.sub(r"[^A-Za-z0-9.@-]", lambda odd: f"%{ord(odd[0]):02x}", name)


def _hosts(given: str) -> list[HostLine]:
    path = Path(given)
    if path.suffix in (".toml", ".txt") or (path.is_file() and "," not in given):
        hosts = _in_file(path)
    else:
        hosts = [HostLine(name) for name in given.split(",")]
    if not hosts:
        raise ConfigError(f"{given} names no host; write one a line")
    seen: set[str] = set()
    for host in hosts:
        if host.name in seen:
            raise ConfigError(f"host {one_line(repr(host.name), 80)} stands twice; name it once")
        seen.add(host.name)
    return hosts


def _in_file(path: Path) -> list[HostLine]:
    try:
        text = read_regular(path).decode()
    except FileNotFoundError:
        raise ConfigError(f"no file of hosts at {path}; write one, or give names") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); give a text file") from None
    if path.suffix != ".toml":
        lines = (line.partition("#")[0].strip() for line in text.splitlines())
        return [HostLine(line) for line in lines if line]
    try:
        return msgspec.convert(tomllib.loads(text), HostFile).host
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}; write [[host]] with a name each") from None


def _check(host: HostLine) -> None:
    for what, value, pattern in (
        ("host", host.name, _HOST),
        ("address", host.address or "0", _ADDRESS),
    ):
        if not pattern.fullmatch(value):
            raise ConfigError(
                f"{one_line(repr(value), 80)} is no {what}; give NAME, USER@NAME or an address, "
                "without spaces, and not beginning with a dash"
            )


def _checked(devices: list[str]) -> list[str]:
    """Raises ConfigError on one that stands twice, where there is only one."""
    for name in devices:
        if devices.count(name) > 1 and not vendors.of(vendors.kind_of(name)).host:
            raise ConfigError(f"device {one_line(repr(name), 60)} stands twice; name it once")
    return devices


def _shell(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"--remote-shell {command!r}: {error}") from None
    if not words or shutil.which(words[0]) is None:
        raise ConfigError(f"--remote-shell {command!r}: no such program; give ssh, or what it is")
    return words


def _of_ray(
    address: str, logs: Path, python: str | None, devices: list[str]
) -> tuple[Fleet, list[Place]]:
    from interlock.fleet.ray import RayFleet

    fleet = RayFleet(address or None)
    found: dict[str, Place] = {}
    for node in fleet.nodes():
        name = node.host if node.host not in found else f"{node.host} at {node.address}"
        log = logs / f"{folder(name)}.log"
        spec = Spec(name, _NODE, log, python=python, resources=node.whole)
        found[name] = Place(name, node.address, _checked(devices), spec)
    return fleet, [*found.values()]
