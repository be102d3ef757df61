"""The catalogue of chips, and how a stock of them is written.

    data/chips.csv ──catalogue──> ChipSpec <──find── "H800", "910B", …
    "64xH800:learner,128x910B:generator" ──parse_stock──> [Stock]

Every figure of the table has its source in its row. Units: FLOP/s and bytes/s, dense rates (never
the double ones of structured sparsity), links in bytes/s in one direction for one chip.
"""

import csv
import difflib
import io
import re
import tomllib
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple

import msgspec

from interlock.errors import ConfigError
from interlock.text import one_line

Duty = Literal["learner", "generator", "both"]
_DUTIES: dict[str, Duty] = {
    "learner": "learner",
    "generator": "generator",
    "both": "both",
    "": "both",
}
_ENTRY = re.compile(r"\s*(\d{1,7})\s*[x*×]\s*([^:]+?)\s*(?::\s*([a-z]*)\s*)?")
_BETWEEN = re.compile(r",(?![^()]*\))")  # commas, but those within a name's parentheses
_MOST_CHIPS = 1_000_000
_SCALE_OUT = 12.5e9  # bytes/s of a chip where the table is silent: 100 Gb/s; assumed
_SCALE_UP = 32e9  # bytes/s where the table is silent: a PCIe 4.0 slot; assumed
_WATTS = 400.0  # where the table is silent; assumed


class Names(NamedTuple):
    """How chips are called, from data/names.toml."""

    meant: dict[str, str]  # what people write, plainly: the row
    ambiguous: dict[str, str]  # what a name that is read as one row may mean, too
    makers: list[str]
    alone: list[str]  # words that alone name no chip
    proven: list[str]  # rows, of which published runs tell
    drivers: dict[str, str]  # what drivers call them, plainly: the row


class ChipSpec(msgspec.Struct, frozen=True):
    """One accelerator. Rates are peaks as vendors publish them; what is reached is a constant."""

    name: str
    vendor: str
    flops: float  # FLOP/s, bfloat16 where it has that, else float16
    flops_8bit: float  # FLOP/s in fp8, else int8; 0: neither
    memory: float  # bytes
    bandwidth: float  # bytes/s of its memory
    scale_up: float  # bytes/s, one direction, to its neighbours in the domain
    domain: int  # chips that these links join
    scale_out: float  # bytes/s, one direction, to chips of other domains
    watts: float
    source: str
    confidence: str  # "seen", "memory": where the row's figures come from
    assumed: tuple[str, ...]  # figures that the table does not have

    @property
    def proven(self) -> bool:
        """Published runs on it were recomputed, and met."""
        return self.name in names().proven

    @property
    def host(self) -> bool:
        """It has its machine's memory, with all else that a process has there."""
        return self.vendor == "CPU"


class Stock(msgspec.Struct, frozen=True):
    """So many of one chip, and what they are there for."""

    count: int
    chip: ChipSpec
    duty: Duty
    note: str = ""  # what a reader should know of how the name was read


def data_file(name: str) -> list[dict[str, str]]:
    """The rows of one of the shipped tables."""
    text = files("interlock.plan").joinpath("data", name).read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text)))


@cache
def names() -> Names:
    """Read once."""
    text = files("interlock.plan").joinpath("data", "names.toml").read_text(encoding="utf-8")
    return Names(**tomllib.loads(text))


@cache
def catalogue() -> dict[str, ChipSpec]:
    """Every chip of the table by its name, in its order. Prices alone (Ling's devices) are none."""
    found = [_read(row) for row in data_file("chips.csv")]
    return {chip.name: chip for chip in found if chip is not None}


def _read(row: dict[str, str]) -> ChipSpec | None:
    def number(name: str) -> float:
        return float(row[name] or 0)

    rate = number("bf16_tflops_dense") or number("fp16_tflops_dense")
    if not rate or not number("mem_bw_tbs"):
        return None
    assumed = [
        what
        for what, column in (
            ("scale-up link", "scaleup_gbs_unidir"),
            ("scale-out link", "scaleout_gbps_per_chip"),
            ("power", "tdp_w"),
        )
        if not row[column]
    ]
    return ChipSpec(
        name=row["chip"],
        vendor=row["vendor"],
        flops=rate * 1e12,
        flops_8bit=(number("fp8_tflops_dense") or number("int8_tops_dense")) * 1e12,
        memory=number("mem_gb") * 1e9,
        bandwidth=number("mem_bw_tbs") * 1e12,
        scale_up=number("scaleup_gbs_unidir") * 1e9 or _SCALE_UP,
        domain=int(number("scaleup_domain") or 1),
        scale_out=number("scaleout_gbps_per_chip") * 1e9 / 8 or _SCALE_OUT,
        watts=number("tdp_w") or _WATTS,
        source=row["source"],
        confidence=row["confidence"],
        assumed=tuple(assumed),
    )


def plain(name: str) -> str:
    """As names are compared: small letters and digits alone."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@cache
def find(name: str) -> ChipSpec:
    """The chip that is meant by a name. Raises ConfigError, with the nearest names."""
    if name in catalogue():
        return catalogue()[name]
    said = plain(name)
    for maker in names().makers:
        said = said.removeprefix(maker) or said
    if said in names().meant:
        return catalogue()[names().meant[said]]
    meant = [each for each in catalogue() if said in _called(each)]
    if len(meant) == 1:
        return catalogue()[meant[0]]
    near = meant or _near(said)
    shown = one_line(repr(name), 60)
    raise ConfigError(f"no chip {shown} in the catalogue; the nearest are {', '.join(near[:5])}")


@cache
def called_by_driver(name: str) -> ChipSpec | None:
    """The chip that a driver means by its name; None where the catalogue does not say."""
    named = names().drivers.get(plain(name))
    if named is not None:
        return catalogue()[named]
    try:
        return find(name)
    except ConfigError:
        return None


def _called(name: str) -> set[str]:
    """What may be written for a name: its first words, or its words from the second on."""
    words = re.split(r"[ -]", name.partition(" (")[0])
    ends = range(1, len(words) + 1)
    found = {plain("".join(words[i:j])) for i in (0, 1) for j in ends if i < j}
    return (found | {plain(name)}) - {"", *names().alone}


def _near(said: str) -> list[str]:
    known = {plain(word): word.upper() for word in names().meant}
    for each in catalogue():
        known |= dict.fromkeys(_called(each), each.partition(" (")[0])
    near = difflib.get_close_matches(said, known, n=8, cutoff=0.4)
    usual = ["h100", "h800", "910b", "h20", "mi300x"]
    return list(dict.fromkeys(known.get(each, each.upper()) for each in [*near, *usual]))


def parse_stock(text: str) -> list[Stock]:
    """'64xH800:learner,128x910B:generator' -> what there is. Raises ConfigError."""
    found = []
    for entry in _BETWEEN.split(text):
        match = _ENTRY.fullmatch(entry)
        if match is None or (match[3] or "") not in _DUTIES:
            raise ConfigError(
                f"--chips: cannot read {one_line(repr(entry.strip()), 60)}; write "
                "COUNTxCHIP:learner, :generator or :both, such as 64xH800:learner"
            )
        if not 0 < int(match[1]) <= _MOST_CHIPS:
            raise ConfigError(f"--chips: {match[1]} chips; give 1 to {_MOST_CHIPS:,}")
        chip = find(match[2])
        note = ""
        if (other := names().ambiguous.get(plain(match[2]))) is not None:
            note = f"{match[2]} is read as {chip.name}; {other}"
        found.append(Stock(int(match[1]), chip, _DUTIES[match[3] or ""], note))
    return found
