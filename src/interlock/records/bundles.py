"""What a bundle of a run holds: bundle.json, its first file."""

from typing import Annotated

import msgspec
from msgspec import Meta

from interlock.records.coding import Time, Whole


class BundledFile(msgspec.Struct, frozen=True):
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    bytes: Whole


class BundleList(msgspec.Struct, frozen=True):
    """All files but this one, by their names, "/" between the parts, and what they are for."""

    format: int
    interlock: str  # version that wrote it
    run: str  # name of the run's directory
    made: Time  # unix seconds
    files: dict[str, BundledFile]
    settings: dict[str, str]  # that name a file: dotted path in the config -> name in the bundle
