"""Repositories of the Hugging Face hub, and nothing else goes there: "hf:org/name[@revision]".

    "hf:org/name@v1" ──fetch──> <hub's cache>/models--org--name/snapshots/<commit>

A plain "org/name" is a directory or a mistake: what is missing is never looked for on a network.
The revision is a branch, a tag or a commit. A run that names none records the commit that it got,
and takes the same when it is resumed.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from interlock.errors import UserError
from interlock.text import error_headline, one_line

PREFIX = "hf:"
_ADDRESS = re.compile(r"hf:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_BARE = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w./-]+)?")


def fetch(address: str, kind: Literal["model", "dataset"], files: Sequence[str]) -> Path:
    """The repository's `files` in the hub's cache: patterns of names in its root, or of paths where
    one of them has a folder.

    Raises UserError when it is no such address, or when the hub does not give it.
    """
    place = _ADDRESS.fullmatch(address)
    if place is None:
        raise UserError(
            f"{one_line(repr(address), 80)} is no address of the hub; write hf:org/name or "
            "hf:org/name@revision"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"{address!r} needs pip install 'interlock[hub]'") from None
    try:
        snapshot = snapshot_download(
            place[1],
            repo_type=kind,
            revision=place[2],
            allow_patterns=list(files),
            ignore_patterns=None if any("/" in each for each in files) else ["*/*"],
        )
    except Exception as error:  # the client raises its own, its HTTP library's, OSError, ValueError
        raise UserError(
            f"the hub did not give {address} ({error_headline(error)}); check the name, the "
            f"network and the access rights, or give a {kind} already on this machine"
        ) from None
    return Path(snapshot)


def pinned(address: str, snapshot: Path) -> str:
    """The address with the commit that was got, if it named no revision."""
    open_ended = address.startswith(PREFIX) and "@" not in address
    return f"{address}@{snapshot.name}" if open_ended else address


def parts(address: str) -> tuple[str, str | None]:
    """An address as "org/name" and its revision, if it names one."""
    name, _, revision = address.removeprefix(PREFIX).partition("@")
    return name, revision or None


def settled(address: str, known: str) -> str:
    """What a run has recorded, if that only adds a revision to the address; else the address."""
    return known if address.startswith(PREFIX) and known.startswith(f"{address}@") else address


def hint(path: str) -> str:
    """For the end of a complaint that nothing is at `path`: it may have been meant for the hub."""
    return (
        f"; if it is on the Hugging Face hub, write {PREFIX}{path}" if _BARE.fullmatch(path) else ""
    )
