"""Plain data comes back as it was, and nothing else comes through."""

import json
import math
from collections import Counter, OrderedDict, defaultdict, namedtuple
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.tasks.code.wire import NotPlain, dumped, loaded

HASHABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(st.characters())  # with halves of surrogate pairs
    | st.binary(max_size=20)
    | st.complex_numbers(),
    lambda each: st.tuples(each, each) | st.frozensets(each, max_size=3),
    max_leaves=8,
)
PLAIN = st.recursive(
    HASHABLE | st.sets(HASHABLE, max_size=3),
    lambda each: st.lists(each, max_size=4) | st.dictionaries(HASHABLE, each, max_size=3),
    max_leaves=10,
)


def _exact(value: Any) -> str:
    """With types, signs of zeros and all; sets in an order of their own."""
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__}({sorted(map(_exact, value))})"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({[_exact(each) for each in value]})"
    if isinstance(value, dict):
        return f"dict({sorted((_exact(key), _exact(item)) for key, item in value.items())})"
    return f"{type(value).__name__}({value!r})"


@given(PLAIN)
def test_plain_data_comes_back_as_it_was(value: Any) -> None:
    assert _exact(loaded(dumped(value))) == _exact(value)


def test_an_integer_of_any_length_comes_back() -> None:
    for value in (10**5000, -(10**5000), 2**63, -(2**63), 2**63 - 1):
        assert loaded(dumped(value)) == value


class Level(IntEnum):
    HIGH = 3


class Liar(int):
    def __eq__(self, other: object) -> bool:
        return True

    def __add__(self, other: object) -> "Liar":
        return Liar(7)

    def __hash__(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("value", "base"),
    [
        (Level.HIGH, 3),
        (Liar(5), 5),
        (Counter("aab"), {"a": 2, "b": 1}),
        (defaultdict(list, {1: [2]}), {1: [2]}),
        (OrderedDict(a=1), {"a": 1}),
        (namedtuple("Pair", "a b")(1, 2), (1, 2)),
        (bytearray(b"x"), b"x"),
    ],
)
def test_of_a_subclass_its_base_comes_through(value: object, base: object) -> None:
    found = loaded(dumped(value))
    assert type(found) is type(base) and found == base


@pytest.mark.parametrize("value", [object(), len, range(3), iter([1]), Liar, [object()], {1: len}])
def test_what_is_no_plain_data_does_not(value: object) -> None:
    with pytest.raises(NotPlain):
        dumped(value)


def test_depth_has_an_end_on_both_sides() -> None:
    value: Any = 0
    for _ in range(39):
        value = [value]
    assert loaded(dumped(value)) == value
    with pytest.raises(NotPlain, match="in more than 40 levels"):
        dumped([value])
    with pytest.raises(NotPlain):
        loaded(b"[" * 100_000 + b"]" * 100_000)


@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.integers() | st.floats() | st.text("tszdbcfi", max_size=2),
        lambda each: (
            st.lists(each, max_size=3) | st.dictionaries(st.text("tszdbcfi", max_size=1), each)
        ),
    ).map(lambda tree: json.dumps(tree).encode())
)
def test_any_bytes_are_plain_data_or_refused(data: bytes) -> None:
    try:
        value = loaded(data)
    except NotPlain:
        return
    assert _plain(value)


def _plain(value: Any) -> bool:
    if type(value) in (list, tuple, set, frozenset):
        return all(map(_plain, value))
    if type(value) is dict:
        return all(map(_plain, value)) and all(map(_plain, value.values()))
    return type(value) in (type(None), bool, int, float, complex, str, bytes)


def test_constants_of_json_are_refused() -> None:
    for text in (b"NaN", b"Infinity", b'{"f": "NaN"}', b'{"f": "1"}', b"{}", b'{"t": 3}'):
        with pytest.raises(NotPlain):
            loaded(text)
    assert math.isnan(loaded(b'{"f": "nan"}'))
