"""What a version says of itself: its tensors, its payload, what it is a delta or an adapter of."""

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta
from torch import Tensor

from interlock.records.adapters import Adapted
from interlock.records.rl import WeightVersion
from interlock.sync import codec, identity
from interlock.sync.identity import Natural, TensorSpec

BASE = "base"  # below the URL of a store: the weights that its adapters are of
FORMAT = 1
MANIFEST_BYTES = 32 << 20  # bytes; DeepSeek-V3's 46,000 tensors take 8 MB
_Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
_PayloadKind = Literal["anchor", "delta"]


class VersionManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    format: int
    number: Natural
    digest: _Sha256  # version_digest
    kind: _PayloadKind
    base: WeightVersion | None  # None: an anchor
    anchor: Natural  # the number of the version that the chain begins with
    size: Natural  # of the payload
    sha256: _Sha256  # of the payload
    tensors: dict[str, TensorSpec]
    adapter: Adapted | None = None  # None: whole weights

    @property
    def version(self) -> WeightVersion:
        return WeightVersion(self.number, self.digest)

    @property
    def payload(self) -> str:
        return f"v{self.number:08d}-{self.sha256[:16]}.{self.kind}"


class CompleteVersion(NamedTuple):
    """A whole version in memory; the tensors are the holder's own, contiguous, on the CPU."""

    version: WeightVersion
    tensors: dict[str, Tensor]
    specs: dict[str, TensorSpec]
    adapter: Adapted | None


def version_digest(parts: Mapping[str, str], adapter: Adapted | None) -> str:
    """Of a version whose tensors have these digests, by name."""
    if adapter is None:
        return identity.digest(parts)
    return identity.digest({**parts, "": msgspec.json.encode(adapter).decode()})


def below(url: str) -> str:
    """Where the weights are that adapters in the store at `url` are of."""
    return f"{url.rstrip('/')}/{BASE}"


def manifest_name(number: int) -> str:
    return f"v{number:08d}.json"


def problem(manifest: VersionManifest, wanted: WeightVersion) -> str | None:
    """What is wrong with a manifest by itself, if anything."""
    base, number = manifest.base, manifest.number
    if manifest.format != FORMAT:
        return f"has format {manifest.format}; this Interlock reads {FORMAT}"
    if manifest.version != wanted:
        return (
            f"is version {number} with digest {manifest.digest!r:.14}…, not {wanted.digest!r:.14}…"
        )
    parts = {name: spec.digest for name, spec in manifest.tensors.items()}
    if version_digest(parts, manifest.adapter) != manifest.digest:
        return "does not have the digest that it gives"
    chained = manifest.anchor == number if base is None else manifest.anchor <= base.number < number
    if (manifest.kind == "anchor") != (base is None) or not chained:
        return "contradicts itself about its base"
    if manifest.size > codec.payload_limit(manifest.tensors):
        return f"has a payload of {manifest.size} bytes, too many for its tensors"
    return None
