"""Names of chips as people write them, and stocks of them."""

import pytest

from interlock.errors import ConfigError
from interlock.plan.chips import catalogue, find, parse_stock


def test_every_chip_is_found_by_its_own_name() -> None:
    assert len(catalogue()) > 30
    for name, chip in catalogue().items():
        assert find(name) is chip
        assert chip.flops > 1e11 and chip.memory > 1e9 and chip.source and chip.domain >= 1


@pytest.mark.parametrize(
    ("written", "name", "tera", "gigabytes"),
    [
        ("H800", "H800 SXM", 989, 80),
        ("nvidia h20", "H20-96G", 148, 96),
        ("910B2", "Ascend 910B2-class (ATLAS_800_A2_376T_64G)", 353.9, 64),
        ("Huawei Ascend 910B", "Ascend 910B3-class (ATLAS_800_A2_313T_64G)", 294.9, 64),
        ("MI300X", "MI300X", 1307, 192),
        ("4090", "RTX 4090", 165.2, 24),
    ],
)
def test_what_people_write(written: str, name: str, tera: float, gigabytes: float) -> None:
    chip = find(written)
    assert chip.name == name
    assert (chip.flops / 1e12, chip.memory / 1e9) == (tera, gigabytes)


@pytest.mark.parametrize(("slip", "near"), [("H80", "H800 SXM"), ("MI300", "MI300X")])
def test_a_slip_is_no_chip_and_the_nearest_are_told(slip: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"no chip '{slip}'.*{near}"):
        find(slip)


def test_a_stock() -> None:
    first, second, third = parse_stock("64xH800:learner, 128 x 910B:generator,8*A100")
    assert (first.count, first.chip.name, first.duty) == (64, "H800 SXM", "learner")
    assert (second.count, second.duty, third.duty) == (128, "generator", "both")
    assert "910B2" in second.note and not first.note


@pytest.mark.parametrize("text", ["", "H100", "0xH100", "8xH100:teacher", "8xH100,", "-1xH100"])
def test_what_cannot_be_read_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="--chips"):
        parse_stock(text)


def test_a_placement_can_be_given_back_as_it_is_told() -> None:
    for name, chip in catalogue().items():
        told = f"3x{name}:learner,16x{name}:generator"
        assert [(each.count, each.chip, each.duty) for each in parse_stock(told)] == [
            (3, chip, "learner"),
            (16, chip, "generator"),
        ]
