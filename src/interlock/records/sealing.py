"""Seals: JSON that says what it is, and shows whether it was changed since.

    {"document": "interlock plan", …, "checksum": sha256 of all else, with sorted keys}

A seal shows that a file was damaged or edited, not who wrote it. Certificates have one of their own
(chips/certificates.py). What is not finite is null in JSON, and sealed as that.
"""

import hashlib
from enum import StrEnum
from typing import Any

import msgspec

from interlock.records.coding import to_json

_NAME, _CHECKSUM = "document", "checksum"


class SealedDocument(StrEnum):
    """What is sealed, by the command that makes it."""

    PARITY = "interlock parity"
    FLEET = "interlock qualify --fleet"
    PREFLIGHT = "interlock preflight"
    BENCH = "interlock bench"
    PLAN = "interlock plan"
    SEARCH = "interlock plan --find"


def sealed(document: SealedDocument, content: Any) -> dict[str, Any]:
    """`content`, a record or a tree, as what JSON will hold, with its name and its seal."""
    tree = msgspec.json.decode(to_json(content))
    assert not {_NAME, _CHECKSUM} & tree.keys()
    whole = {_NAME: document.value} | tree
    return whole | {_CHECKSUM: _checksum(whole)}


def resealed(tree: dict[str, Any]) -> dict[str, Any]:
    """The same after a change of ours."""
    return tree | {_CHECKSUM: _checksum(tree)}


def document_of(tree: Any) -> SealedDocument | None:
    """What a tree says that it is; None: nothing of ours that is sealed."""
    name = tree.get(_NAME) if isinstance(tree, dict) else None
    return SealedDocument(name) if name in list(SealedDocument) else None


def is_whole(tree: dict[str, Any]) -> bool:
    """Whether a tree as read is what was sealed."""
    return tree.get(_CHECKSUM) == _checksum(tree)


def _checksum(tree: dict[str, Any]) -> str:
    content = {name: each for name, each in tree.items() if name != _CHECKSUM}
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()
