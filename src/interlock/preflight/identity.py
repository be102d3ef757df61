"""What the device and its software are, asked in a process of its own: it may hang or crash."""

import platform
import sys
from importlib import metadata
from pathlib import Path

import msgspec

from interlock.chips import device, versions
from interlock.errors import ConfigError
from interlock.preflight.folder import Identity


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "system": platform.platform()}
    try:
        found["transformers"] = metadata.version("transformers")
    except metadata.PackageNotFoundError:
        found["transformers"] = ""
    return found | {"sources": versions.sources()}


def main() -> None:
    """identity DEVICE FILE"""
    name, out = sys.argv[1:]
    try:
        found = Identity(device.stack(device.claim(name)), _versions())
    except ConfigError as error:
        found = Identity(refused=str(error))
    Path(out).write_bytes(msgspec.json.encode(found))


if __name__ == "__main__":
    main()
