"""Records as bytes: msgpack, never pickle."""

from typing import TypeVar

import msgspec

Record = TypeVar("Record", bound=msgspec.Struct)


def to_bytes(record: msgspec.Struct) -> bytes:
    return msgspec.msgpack.encode(record)


def from_bytes(data: bytes, kind: type[Record]) -> Record:
    """Decode one record. Raises msgspec.ValidationError when the bytes are not a `kind`."""
    return msgspec.msgpack.decode(data, type=kind)
