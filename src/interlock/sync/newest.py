"""What a store has: its newest version, or one by its number.

    names ──> the highest v00000042.json ──> number and digest

What is read here is not believed: a replica fetches the version by its digest, and checks it all.
"""

import re

from interlock.errors import SyncError
from interlock.records.coding import from_json
from interlock.records.rl import WeightVersion
from interlock.sync.storage import MissingError, Storage
from interlock.sync.store import MANIFEST_BYTES, VersionManifest

_MANIFEST = re.compile(r"v(\d{8,12})\.json")
_TRIES = 3  # a publisher may remove what was listed a moment ago


class StoreView:
    """Reads which versions there are. For one thread at a time."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError when the URL cannot be used."""
        self.given = url
        self._storage = Storage(url)
        self.url = self._storage.url  # as it may be told

    def newest(self) -> WeightVersion | None:
        """None: there is none yet. Raises SyncError, RunError when the store cannot be read."""
        for _ in range(_TRIES):
            try:
                names = self._storage.names()
            except MissingError:
                return None
            found = [int(match[1]) for name in names if (match := _MANIFEST.fullmatch(name))]
            if not found:
                return None
            try:
                return self.version(max(found))
            except MissingError:
                continue
        raise SyncError(f"{self.url}: its versions are removed faster than they can be read")

    def version(self, number: int) -> WeightVersion:
        """Raises MissingError when there is no such version, SyncError when it is damaged."""
        name = f"v{number:08d}.json"
        try:
            manifest = from_json(self._storage.read(name, MANIFEST_BYTES), VersionManifest)
        except ValueError as error:
            raise SyncError(f"{self.url}: {name} is damaged ({error})") from None
        if manifest.number != number:
            raise SyncError(f"{self.url}: {name} is of version {manifest.number}")
        return manifest.version
