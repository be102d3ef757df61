"""How many threads there are beside what others hold."""

import pytest
import torch
from others_told import Told, four_threads

from interlock.chips import threads
from interlock.chips.threads import Threads, fitting

__all__ = ["four_threads"]
pytestmark = pytest.mark.usefixtures("four_threads")
CPU = torch.device("cpu")


def after(each: Threads, monkeypatch: pytest.MonkeyPatch, *held: float) -> list[int]:
    """torch's number after each window."""
    found = []
    for processors in held:
        monkeypatch.setattr(Told, "held_now", processors)
        each.follow()
        found.append(torch.get_num_threads())
    return found


@pytest.mark.parametrize(
    ("of", "left", "fit"),
    [
        (2, 2.0, 2),
        (2, 1.8, 2),  # a fifth of a processor is not worth a thread
        (2, 1.5, 1),  # one busy process, which has half of one of ours
        (2, 0.0, 1),
        (16, 15.0, 15),
        (16, 9.9, 10),
        (16, 1.0, 8),  # never less than half
        (8, 12.0, 8),  # of sixteen processors, others hold some that are not needed
        (5, 0.0, 3),
        (1, 0.0, 1),
    ],
)
def test_every_thread_has_a_processor_or_half_of_them_are_left(
    of: int, left: float, fit: int
) -> None:
    assert fitting(of, left) == fit


def test_fewer_at_once_and_more_only_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    each = Threads(CPU)
    assert after(each, monkeypatch, 0, 0, 1, 2, 9) == [4, 4, 3, 2, 2]
    assert after(each, monkeypatch, 0, 0, 0, 2) == [2, 2, 2, 2]  # a pause is no end of it
    assert after(each, monkeypatch, 0, 0, 0, 0, 0) == [2, 2, 2, 4, 4]
    assert each.fewest == 2


def test_between_two_computations_there_are_all(monkeypatch: pytest.MonkeyPatch) -> None:
    each = Threads(CPU)
    assert after(each, monkeypatch, 0, 2) == [4, 2]
    each.rest()
    assert torch.get_num_threads() == 4
    assert after(each, monkeypatch, 2) == [2]  # as before, from the first step on
    assert each.fewest == 2


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "a device"])
def test_a_number_that_was_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name != "a device":
        monkeypatch.setenv(name, "4")
    each = Threads(torch.device("meta") if name == "a device" else CPU)
    assert after(each, monkeypatch, 0, 3, 3) == [4, 4, 4]
    each.rest()
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(("held", "fit"), [(0.0, 4), (0.8, 3), (9.0, 2)])
def test_a_work_that_begins_takes_what_is_left(
    held: float, fit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Told, "held_now", held)
    monkeypatch.setattr(threads, "WINDOW_S", 0.0)
    assert threads.now(CPU) == fit
    assert torch.get_num_threads() == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert threads.now(CPU) == 4
