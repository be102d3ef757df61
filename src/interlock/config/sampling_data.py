"""`[stage.readable]` and `[[stage.mix]]` of a reject-sft stage: which answers it keeps, and beside
what.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from msgspec import Meta

from interlock.config.fields import NonNegative, Positive, Said, SettingsTable, Share

Script = Literal["", "arabic", "cyrillic", "devanagari", "greek", "han", "hangul", "latin", "thai"]


class ReadableSettings(SettingsTable, frozen=True):
    """`[stage.readable]`: what a right answer must look like, too, to be learned from."""

    # "think": one block of thinking, which comes first and is closed, then an answer.
    form: Literal["any", "think"] = "any"
    script: Script = ""  # what its letters are of, "han" with kana; "": any
    foreign: Share = 0.05  # of the letters that may be of another script
    # Of the runs of four words that an answer may have said before; 1: any.
    repeated: Share = 1.0
    min_chars: NonNegative = 1  # of the whole turn
    max_chars: Positive = 10**9


class MixSettings(SettingsTable, frozen=True):
    """`[[stage.mix]]`: general data, so that what is not trained for is kept."""

    data: Said  # JSONL, rows as of an sft stage
    # Of all rows that are learned from; all its rows, where there are fewer.
    share: Annotated[float, Meta(gt=0, lt=1)]


def mix_conflicts(mix: Sequence[MixSettings]) -> Iterator[str]:
    """As StageSettings.conflicts."""
    if (whole := sum(each.share for each in mix)) >= 1:
        yield f"mix: shares of {whole:g} in all leave nothing for sampled answers; lower them"
