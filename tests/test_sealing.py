"""Seals: what was written is read as whole, and any change of it shows."""

import hashlib
import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.records.sealing import SealedDocument, document_of, is_whole, resealed, sealed

TREES = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**60), 2**60)
        | st.floats()
        | st.text(max_size=5),
        lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5), each),
        max_leaves=6,
    ),
)


def test_the_checksum_is_sha256_of_all_else_with_sorted_keys() -> None:
    tree = sealed(SealedDocument.PLAN, {"hours": 2.5, "chips": ["b", "a"]})
    content = b'{"chips":["b","a"],"document":"interlock plan","hours":2.5}'
    assert tree["checksum"] == hashlib.sha256(content).hexdigest()
    assert list(tree) == ["document", "hours", "chips", "checksum"]
    assert document_of(tree) is SealedDocument.PLAN


@given(TREES)
def test_what_any_json_writer_writes_is_read_as_whole(content: dict[str, Any]) -> None:
    tree = sealed(SealedDocument.BENCH, content)
    assert is_whole(msgspec.json.decode(msgspec.json.encode(tree)))
    assert is_whole(json.loads(json.dumps(tree, indent=2)))


@pytest.mark.parametrize(
    "change",
    [
        {"hours": 2.4},
        {"hours": None},
        {"document": "interlock bench"},
        {"more": 1},
        {"checksum": ""},
    ],
)
def test_a_change_shows_until_it_is_sealed_again(change: dict[str, Any]) -> None:
    changed = sealed(SealedDocument.PLAN, {"hours": 2.5}) | change
    assert not is_whole(changed)
    assert is_whole(resealed(changed))


def test_what_is_not_finite_is_null_and_sealed_as_that() -> None:
    tree = sealed(SealedDocument.PARITY, {"k3": math.inf})
    assert tree["k3"] is None and is_whole(tree)


@pytest.mark.parametrize("tree", [None, [], {}, {"document": "a plan"}, {"document": ["x"]}])
def test_what_is_not_sealed_says_nothing(tree: Any) -> None:
    assert document_of(tree) is None


def test_a_file_s_name_that_is_no_utf8_is_told_by_its_bytes() -> None:
    content = {"source": "by\udcff.toml", "2": [{"\udcfe": (1.5, "é\n")}], "é": None}
    whole = sealed(SealedDocument.PLAN, content)
    read = json.loads(json.dumps(whole))
    assert read["source"] == r"by\udcff.toml" and read["2"] == [{r"\udcfe": [1.5, "é\n"]}]
    assert is_whole(read) and read["é"] is None
