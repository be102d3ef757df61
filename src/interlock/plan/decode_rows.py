"""Published times per output token, recomputed: rows of data/inference.csv.

inference.csv ──of_decode──┬─> PublishedFigure
                           └─> Excluded
"""

import re
from collections.abc import Iterable

from interlock.plan.chips import ChipSpec, find
from interlock.plan.constants import Rates
from interlock.plan.rows import Excluded, PublishedFigure, Row, number
from interlock.plan.seconds import GeneratorReplica, decode_s
from interlock.plan.shapes import named, of_counts


def of_decode(rows: Iterable[Row]) -> tuple[list[PublishedFigure], list[Excluded]]:
    """Rows of inference.csv that state the time per output token."""
    found: list[PublishedFigure] = []
    left: list[Excluded] = []
    for row in rows:
        run = f"{row['system']}, {row['model']}, {row['hardware']} x{row['n_chips'] or '?'}"
        tpot = number(row, "tpot_ms")
        if row["phase"] != "decode" or tpot is None:
            left.append(Excluded(run, f"{row['phase']}: states no time per output token", False))
            continue
        if "MTP" in row["system"] or "MTP" in row["notes"]:
            left.append(Excluded(run, "several tokens a step, of which some are rejected", True))
            continue
        chips = number(row, "n_chips")
        rate = number(row, "tok_s_per_chip")
        if chips is None or rate is None:
            left.append(Excluded(run, "states no chips or no throughput", True))
            continue
        found.append(_decode(row, run, tpot / 1e3, int(chips), rate))
    return found, left


_DECODED = {
    "DeepSeek-V3/R1": ("DeepSeek-V3", 0.0, 0.0),
    "DeepSeek": ("DeepSeek-V3", 0.0, 0.0),
    "72BA16B": ("", 72e9, 16e9),
    "32B dense": ("Qwen3-32B", 0.0, 0.0),
    "Hunyuan-A13B": ("", 80e9, 13e9),
    "Kimi-K2-Thinking": ("", 1040e9, 32e9),
}
_WEIGHT_BYTES = {"BF16": 2.0, "W4A16": 0.5}  # of others 1: fp8 or int8


def chip_of(hardware: str) -> ChipSpec:
    """The chip that a row of decoding names."""
    return find(re.sub(r".*\((800I A2)\)", r"\1", hardware))


def _decode(row: Row, run: str, tpot: float, chips: int, rate: float) -> PublishedFigure:
    name, total, active = _DECODED.get(row["model"], (row["model"], 0.0, 0.0))
    shape = named(name) if name else of_counts(row["model"], total, active)
    assert shape is not None
    chip = chip_of(row["hardware"])
    context = number(row, "output_or_kv_len")
    assumed = ["rows are throughput times the time per token"]
    if context is None:
        assumed.append("4,096 tokens of context")
    spread = re.match(r"EP(\d+)", row["parallelism"])
    chips = int(spread[1]) if spread else chips
    wide = spread is not None or chips > 32
    rows = rate * chips * tpot
    weight_bytes = _WEIGHT_BYTES.get(row["precision"], 1.0)

    def predict(rates: Rates) -> float:
        of = GeneratorReplica(shape, chip, chips, rows, weight_bytes, expert=wide)
        return decode_s(of, rows, context or 4096.0, rates)

    return PublishedFigure(
        run, f"decode, {row['hardware']}", "decode", "s", tpot, predict, tuple(assumed), chip
    )
