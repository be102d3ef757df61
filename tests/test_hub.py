"""The hub is asked for "hf:org/name", and what goes wrong there is one line."""

import sys
from pathlib import Path

import pytest

from interlock import hub
from interlock.errors import UserError


@pytest.mark.parametrize(
    "address", ["hf:", "hf:name", "hf:a/b/c", "hf:a/b@", "hf:../b", "hf:a/b@v 1", "hf:a/b\n"]
)
def test_an_address_is_whole_or_refused(address: str) -> None:
    with pytest.raises(UserError, match=r"no address of the hub; write hf:org/name or hf:org/na"):
        hub.fetch(address, "model", ["*.json"])


def test_a_hub_out_of_reach_or_absent_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for address in ("hf:org/name", "hf:org/na--me"):  # the hub itself refuses the second name
        with pytest.raises(UserError, match="the hub did not give hf:org/na") as caught:
            hub.fetch(address, "dataset", ["*.jsonl"])
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'interlock\[hub\]'"):
        hub.fetch("hf:org/name", "model", ["*.json"])


def test_what_could_be_meant_for_the_hub_is_told_how() -> None:
    assert hub.hint("org/name") == "; if it is on the Hugging Face hub, write hf:org/name"
    assert [hub.hint(path) for path in ("/org/name", "a/b/c", "name", "./a/b", "../b")] == [""] * 5
