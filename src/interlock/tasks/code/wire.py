"""Values between two processes that do not trust one another: plain data in JSON, in frames.

    None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict
        encode ──> JSON: lists stand for themselves, what it lacks is {"t": …} and its like
        decode ──> the same, of exactly these types: no class, no method of the other side's

Standard library only: it is used inside of sandboxes.
"""

import json
import math
import os
from typing import Any

HEADER_BYTES = 8
_MOST_DEPTH = 40
_WIDE = 1 << 63  # larger integers go as hexadecimal digits: Python bounds decimal ones
_WAYS_TO_BE_NO_NUMBER = ("inf", "-inf", "nan")


class NotPlain(Exception):
    """It is no plain data; the message says what it is."""


class Wire:
    """Frames on two files: 8 bytes of length, big-endian, then the message."""

    def __init__(self, source: int, sink: int) -> None:
        self._source, self._sink = source, sink

    def receive(self) -> bytes:
        """Raises EOFError."""
        return self._exactly(int.from_bytes(self._exactly(HEADER_BYTES), "big"))

    def send(self, message: bytes) -> None:
        data = memoryview(len(message).to_bytes(HEADER_BYTES, "big") + message)
        while data:
            data = data[os.write(self._sink, data) :]

    def _exactly(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            piece = os.read(self._source, size - len(found))
            if not piece:
                raise EOFError
            found += piece
        return bytes(found)


def taken_over() -> Wire:
    """The wire on stdin and stdout, which are nowhere from now on: what is printed is lost."""
    wire = Wire(os.dup(0), os.dup(1))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for file in (0, 1, 2):
        os.dup2(nowhere, file)
    os.close(nowhere)
    return wire


def dumped(value: Any) -> bytes:
    """Raises NotPlain."""
    return json.dumps(encode(value), allow_nan=False).encode()


def loaded(data: bytes) -> Any:
    """What `dumped` was given, whoever sent it. Raises NotPlain for whatever is not that."""
    try:
        return decode(json.loads(data))
    except (ValueError, RecursionError, TypeError):
        raise NotPlain("no message") from None


def encode(value: Any, depth: int = _MOST_DEPTH) -> Any:
    """As what JSON has. Of subclasses only what their base holds is taken. Raises NotPlain."""
    if depth == 0:
        raise NotPlain(f"data in more than {_MOST_DEPTH} levels")

    def each(items: Any) -> list[Any]:
        return [encode(item, depth - 1) for item in items]

    match value:
        case None | bool():
            return value
        case str():
            return str.__str__(value)
        case int():
            whole = int.__add__(value, 0)
            return whole if -_WIDE <= whole < _WIDE else {"i": format(whole, "x")}
        case float():
            number = float.__abs__(value) * math.copysign(1.0, value)
            return number if math.isfinite(number) else {"f": repr(number)}
        case complex():
            return {"c": each((value.real, value.imag))}
        case bytes() | bytearray():
            return {"b": bytes(value).hex()}
        case list():
            return each(list.__iter__(value))
        case tuple():
            return {"t": each(tuple.__iter__(value))}
        case set():
            return {"s": each(set.__iter__(value))}
        case frozenset():
            return {"z": each(frozenset.__iter__(value))}
        case dict():
            return {"d": [each(pair) for pair in dict.items(value)]}
    raise NotPlain(f"a {type(value).__name__}")


def decode(tree: Any, depth: int = _MOST_DEPTH) -> Any:
    """What `encode` made of it; strictly. Raises NotPlain, ValueError and TypeError."""
    if depth == 0:
        raise NotPlain(f"data in more than {_MOST_DEPTH} levels")
    if isinstance(tree, float) and not math.isfinite(tree):
        raise NotPlain("no message")
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree

    def each(items: Any) -> list[Any]:
        if not isinstance(items, list):
            raise NotPlain("no message")
        return [decode(item, depth - 1) for item in items]

    if isinstance(tree, list):
        return each(tree)
    [(kind, held)] = tree.items()
    match kind, held:
        case "i", str():
            return int(held, 16)
        case "f", str() if held in _WAYS_TO_BE_NO_NUMBER:
            return float(held)
        case "b", str():
            return bytes.fromhex(held)
        case "c", [_, _]:
            real, imaginary = each(held)
            return complex(float(real), float(imaginary))
        case "t", _:
            return tuple(each(held))
        case "s", _:
            return set(each(held))
        case "z", _:
            return frozenset(each(held))
        case "d", list():
            return dict(_pair(each(pair)) for pair in held)
    raise NotPlain("no message")


def _pair(items: list[Any]) -> tuple[Any, Any]:
    key, item = items
    return key, item
