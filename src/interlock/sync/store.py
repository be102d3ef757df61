"""Weight versions in a store: one publishes them, any number of replicas (replica.py) follow.

    Publisher ── v00000040-<sha256>.anchor ──> v00000040.json        every tensor
              ── v00000041-<sha256>.delta ───> v00000041.json        what changed since 40
              ── v00000042-<sha256>.delta ───> v00000042.json        what changed since 41
                                                    │
    Replica.fetch(42) <── manifests 42, 41, … back to what it holds or to the anchor <──┘
                      ── payloads in order ── digest of every tensor ──> tensors

A version may be an adapter (models/adapters.py): its manifest says of which weights, a version of
the store BASE in this one, and in what form; its digest is over that, too. Deltas between versions
of one adapter are as those of weights.

A version exists once its manifest does; the payload is written first. The names of all files follow
from numbers and digests, so a reader lists nothing and takes no path from a manifest. A manifest
tells its base, by number and digest, and the anchor that its chain begins with.

    published = Publisher(url, anchor_every=20).publish(7, tensors)  # on the learner's machine
    tensors = Replica(url).fetch(published.version)                  # on a worker's
"""

import hashlib
import re
import time
from collections.abc import Mapping
from typing import Literal

import msgspec
import torch
from torch import Tensor

from interlock.errors import InterlockError, SyncError
from interlock.records.adapters import Adapted
from interlock.records.rl import WeightVersion
from interlock.sync import codec, identity
from interlock.sync.manifest import (
    FORMAT,
    CompleteVersion,
    VersionManifest,
    below,
    manifest_name,
    version_digest,
)
from interlock.sync.storage import Storage

_FILE = re.compile(r"v(\d{8,12})(?:\.json|-[0-9a-f]{16}\.(?P<kind>anchor|delta))")


class PublishedVersion(msgspec.Struct, frozen=True):
    """What a publication came to."""

    version: WeightVersion
    kind: Literal["anchor", "delta", "unchanged"]  # unchanged: it was there already
    written_bytes: int  # payload and manifest
    full_bytes: int  # of all tensors
    seconds: float
    uncollected: int  # old files that could not be removed; tried again the next time
    dense: bool = False  # an anchor where a delta was due, which would have saved next to nothing


class Publisher:
    """Publishes versions of growing number; every `anchor_every`th is an anchor, and so is one in
    which nearly everything changed, and the next when the deltas since the last one have come to
    its bytes: who joins, or has fallen behind, reads no more than two anchors and a delta.

    One at a time per URL. It keeps a copy of the last version's tensors, which the next delta is
    made against, so the first publication, also of a resumed run, is an anchor. Versions of higher
    numbers, from a future that a resumed run no longer has, are removed.
    """

    def __init__(self, url: str, anchor_every: int) -> None:
        assert anchor_every >= 1
        self._anchor_every = anchor_every
        self._given = url
        self._storage = Storage(url)
        self.url = self._storage.url  # as it may be told
        self._storage.prepare()
        self._current: CompleteVersion | None = None
        self._last: WeightVersion | None = None
        self._chain: list[VersionManifest] = []  # the last anchor, and the deltas since then

    def of_base(self) -> "Publisher":
        """For the weights that adapters of this store are of."""
        return Publisher(below(self._given), anchor_every=1)

    def withdraw(self) -> None:
        """Nothing will be published: leave no empty directory behind."""
        self._storage.withdraw()

    def publish(
        self, number: int, tensors: Mapping[str, Tensor], adapter: Adapted | None = None
    ) -> PublishedVersion:
        """Make `tensors`, of any device, version `number`. The last one again is no publication.

        `adapter`: they are one; None: they are whole weights.

        Raises:
            SyncError: `number` is not above the last one, or a remote store fails.
            RunError: the local disk does.

        The store then holds what it held, and the same call may be made again.
        """
        start = time.perf_counter()
        if self._last is not None and number < self._last.number:
            raise SyncError(f"version {number} is not above the last one, {self._last.number}")
        base = self._base(tensors, adapter)
        encoded = (
            codec.encode_delta(tensors, base.tensors, base.specs)
            if base
            else codec.encode_anchor(tensors)
        )
        dense = base is not None and encoded.whole
        if dense:
            base = None
        manifest = self._manifest(number, encoded, base, adapter)
        kind: Literal["anchor", "delta", "unchanged"] = manifest.kind
        written = uncollected = 0
        if self._last is None or number != self._last.number:
            written = self._write(manifest, encoded.payload)
            self._advance(manifest, encoded, tensors)
            uncollected = self._collect(manifest)
        elif manifest.version == self._last:
            kind = "unchanged"
        else:
            raise SyncError(f"version {number} is published already, with other tensors")
        return PublishedVersion(
            version=manifest.version,
            kind=kind,
            written_bytes=written,
            full_bytes=identity.nbytes(manifest.tensors),
            seconds=time.perf_counter() - start,
            uncollected=uncollected,
            dense=dense,
        )

    def repair(self) -> PublishedVersion | None:
        """For when readers say that the last version cannot be had: look whether it is whole in the
        store, and if not publish it once more, as an anchor. None: it is whole.

        Raises as `publish` does.
        """
        start = time.perf_counter()
        if self._current is None or all(map(self._is_whole, self._chain)):
            return None
        encoded = codec.encode_anchor(self._current.tensors)
        current = self._current
        manifest = self._manifest(current.version.number, encoded, None, current.adapter)
        written = self._write(manifest, encoded.payload)
        self._chain = [manifest]
        return PublishedVersion(
            version=manifest.version,
            kind="anchor",
            written_bytes=written,
            full_bytes=identity.nbytes(manifest.tensors),
            seconds=time.perf_counter() - start,
            uncollected=self._collect(manifest),
        )

    def _is_whole(self, manifest: VersionManifest) -> bool:
        if not self._stands(manifest.number, msgspec.json.encode(manifest)):
            return False
        try:
            payload = self._storage.read(manifest.payload, manifest.size)
        except InterlockError:
            return False
        return hashlib.sha256(payload).hexdigest() == manifest.sha256

    def _base(
        self, tensors: Mapping[str, Tensor], adapter: Adapted | None
    ) -> CompleteVersion | None:
        """What the next version is a delta against; None: it has to be an anchor."""
        last, chain = self._current, self._chain
        if last is None or len(chain) >= self._anchor_every or last.adapter != adapter:
            return None
        if sum(delta.size for delta in chain[1:]) >= chain[0].size:
            return None
        return last if identity.same_layout(tensors, last.specs) else None

    def _manifest(
        self,
        number: int,
        encoded: codec.Encoded,
        base: CompleteVersion | None,
        adapter: Adapted | None,
    ) -> VersionManifest:
        parts = {name: spec.digest for name, spec in encoded.specs.items()}
        return VersionManifest(
            format=FORMAT,
            number=number,
            digest=version_digest(parts, adapter),
            kind="delta" if base else "anchor",
            base=base.version if base else None,
            anchor=self._chain[0].number if base else number,
            size=len(encoded.payload),
            sha256=hashlib.sha256(encoded.payload).hexdigest(),
            tensors=encoded.specs,
            adapter=adapter,
        )

    def _write(self, manifest: VersionManifest, payload: bytes) -> int:
        data = msgspec.json.encode(manifest)
        try:
            self._storage.write(manifest.payload, payload)
            self._storage.write(manifest_name(manifest.number), data)
        except InterlockError:
            if not self._stands(manifest.number, data):
                self._try_to_remove(manifest.payload)
            raise
        return len(payload) + len(data)

    def _stands(self, number: int, data: bytes) -> bool:
        """Whether a manifest is there in spite of an error: that may have come after the rename."""
        try:
            return self._storage.read(manifest_name(number), len(data)) == data
        except InterlockError:
            return False

    def _advance(
        self, manifest: VersionManifest, encoded: codec.Encoded, tensors: Mapping[str, Tensor]
    ) -> None:
        """Remember what is now published. If that is cut short, the next version is an anchor."""
        base, self._current = self._current, None
        self._last = manifest.version
        if manifest.kind == "delta":
            assert base is not None
            own = base.tensors
            codec.apply_delta(encoded.payload, own)
            self._chain.append(manifest)
        else:
            del base
            own = {name: _copy(tensor) for name, tensor in tensors.items()}
            self._chain = [manifest]
        self._current = CompleteVersion(manifest.version, own, encoded.specs, manifest.adapter)

    def _collect(self, newest: VersionManifest) -> int:
        """Remove what the newest two anchors do not need. -> files that could not be removed"""
        try:
            names = self._storage.names()
        except InterlockError:
            return 1
        files = {name: match for name in names if (match := _FILE.fullmatch(name))}
        anchors = sorted(
            int(match[1])
            for name, match in files.items()
            if match["kind"] == "anchor"
            and int(match[1]) <= newest.number
            and manifest_name(int(match[1])) in files
        )
        keep = {newest.payload, manifest_name(newest.number)}
        oldest = anchors[-2:][0] if anchors else newest.number
        old = [
            name
            for name, match in files.items()
            if not oldest <= int(match[1]) < newest.number and name not in keep
        ]
        # Manifests first: a version without its payload would be a broken promise.
        old.sort(key=lambda name: not name.endswith(".json"))
        return sum(not self._try_to_remove(name) for name in old)

    def _try_to_remove(self, name: str) -> bool:
        try:
            self._storage.remove(name)
        except InterlockError:
            return False
        return True


def _copy(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
