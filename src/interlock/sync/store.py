"""Weight versions in a store: one publishes them, any number of replicas follow.

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

Nothing that is read is believed: whatever the store holds, a replica ends up with tensors that have
the digest it was asked for, or with SyncError. A replica that is told the shapes of its model takes
memory for nothing else.

    published = Publisher(url, anchor_every=20).publish(7, tensors)  # on the learner's machine
    tensors = Replica(url).fetch(published.version)                  # on a worker's
"""

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import msgspec
import torch
from torch import Tensor

from interlock.errors import InterlockError, SyncError
from interlock.records.adapters import Adapted, AdapterForm
from interlock.records.coding import from_json
from interlock.records.rl import WeightVersion
from interlock.sync import codec
from interlock.sync.codec import TensorSpec
from interlock.sync.manifest import (
    FORMAT,
    MANIFEST_BYTES,
    VersionManifest,
    below,
    manifest_name,
    problem,
    version_digest,
)
from interlock.sync.storage import Storage

_LONGEST_CHAIN = 4096  # versions from an anchor to the one asked for
_FILE = re.compile(r"v(\d{8,12})(?:\.json|-[0-9a-f]{16}\.(?P<kind>anchor|delta))")
Shapes = Mapping[str, list[int]]


class PublishedVersion(msgspec.Struct, frozen=True):
    """What a publication came to."""

    version: WeightVersion
    kind: Literal["anchor", "delta", "unchanged"]  # unchanged: it was there already
    written_bytes: int  # payload and manifest
    full_bytes: int  # of all tensors
    seconds: float
    uncollected: int  # old files that could not be removed; tried again the next time
    dense: bool = False  # an anchor where a delta was due, which would have saved next to nothing


class _CompleteVersion(NamedTuple):
    """A whole version in memory; the tensors are the holder's own, contiguous, on the CPU."""

    version: WeightVersion
    tensors: dict[str, Tensor]
    specs: dict[str, TensorSpec]
    adapter: Adapted | None


class Publisher:
    """Publishes versions of growing number; every `anchor_every`th is an anchor, and so is one in
    which nearly everything changed.

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
        self._current: _CompleteVersion | None = None
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
            full_bytes=codec.nbytes(manifest.tensors),
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
            full_bytes=codec.nbytes(manifest.tensors),
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
    ) -> _CompleteVersion | None:
        """What the next version is a delta against; None: it has to be an anchor."""
        last = self._current
        if last is None or len(self._chain) >= self._anchor_every or last.adapter != adapter:
            return None
        return last if codec.same_layout(tensors, last.specs) else None

    def _manifest(
        self,
        number: int,
        encoded: codec.Encoded,
        base: _CompleteVersion | None,
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
        self._current = _CompleteVersion(manifest.version, own, encoded.specs, manifest.adapter)

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
        self._current: _CompleteVersion | None = None

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
        codec.verify(tensors, chain[-1].tensors)
        self._current = _CompleteVersion(version, tensors, chain[-1].tensors, chain[-1].adapter)

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


def _copy(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
