"""When a judge that is down is asked again, and who asks."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.errors import Unavailable
from interlock.tasks.judge.client import JudgeRefusal
from interlock.tasks.judge.outage import Outage


def down() -> str:
    raise Unavailable("no route")


def refuses() -> str:
    raise JudgeRefusal("too long")


def up() -> str:
    return "7"


def outcome(outage: Outage, ask: object) -> str:
    try:
        return outage.asked(ask)  # type: ignore[arg-type]
    except JudgeRefusal:
        return "refused"
    except Unavailable as error:
        return "unasked" if str(error).startswith("not asked, as it was") else "down"


@given(
    st.lists(st.tuples(st.sampled_from([down, refuses, up]), st.integers(0, 4)), max_size=60),
    st.integers(1, 4),
)
def test_one_after_another_by_a_plain_count(asked: list[tuple[object, int]], after: int) -> None:
    now = 0.0
    outage = Outage(after, 5.0, lambda: now)
    row, until = 0, None
    for ask, passes in asked:
        now += passes
        if until is not None and now < until:
            expected = "unasked"
        elif ask is down:
            expected, row = "down", row + 1
            until = now + 5.0 if row >= after else until
        else:
            expected, row, until = ("7" if ask is up else "refused"), 0, None
        assert outcome(outage, ask) == expected


@pytest.mark.parametrize("comes_back", [True, False])
def test_one_tries_and_the_others_wait_for_it(comes_back: bool) -> None:
    now = 0.0
    outage = Outage(1, 5.0, lambda: now)
    assert outcome(outage, down) == "down"
    now = 6.0
    trying, go_on, tries = threading.Event(), threading.Event(), []

    def tried() -> str:
        tries.append(1)
        trying.set()
        assert go_on.wait(30)
        return up() if comes_back else down()

    found: list[str] = []
    first = threading.Thread(target=lambda: found.append(outcome(outage, tried)))
    first.start()
    assert trying.wait(30)
    others = [threading.Thread(target=lambda: found.append(outcome(outage, up))) for _ in range(4)]
    for each in others:
        each.start()
    assert found == [] and len(tries) == 1
    go_on.set()
    for each in (first, *others):
        each.join(30)
    assert found == ["7"] * 5 if comes_back else sorted(found) == ["down"] + ["unasked"] * 4
    assert outage.unasked == (0 if comes_back else 4)
