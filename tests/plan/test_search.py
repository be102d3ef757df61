"""Placements of a stock: all of them sensible, and the front is what nothing beats."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from interlock.errors import ConfigError
from interlock.plan.chips import parse_stock
from interlock.plan.plan import PlanInputs
from interlock.plan.roles import Roles
from interlock.plan.search import MOST, Option, find_placements, front, placements


def test_no_placement_has_more_chips_than_there_are() -> None:
    stocks = parse_stock("12xH800,6xH20:generator,8x910B")
    found = placements(stocks)
    assert 100 < len(found) <= MOST
    assert len({each.told for each in found}) == len(found)
    for roles in found:
        used: dict[str, int] = {}
        entries = roles.generators if roles.turns else (roles.learner, *roles.generators)
        for each in entries:
            used[each.chip.name] = used.get(each.chip.name, 0) + each.count
        assert all(used.get(s.chip.name, 0) <= s.count for s in stocks)
        assert roles.learner.chip.name != "H20-96G"  # which only generates


def test_many_kinds_are_searched_more_coarsely_and_too_many_refused() -> None:
    four = parse_stock("512xH800,512xH20,512x910B,512xMI300X")
    assert 1000 < len(placements(four)) <= MOST
    with pytest.raises(ConfigError, match="fewer kinds"):
        placements(parse_stock(",".join(["64xH800"] * 12)))


def _option(hours: float, money: float) -> Option:
    chip = parse_stock("1xH100")[0]
    return Option(Roles(chip, (chip,), True), hours, hours, money, True, 0.0)


def test_the_front_is_what_no_other_one_beats() -> None:
    options = [_option(*each) for each in ((3, 1), (1, 9), (2, 5), (2, 6), (4, 1), (5, 0.5))]
    assert [(each.hours, each.money) for each in front(options)] == [
        (1, 9),
        (2, 5),
        (3, 1),
        (5, 0.5),
    ]


def test_a_search_finds_the_fastest_of_all(inputs: Callable[..., PlanInputs]) -> None:
    stocks = parse_stock("4xH100,4xH20")
    found = find_placements(inputs(), stocks)
    assert found.tried == len(placements(stocks)) and found.fitting >= len(found.front) > 1
    hours = [each.hours for each in found.front]
    assert hours == sorted(hours)
    money = [each.money for each in found.front]
    assert money == sorted(money, reverse=True)


def test_nothing_fits_is_told(inputs: Callable[..., PlanInputs]) -> None:
    with pytest.raises(ConfigError, match=r"no placement of these chips fits: .*DeepSeek-V3"):
        find_placements(inputs(model="DeepSeek-V3"), parse_stock("8xH100"))


def test_generators_alone_are_told_what_they_lack(inputs: Callable[..., PlanInputs]) -> None:
    with pytest.raises(ConfigError, match="no chips learn; give one entry :learner or :both"):
        find_placements(inputs(), parse_stock("4xH100:generator,4xH20:generator"))


@pytest.mark.slow
def test_ten_thousand_placements_in_ten_seconds_of_processor(
    inputs: Callable[..., Any],
) -> None:
    stocks = parse_stock("64xH800,64xH20:generator,64x910B:generator")
    count = len(placements(stocks))
    began = time.process_time()
    found = find_placements(inputs(), stocks)
    seconds = time.process_time() - began
    assert found.tried == count
    assert seconds * MOST / count < 10.0, f"{count} in {seconds:.1f} s"


def test_an_entry_does_what_it_says_beside_entries_that_do_both() -> None:
    """Those for both learn, generate or take turns; the others keep to their role."""
    found = placements(parse_stock("4xH800:both,8xH20:generator,2xH100:learner"))
    learning = {each.learner.chip.name for each in found}
    turning = {each.learner.chip.name for each in found if each.turns}
    generating = {stock.chip.name for each in found if not each.turns for stock in each.generators}
    assert learning == {"H800 SXM", "H100 SXM"}
    assert turning == {"H800 SXM"}
    assert generating == {"H800 SXM", "H20-96G"}
    alone = placements(parse_stock("4xH800:learner"))
    assert alone and all(each.turns for each in alone)  # nobody else is there to generate
