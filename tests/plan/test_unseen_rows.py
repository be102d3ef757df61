"""Rows that nothing was fitted on: what their notes say, and what is made of it."""

import math
from collections.abc import Callable

import msgspec
import pytest

from interlock.plan.chips import catalogue, data_file, find, names, parse_stock
from interlock.plan.constants import values
from interlock.plan.decode_rows import of_decode
from interlock.plan.doubt import DOUBT, slower
from interlock.plan.lengths import AnswerLengths
from interlock.plan.memory import room_for
from interlock.plan.plan import Plan, PlanInputs, plan_of
from interlock.plan.roles import roles_of
from interlock.plan.row_notes import told
from interlock.plan.rows import Row, of_runs
from interlock.plan.search import find_placements
from interlock.plan.seconds import GeneratorReplica, StepLoad, decode_s, refilled_s
from interlock.plan.shapes import named
from interlock.plan.told import lines_of, lines_of_search, tree_of
from interlock.plan.validate import percentile, published, reason
from interlock.plan.workload import GivenFigures


def _row(**figures: str) -> Row:
    row = dict.fromkeys(data_file("rl_runs.csv")[0], "")
    row |= {"run": "X", "model": "Qwen3-8B", "chip": "H100", "n_chips": "16", "mode": "sync"}
    row |= {"sequences_per_step": "1024", "mean_seq_tokens": "1000", "max_seq_tokens": "4096"}
    return row | figures


def test_notes_are_read() -> None:
    found = told(
        "BF16; generation TP,PP [4,1]; train TP,CP,EP,PP,VPP [2,8,16,4,n/a]; train batch 2048; "
        "activations recomputed; 1 log-probability pass",
        "8-step Off",
    )
    assert found == (4, (2, 8, 16, 4), 2048.0, True, 1.0, 8.0)
    # Both ends count: tensor and context first, experts, stages and virtual stages last.
    assert told("train TP,CP,EP,PP,VPP [1,1,1,1,1,2,n/a]", "").layout == (1, 1, 1, 2)
    assert told("activations kept", "fully async, staleness 0.5")[3:] == (False, None, 1.5)
    assert told("", "sync") == (None, None, None, None, None, 1.0)
    assert told("", "1-step Off").ahead == 1.0 and told("", "async eta 8").ahead == 8.0


def test_steps_under_way_share_what_reading_the_weights_takes() -> None:
    eight = _row(mode="8-step Off", split_gen_train="2:14", step_s="9", notes="train batch 512")
    figure = of_runs([eight])[0][0]
    rates, shape, chip = values(), named("Qwen3-8B"), find("H100")
    assert shape is not None and figure.family == "X asynchronous, H100"
    lengths = AnswerLengths(1000.0, 4096.0, rates.spread, rates.endless)
    # 8 x 1,024 answers at the same time on 2 replicas of one chip, and an eighth of their time.
    load = StepLoad(8 * 1024 / 32, 8 * 1024.0, 115.0, lengths)
    slots = room_for(shape, chip, 1, 2.0, 1115.0)
    of = GeneratorReplica(shape, chip, 1, slots)
    assert figure.predict(rates) == pytest.approx(refilled_s(of, 2.0, load, rates) / 8, rel=1e-6)


def test_tokens_a_second_are_a_time() -> None:
    found, left = of_runs([_row(tokens_s_per_chip="500")])
    # 1,024 answers of 1,000 tokens behind prompts of 115, by 16 chips at 500 tokens a second
    assert not left and found[0].seconds == pytest.approx(1024 * 1115 / (500 * 16))
    assert "seconds, from tokens a second" in found[0].assumed


def test_prompts_are_what_a_steps_tokens_leave() -> None:
    known = of_runs([_row(update_s="9", tokens_per_step=str(1024 * 1093))])[0][0]
    usual = of_runs([_row(update_s="9")])[0][0]
    rates = values()
    fixed = [
        of_runs([_row(update_s="9", tokens_per_step=str(1024 * (1000 + n)))])[0][0]
        for n in (60, 160)
    ]
    low, high = (each.predict(rates) for each in fixed)
    # Time is linear in the prompt's tokens but for attention's square, which is small here.
    assert known.predict(rates) == pytest.approx(low + 0.33 * (high - low), rel=1e-3)
    assert usual.predict(rates) == pytest.approx(low + 0.55 * (high - low), rel=1e-3)


def test_weights_of_decoding_are_as_wide_as_the_row_says() -> None:
    row = next(each for each in data_file("unseen_inference.csv") if each["model"] == "Qwen3-8B")
    figure = of_decode([row])[0][0]
    shape, chip = named("Qwen3-8B"), find("910B")
    assert shape is not None and row["precision"] == "BF16"
    rows = 133.67 * 0.02585  # throughput times the time of a token
    of = GeneratorReplica(shape, chip, 1, rows, 2.0)
    assert figure.predict(values()) == pytest.approx(decode_s(of, rows, 270.0, values()))


def test_on_a_chip_without_a_run_it_may_take_longer(planned: Callable[..., Plan]) -> None:
    assert slower(0.3, proven=True) == 0.3
    assert slower(0.3, proven=False) == pytest.approx(math.hypot(0.3, DOUBT))
    known, other = (
        planned(f"8xH100:learner,8x{chip}:generator", given=GivenFigures(mean_tokens=1000))
        for chip in ("H20", "910B")
    )
    below, above = (
        [math.log(each.hours.middle / each.hours.low) for each in (known, other)],
        [math.log(each.hours.high / each.hours.middle) for each in (known, other)],
    )
    assert above[0] == pytest.approx(below[0])
    assert above[1] == pytest.approx(math.hypot(below[1], DOUBT))
    assert set(names().proven) <= set(catalogue())
    assert find("H200").proven and not find("910B").proven and not find("C550").proven


def test_plan_and_search_say_which_chips_no_run_was_fitted_on(
    inputs: Callable[..., PlanInputs],
) -> None:
    stocks, given = parse_stock("8xH100,64x910C"), inputs()
    plan = plan_of(given, roles_of(parse_stock("8xH100:learner,8x910C:generator"), True))
    told = [each for each in lines_of(plan, given) if "no run on it" in each]
    assert len(told) == 1 and "Ascend 910C" in told[0] and "goes further up" in told[0]
    assert [each["proven"] for each in tree_of(plan, given)["chips"]] == [True, False]
    found = find_placements(given, stocks)
    assert any("910C" in each.roles.told for each in found.front)
    last = list(lines_of_search(found))[-1]
    assert "Ascend 910C" in last and "may not be among the best" in last
    measured = msgspec.structs.replace(given, measured=True)
    assert not any("no run on it" in each for each in lines_of(plan, measured))
    said = list(lines_of_search(find_placements(measured, stocks)))
    assert not any("no run on it" in each for each in said)


def test_unseen_rows_are_others_and_explained() -> None:
    fitted = {each["run"] + each["source"] for each in data_file("rl_runs.csv")}
    unseen = data_file("unseen_rl_runs.csv")
    assert not fitted & {each["run"] + each["source"] for each in unseen}
    assert all(each["source"] and each["evidence"] for each in unseen)
    figures, left = published("unseen_")
    assert len(figures) > 140 and [each.run for each in left if each.timed] == [
        "verl DeepSeek-V3 H20x96 colocate sync"
    ]
    rates = values()
    errors = [(each, each.predict(rates) / each.seconds - 1) for each in figures]
    assert all(reason(each) for each, error in errors if abs(error) > 0.35)
    # Nothing was fitted on them: this is what a plan of such a run is off by.
    stated = sorted(
        abs(error)
        for each, error in errors
        if each.chip.proven and "mean length" not in each.assumed
    )
    assert percentile(stated, 0.5) <= 0.20 and percentile(stated, 0.9) <= 0.60
