"""What a store has: its newest version, or one by its number.

    names ──> the highest v00000042.json ──> number, digest, and where it is

Of a run's directory of stores, one for each of its sessions, the newest session's is read: a run
that was resumed numbers its versions anew, and those of the session before are gone.

What is read here is not believed: a replica fetches the version by its digest, and checks it all.
"""

import re
from typing import NamedTuple

from interlock.errors import InterlockError, SyncError
from interlock.records.coding import from_json
from interlock.records.rl import WeightVersion
from interlock.sync.manifest import MANIFEST_BYTES, VersionManifest
from interlock.sync.storage import MissingError, Storage

_MANIFEST = re.compile(r"v(\d{8,12})\.json")
_SESSION = re.compile(r"session-(\d{1,9})")
_TRIES = 3  # a publisher may remove what was listed a moment ago


class StoredVersion(NamedTuple):
    version: WeightVersion
    url: str  # of its store


class StoreView:
    """Reads which versions there are. For one thread at a time."""

    def __init__(self, url: str) -> None:
        """`url`: of a store, or of what holds those of a run's sessions. Raises ConfigError when
        it cannot be used.
        """
        self._given = url
        self.url = Storage(url).url  # as it may be told

    @property
    def store(self) -> str:
        """The URL that versions are read from now."""
        try:
            names = Storage(self._given).names()
        except InterlockError:  # said when it is read
            return self._given
        found = [name for name in names if _SESSION.fullmatch(name)]
        if not found:
            return self._given
        return f"{self._given.rstrip('/')}/{max(found, key=lambda name: int(name[8:]))}"

    def newest(self) -> StoredVersion | None:
        """None: there is none yet. Raises SyncError, RunError when the store cannot be read."""
        for _ in range(_TRIES):
            store = self.store
            try:
                names = Storage(store).names()
            except MissingError:
                return None
            found = [int(match[1]) for name in names if (match := _MANIFEST.fullmatch(name))]
            if not found:
                return None
            try:
                return self._version(store, max(found))
            except MissingError:
                continue
        raise SyncError(f"{self.url}: its versions are removed faster than they can be read")

    def version(self, number: int) -> StoredVersion:
        """Raises MissingError when there is no such version, SyncError when it is damaged."""
        return self._version(self.store, number)

    def _version(self, store: str, number: int) -> StoredVersion:
        name = f"v{number:08d}.json"
        try:
            manifest = from_json(Storage(store).read(name, MANIFEST_BYTES), VersionManifest)
        except ValueError as error:
            raise SyncError(f"{self.url}: {name} is damaged ({error})") from None
        if manifest.number != number:
            raise SyncError(f"{self.url}: {name} is of version {manifest.number}")
        return StoredVersion(manifest.version, store)
