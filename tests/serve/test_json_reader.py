import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.serve.reading.json_reader import ObjectReader, Reading

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


def read(text: str) -> tuple[ObjectReader, int, Reading]:
    reader = ObjectReader()
    for at, char in enumerate(text):
        if (reading := reader.push(char)) is not Reading.MORE:
            return reader, at + 1, reading
    return reader, len(text), Reading.MORE


@given(
    st.dictionaries(st.text(), VALUES, max_size=4), st.booleans(), st.sampled_from([None, 1, "\t"])
)
def test_whatever_json_writes_is_read(tree: dict, ascii_only: bool, indent: int | str) -> None:
    text = json.dumps(tree, ensure_ascii=ascii_only, indent=indent, allow_nan=False)
    reader, used, reading = read(text)
    assert (used, reading) == (len(text), Reading.DONE)
    assert {name: json.loads("".join(raw)) for name, raw in reader.members.items()} == tree


@given(st.text(alphabet='{}[]:,"\\u0aeE+-.1tfn \n', max_size=30))
def test_it_ends_where_json_says_it_ends(noise: str) -> None:
    text = "{" + noise
    _, used, reading = read(text)
    try:
        pairs, end = json.JSONDecoder(object_pairs_hook=list).raw_decode(text)
    except ValueError:
        assert reading is not Reading.DONE
    else:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            assert reading is Reading.BAD
        else:
            assert (used, reading) == (end, Reading.DONE)


@pytest.mark.parametrize(
    ("text", "used"),
    [
        ('{"a": "b\n', 9),
        ('{"a": 01,', 9),
        ('{"a": nul}', 10),
        ("{'a", 2),
        ('{"a" 1', 6),
        ('{"a": 1,}', 9),
        ('{"a": [1,]', 10),
        ('{"a": 1 2', 9),
        ('{"a": "\\x', 9),
        ('{"a": "\\u12g', 12),
        ('{"a": 1, "a": 2', 12),
        ("[", 1),
        ('{"a": NaN', 7),
        ('{"a": [}', 8),
    ],
)
def test_a_mistake_is_known_at_its_character(text: str, used: int) -> None:
    assert read(text)[1:] == (used, Reading.BAD)


def test_nesting_has_a_bound() -> None:
    assert read('{"a":' + "[" * 100)[2] is Reading.BAD


def test_a_member_is_complete_when_it_has_ended() -> None:
    reader = ObjectReader()
    seen = []
    for char in '{"n": 12, "s": {"x": [1]}}':
        reader.push(char)
        seen.append(tuple(sorted(reader.complete)))
    assert seen == [()] * 8 + [("n",)] * 16 + [("n", "s")] * 2
