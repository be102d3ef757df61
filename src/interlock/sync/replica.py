"""What a receiver holds of a store (store.py): one version at a time, verified.

Nothing that is read is believed: whatever the store holds, a replica ends up with tensors that have
the digest it was asked for, or with SyncError. A replica that is told the shapes of its model takes
memory for nothing else.
"""

import hashlib
from collections.abc import Callable, Mapping

from torch import Tensor

from interlock.errors import SyncError
from interlock.records.adapters import Adapted, AdapterForm
from interlock.records.coding import from_json
from interlock.records.rl import WeightVersion
from interlock.sync import codec, identity
from interlock.sync.manifest import (
    MANIFEST_BYTES,
    CompleteVersion,
    VersionManifest,
    manifest_name,
    problem,
)
from interlock.sync.storage import Storage

_LONGEST_CHAIN = 4096  # versions from an anchor to the one asked for
Shapes = Mapping[str, list[int]]


class Replica:
    """A receiver's verified copy of one version at a time. For one thread at a time."""

    def __init__(
        self,
        url: str,
        shapes: Shapes | None = None,
        adapters: Callable[[AdapterForm], Shapes] | None = None,
    ) -> None:
        """`shapes`: by name, of the tensors that every version must have; `adapters`: those of an
        adapter of a form. None: whatever comes, and no adapter.
        """
        self.fetched_bytes = 0  # since the beginning
        self._shapes, self._adapters = shapes, adapters
        self._storage = Storage(url)
        self.url = self._storage.url  # as it may be told
        self._current: CompleteVersion | None = None

    @property
    def version(self) -> WeightVersion | None:
        """What is held; None before the first fetch and after a failed one."""
        return self._current.version if self._current else None

    @property
    def adapter(self) -> Adapted | None:
        """What the version that is held is an adapter of; None: it is whole weights."""
        return self._current.adapter if self._current else None

    @property
    def digests(self) -> dict[str, str]:
        """Of every tensor held, by name."""
        return {n: spec.digest for n, spec in self._current.specs.items()} if self._current else {}

    def fetch(self, version: WeightVersion) -> Mapping[str, Tensor]:
        """The tensors of `version`, verified. They are valid until the next fetch, which may write
        into them or let go of them; they must not be changed.

        Goes by deltas from what is held when that is no longer than from an anchor. What fails is
        tried once more from the anchor, with everything read anew. Raises SyncError; nothing is
        held then.
        """
        if self._current is None or self._current.version != version:
            try:
                self._bring(version)
            except SyncError:
                self._current = None
                self._bring(version)
        assert self._current is not None
        return self._current.tensors

    def _bring(self, version: WeightVersion) -> None:
        chain = self._chain(version, self.version)
        # Until the result is verified nothing is held, whatever ends the attempt.
        before, self._current = self._current, None
        tensors = before.tensors if before and chain[0].base == before.version else None
        del before  # an anchor replaces the old tensors: both need not fit into memory
        for link in chain:
            payload = self._payload(link)
            if link.kind == "anchor":
                tensors = codec.decode_anchor(payload, link.tensors)
            else:
                assert tensors is not None
                codec.apply_delta(payload, tensors)
        assert tensors is not None
        identity.verify(tensors, chain[-1].tensors)
        self._current = CompleteVersion(version, tensors, chain[-1].tensors, chain[-1].adapter)

    def _chain(self, version: WeightVersion, held: WeightVersion | None) -> list[VersionManifest]:
        """The versions to apply, oldest first: onto what is held, or beginning with an anchor."""
        chain = [self._manifest(version)]
        while (base := chain[-1].base) and base != held:
            link = self._manifest(base)
            same = (link.anchor, link.adapter) == (chain[-1].anchor, chain[-1].adapter)
            if not same or len(chain) == _LONGEST_CHAIN:
                raise SyncError(f"{self.url}: versions up to {version.number} are no chain")
            chain.append(link)
        return chain[::-1]

    def _manifest(self, version: WeightVersion) -> VersionManifest:
        """The manifest of a version, once all that can be checked about it holds."""
        name = manifest_name(version.number)
        data = self._read(name, MANIFEST_BYTES)
        try:
            manifest = from_json(data, VersionManifest)
        except ValueError as error:
            raise SyncError(f"{self.url}: {name} is damaged ({error})") from None
        if why := problem(manifest, version) or self._misfit(manifest):
            raise SyncError(f"{self.url}: {name} {why}")
        return manifest

    def _misfit(self, manifest: VersionManifest) -> str | None:
        """What of a version cannot be of the reader's model, before any memory is taken for it."""
        shapes, tensors = self._shapes, manifest.tensors
        if manifest.adapter is not None:
            if self._adapters is None:
                return "is an adapter, where whole weights are read"
            shapes = self._adapters(manifest.adapter.form)
        if shapes is None:
            return None
        if odd := sorted(shapes.keys() ^ tensors.keys()):
            return f"lacks or adds the tensor {odd[0]!r:.200} ({len(odd)} such names)"
        wrong = [name for name, spec in tensors.items() if spec.shape != shapes[name]]
        return f"gives {wrong[0]!r} a shape of another model" if wrong else None

    def _payload(self, link: VersionManifest) -> bytes:
        """The payload; its sha256 is right."""
        payload = self._read(link.payload, link.size)
        if len(payload) != link.size or hashlib.sha256(payload).hexdigest() != link.sha256:
            raise SyncError(f"{self.url}: {link.payload} is not what its manifest says")
        return payload

    def _read(self, name: str, limit: int) -> bytes:
        data = self._storage.read(name, limit)
        self.fetched_bytes += len(data)
        return data
