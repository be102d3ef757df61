"""Records as bytes: msgpack, never pickle; and JSON where people read it too.

Bytes may come from anywhere: whatever is wrong with them, nesting without end included, is a
ValueError.
"""

from typing import Annotated, Any, TypeVar, overload

import msgspec
from msgspec import Meta

Record = TypeVar("Record", bound=msgspec.Struct)
# What may come from a file that somebody made: SQLite, and dates, take no more.
Whole = Annotated[int, Meta(ge=0, le=2**63 - 1)]
# Of a file that somebody made, likewise: one of 400 digits is no float, and ends what draws it.
Count = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Time = Annotated[float, Meta(ge=0, lt=253402300800)]  # unix seconds, before the year 10000
Kind = TypeVar("Kind")


def to_bytes(record: msgspec.Struct) -> bytes:
    return msgspec.msgpack.encode(record)


@overload
def from_bytes(data: bytes | memoryview, kind: type[Kind]) -> Kind: ...
@overload
def from_bytes(data: bytes | memoryview, kind: Any) -> Any: ...  # a union of kinds
def from_bytes(data: bytes | memoryview, kind: Any) -> Any:
    """Decode msgpack. Raises ValueError when the bytes are not a `kind`."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except RecursionError:
        raise ValueError("nested too deep") from None


def to_json(content: Any) -> bytes:
    """Records or trees as JSON. Bytes of a file's name that are no UTF-8 are told as \\udcff."""
    try:
        return msgspec.json.encode(content)
    except UnicodeEncodeError:
        return msgspec.json.encode(_in_utf8(msgspec.to_builtins(content, str_keys=True)))


def _in_utf8(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {_in_utf8(name): _in_utf8(each) for name, each in tree.items()}
    if isinstance(tree, list | tuple):
        return [_in_utf8(each) for each in tree]
    return tree.encode(errors="backslashreplace").decode() if isinstance(tree, str) else tree


@overload
def from_json(data: bytes, kind: type[Kind]) -> Kind: ...
@overload
def from_json(data: bytes, kind: Any = Any) -> Any: ...
def from_json(data: bytes, kind: Any = Any) -> Any:
    """Decode JSON. Raises ValueError when the bytes are not a `kind`."""
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError:
        raise ValueError("nested too deep") from None
