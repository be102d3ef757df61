"""The published rows, by constants that were fitted without them; and the fit itself."""

import math
import statistics
from functools import cache

import pytest

from interlock.plan.chips import data_file
from interlock.plan.constants import Rates, constants, values
from interlock.plan.doubt import DOUBT, uncertainty
from interlock.plan.fit import fit
from interlock.plan.picture import picture
from interlock.plan.rows import Row, identity, of_runs
from interlock.plan.validate import (
    Validation,
    fitted,
    percentile,
    published,
    totals,
    validate,
)
from interlock.plan.validation_told import beyond, lines_of, selections, tree_of


@cache
def validated() -> Validation:
    return validate()


def _sizes(name: str) -> list[float]:
    return sorted(abs(each.error) for each in selections(validated())[name])


@pytest.mark.slow
def test_what_is_asked_of_rows_that_were_not_fitted() -> None:
    known = _sizes("lengths stated")
    assert statistics.median(known) <= 0.15 and percentile(known, 0.9) <= 0.35
    assert statistics.median(_sizes("all")) <= 0.15
    assert statistics.median(_sizes("one step off, lengths stated")) <= 0.20
    assert statistics.median(_sizes("decode, other vendors")) <= 0.30
    assert validated().coverage >= 0.85
    inside = sum(each.inside for each in validated().rows) / len(validated().rows)
    assert 0.7 <= inside <= 0.95  # of a range that says four of five


@pytest.mark.slow
def test_every_row_beyond_is_explained_and_every_row_left_out_named() -> None:
    assert all(
        "no reason" not in why for _, why in beyond([*validated().rows, *validated().unseen])
    )
    assert all(each.why for each in validated().excluded)
    text = "\n".join(lines_of(validated()))
    assert "DeepSWE-Preview: agentic" in text and "$294,672" in text
    tree = tree_of(validated())
    assert len(tree["rows"]) == len(validated().rows)
    svg = picture(validated())
    assert svg.count("<title>") == len(validated().rows) and svg.endswith("</svg>")


@pytest.mark.slow
def test_the_shipped_constants_are_what_a_fit_gives() -> None:
    rows, _ = published()
    found, table = fitted(rows), constants()
    for name in Rates._fields:
        if table[name].width:
            assert getattr(found, name) == pytest.approx(table[name].value, rel=0.02), name


def test_deepseeks_bills_from_their_parts() -> None:
    r1, v3 = totals()
    assert r1.computed == pytest.approx(294_672) and abs(r1.computed / r1.stated - 1) < 0.01
    assert v3.computed == pytest.approx(5_576_000) and v3.computed == pytest.approx(v3.stated)


def test_identities_hold_but_for_those_that_are_named() -> None:
    row = dict(data_file("rl_runs.csv")[0])
    # 12.1 tok/s * 134 s * 256 chips / 512 sequences = 810.7 tokens; less 701 of an answer
    assert identity(row) == pytest.approx(12.1 * 134 * 256 / 512 - 701)
    off = [each.run for each in validated_identities() if not each.holds]
    assert len(off) == 3 and any("FP8" in run for run in off)


def validated_identities() -> list:  # type: ignore[type-arg]
    from interlock.plan.validate import identities

    return identities(data_file("rl_runs.csv"))


def _row(**figures: str) -> Row:
    return dict.fromkeys(data_file("rl_runs.csv")[0], "") | figures


def test_rows_from_elsewhere_are_recomputed_or_named() -> None:
    usual = _row(
        run="X",
        model="Qwen3-8B",
        chip="NVIDIA H200",
        n_chips="8",
        mode="sync",
        step_s="100",
        sequences_per_step="512",
        mean_seq_tokens="1000",
        max_seq_tokens="4096",
    )
    slips = [
        usual | {"n_chips": "0"},
        usual | {"chip": "Foo 9"},
        usual | {"model": "unheard of"},
        usual | {"max_seq_tokens": ""},
        usual | {"step_s": "-3"},
    ]
    found, left = of_runs([usual, *slips])
    assert [each.part for each in found] == ["step"] and found[0].predict(values()) > 0
    assert [each.timed for each in left] == [True, True, True, True, False]
    other = validate([usual])
    assert other.rows[0].held_out == other.rows[0].within and not other.totals


def test_a_row_of_two_steps_is_a_row_of_its_parts() -> None:
    rows = [row for row in data_file("rl_runs.csv") if "colocate sync 28672" in row["run"]]
    step, generation, scoring, update = of_runs(rows)[0]
    rates = values()
    handed = rates.step_s + rates.step_s_per_gb * 7.6156 * 2
    parts = sum(each.predict(rates) for each in (generation, scoring, update))
    assert step.predict(rates) == pytest.approx(parts + handed, rel=1e-3)


def test_a_fit_finds_what_made_the_rows() -> None:
    true = values()._replace(memory=0.5, step_s=20.0)
    rows = [
        ((lambda rates, n=n: n / rates.memory + rates.step_s), n / 0.5 + 20.0)
        for n in (1.0, 5.0, 20.0, 80.0)
    ]
    widths = [10.0 if name in ("memory", "step_s") else 0.0 for name in Rates._fields]
    found = fit(rows, values(), widths, steps=30)
    assert found.memory == pytest.approx(true.memory, rel=1e-3)
    assert found.step_s == pytest.approx(true.step_s, rel=1e-3)
    assert found.learning == values().learning


def test_one_wild_row_moves_a_fit_little() -> None:
    rows = [((lambda rates: 1.0 / rates.memory), 2.0)] * 9
    widths = [10.0 if name == "memory" else 0.0 for name in Rates._fields]
    wild = fit([*rows, ((lambda rates: 1.0 / rates.memory), 200.0)], values(), widths, steps=30)
    assert wild.memory == pytest.approx(0.5, rel=0.15)


def test_uncertainty_is_in_quadrature() -> None:
    rates, table = values(), constants()
    found = uncertainty(lambda at: 1.0 / at.memory, rates, 1.0 / rates.memory)
    moved = 0.5 * math.log(1 + table["memory"].spread)
    assert found == pytest.approx(DOUBT * math.hypot(0.17, moved))


def test_percentiles_by_hand() -> None:
    assert percentile([0.0, 1.0, 2.0, 3.0], 0.9) == pytest.approx(2.7)
    assert percentile([5.0], 0.9) == 5.0


def test_every_constant_says_where_it_is_from() -> None:
    table = constants()
    assert set(table) == set(Rates._fields)
    for name, each in table.items():
        assert each.value > 0 and each.what and each.source and each.unit, name
        assert (each.width > 0) == (each.kind == "fitted"), name
