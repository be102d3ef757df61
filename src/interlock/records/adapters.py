"""What a low-rank adapter (LoRA) is, apart from its numbers."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from interlock.records.rl import WeightVersion

ALL_LINEAR: Literal["all-linear"] = "all-linear"


class AdapterForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """It adds alpha / rank * B A to each of its targets."""

    rank: Annotated[int, Meta(ge=1, le=4096)] = 16
    alpha: Annotated[float, Meta(gt=0, le=1e9)] = 32.0
    # Last words of Hugging Face modules ("q_proj"), or every linear layer but the vocabulary's and
    # the gate of experts.
    targets: Literal["all-linear"] | list[str] = ALL_LINEAR

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class Adapted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a version is that is an adapter: its form, and the weights that it stands beside."""

    form: AdapterForm
    base: WeightVersion
