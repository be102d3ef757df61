"""The chunks of a stream as bytes: what is the same in all of them is written once.

{"id", "object", "created", "model", …} ──Frames──> data: {…,"choices":[{…}]}
"""

from collections.abc import Sequence
from typing import Any

from interlock.serve.http.streaming import encode


class Frames:
    """Of one stream. `usage`: chunks say "usage": null, as the last one tells it."""

    def __init__(self, common: dict[str, Any], usage: bool) -> None:
        self._head = b"data: " + encode(common)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if usage else b"]}\n\n"

    def chunk(self, choice: dict[str, Any]) -> bytes:
        return self._head + encode(choice) + self._tail

    def closing(self, choices: Sequence[dict[str, Any]], more: dict[str, Any]) -> bytes:
        """A chunk that says something more beside its choices."""
        inner = b",".join(map(encode, choices))
        told = encode(more)[1:-1]
        if "usage" in more or self._tail.startswith(b"]}"):
            return self._head + inner + b"]," + told + b"}\n\n"
        return self._head + inner + b"]," + told + b"," + self._tail[2:]
