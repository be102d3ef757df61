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
