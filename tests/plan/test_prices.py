"""Files of prices: what each slip in one is told."""

import os
from pathlib import Path

import pytest

from interlock.errors import ConfigError
from interlock.plan.chips import find
from interlock.plan.prices import of_no_chip, price_of, read_prices

ENTRY = """
[[price]]
chip = {chip}
per_hour = {per_hour}
currency = "USD"
date = {date}
source = "an offer"
"""


def entry(chip: str = '"H800"', per_hour: str = "2.0", date: str = "2026-11-01") -> str:
    return ENTRY.format(chip=chip, per_hour=per_hour, date=date)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (entry(per_hour="nan"), "Expected `float` >= 0.0"),
        (entry(per_hour="[1.0, nan]"), "Expected `float` >= 0.0"),
        (entry(per_hour="-1"), ">= 0.0"),
        (entry(per_hour="1e308"), "< 1000000.0"),
        (entry(per_hour="9" * 5000), "limit"),
        (entry(per_hour="[2.0, 1.0]"), "high to low"),
        (entry(date="2026-11-01T10:00:00"), "datetime"),
        (entry(date="2062-11-01"), "date of 'H800' is 2062-11-01, which is to come"),
        (entry(chip='""'), "length >= 1"),
        (entry() + entry(), "'H800' has a price already"),
        (entry() + entry(chip='"H800 SXM"'), "'H800 SXM' has a price already, by this or another"),
        (entry(chip='"Chip 9"') + entry(chip='"chip-9"'), "'chip-9' has a price already"),
        ("a = " + "[" * 20000, "recursion"),
        (entry()[:30], "Expected"),
    ],
)
def test_a_slip_is_one_line_with_its_remedy(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_prices(file)
    said = str(caught.value)
    assert told in said and "give [[price]] tables" in said
    assert "\n" not in said and len(said) < 500


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path / ("x" * 5000), Path("a\0b")):
        with pytest.raises(ConfigError, match=r"^--prices .*give \[\[price\]\]") as caught:
            read_prices(path)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_a_plan_takes_a_price_by_the_name_that_a_driver_gives(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(entry(chip='"NVIDIA H100 80GB HBM3"', per_hour="77.0") + entry(chip='"H8OO"'))
    given = read_prices(file)
    price = price_of(find("H100"), given)
    assert price is not None and price.low == price.high == 77.0
    assert of_no_chip(given) == ["h8oo"]
