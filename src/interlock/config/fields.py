"""What settings are made of: numbers with their ends, and the base of every table."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

# Every number has an end on both sides: what is larger is a slip, and no float or message takes it.
Positive = Annotated[int, Meta(gt=0, le=10**9)]
Processes = Annotated[int, Meta(gt=0, le=4096)]
NonNegative = Annotated[int, Meta(ge=0, le=10**9)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Rate = Annotated[float, Meta(gt=0, le=1e9)]
Concurrent = Annotated[int, Meta(ge=1, le=2**16)]  # of what takes memory at the same time
Weight = Annotated[float, Meta(ge=0, le=1e9)]
Share = Annotated[float, Meta(ge=0, le=1)]
Decay = Annotated[float, Meta(ge=0, lt=1)]  # of a running mean, which 1 would never move
Said = Annotated[str, Meta(min_length=1)]  # a name or a path: "" is none, and said by leaving out

# How a row's model is told whether it thinks: recipes/texts.py.
ThinkingSwitch = Literal["template", "tags"]
Overlong = Literal["refuse", "leave_out"]  # what is done about data that does not fit


class SettingsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every table of a recipe."""
