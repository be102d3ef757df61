"""Sizes of current models, from catalogue.toml; and those of a model that lies in a directory.

catalogue.toml ──> CATALOGUE ──largest──> what `qualify` tries, and what plans are made of
"""

import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import msgspec

from interlock.models.architecture import Architecture
from interlock.records.trust import Sizes


class ModelRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model of the catalogue; sizes as in Architecture, 0 where it has no such thing."""

    name: str
    repository: str  # on the Hugging Face hub, whose config.json has these figures
    vocab: int
    context: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int = 0  # of a layer
    per_token: int = 0
    expert_inner: int = 0
    q_rank: int = 0
    kv_rank: int = 0
    tied: bool = False
    # Of plans, which count weights: layers without experts, the experts that every token passes,
    # and, with latent attention, the rotated part of a key and the length of a value.
    dense_layers: int = 0
    shared_inner: int = 0
    rope_dim: int = 0
    value_dim: int = 0

    @property
    def sizes(self) -> Sizes:
        """Those on which kernels depend."""
        return msgspec.convert(self, Sizes, from_attributes=True)


@cache
def catalogue() -> list[ModelRecord]:
    """Every model of the table, in its order."""
    data = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return msgspec.convert(data["model"], list[ModelRecord])


def sizes_of(arch: Architecture) -> Sizes:
    """Of a model whose config.json was read."""
    routing, latent = arch.routing, arch.latent
    return Sizes(
        vocab=arch.vocab,
        context=arch.context,
        hidden=arch.hidden,
        inner=arch.inner,
        heads=arch.heads,
        kv_heads=arch.kv_heads,
        head_dim=arch.head_dim,
        experts=routing.experts if routing else 0,
        per_token=routing.per_token if routing else 0,
        expert_inner=routing.inner if routing else 0,
        q_rank=(latent.q_rank or 0) if latent else 0,
        kv_rank=latent.kv_rank if latent else 0,
    )


def largest(each: Iterable[Sizes]) -> Sizes:
    """Figure by figure."""
    columns = zip(*map(msgspec.structs.astuple, each), strict=True)
    return Sizes(*map(max, columns))


def most() -> Sizes:
    """The largest of the catalogue."""
    return largest(model.sizes for model in catalogue())


def within(tried: Sizes) -> list[str]:
    """The models of the catalogue none of whose sizes is beyond `tried`."""
    return [model.name for model in catalogue() if not model.sizes.beyond(tried)]
