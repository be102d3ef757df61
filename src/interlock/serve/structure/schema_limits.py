"""What a JSON schema of a request may be: its size, and where it points.

A grammar is made of it by llguidance, whose own limits bound what a small schema can blow up to;
these bound what is read at all, and name the place.
"""

import json
from collections.abc import Iterator
from typing import Any

from interlock.serve.prompts.fields import FieldError

MOST_BYTES = 64 << 10
MOST_NODES = 4000
DEEPEST = 32
LONGEST_PATTERN = 1000

_NAMED = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
_DATA = {"const", "enum", "default", "examples", "required"}


def check_schema(schema: Any, param: str) -> str:
    """The schema as JSON. Raises FieldError on one that is too large or points elsewhere."""
    if not isinstance(schema, dict):
        raise FieldError(param, "is no object; send a JSON schema")
    for nodes, (where, key, value, depth) in enumerate(_walk(schema, param), start=1):
        if depth > DEEPEST:
            raise FieldError(param, f"is nested deeper than {DEEPEST}; flatten it")
        if nodes > MOST_NODES:
            raise FieldError(param, f"has more than {MOST_NODES} members; simplify it")
        _check(where, key, value)
    try:
        written = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        size = len(written.encode())
    except ValueError as error:  # not a number, or half a surrogate pair
        raise FieldError(param, f"is no JSON: {error}") from None
    if size > MOST_BYTES:
        raise FieldError(param, f"has {size} bytes; send at most {MOST_BYTES}")
    return written


def _walk(schema: dict[str, Any], param: str) -> Iterator[tuple[str, str, Any, int]]:
    """Every member: where it is, its name, its value and how deep. Names that the user gave, of
    properties and the like, and data have the name "".
    """
    waiting: list[tuple[str, Any, int, bool, bool]] = [(param, schema, 1, False, False)]
    while waiting:
        where, value, depth, named, data = waiting.pop()
        members = value.items() if isinstance(value, dict) else enumerate(value)
        for key, member in members:
            inner = f"{where}.{key}" if isinstance(value, dict) else f"{where}[{key}]"
            keyword = "" if named or data or not isinstance(value, dict) else str(key)
            yield inner, keyword, member, depth
            if isinstance(member, dict | list):
                is_data = data or keyword in _DATA
                waiting.append((inner, member, depth + 1, keyword in _NAMED, is_data))
            if depth > DEEPEST:
                return


def _check(where: str, key: str, value: Any) -> None:
    if key in ("$ref", "$dynamicRef") and not str(value).startswith("#"):
        raise FieldError(
            where, f"{ascii(value)[:80]} points outside of the schema; put it under $defs"
        )
    if key in ("$id", "$anchor", "x-guidance"):
        raise FieldError(where, "is not supported; leave it out")
    if key == "pattern" and isinstance(value, str) and len(value) > LONGEST_PATTERN:
        raise FieldError(where, f"has {len(value)} characters; at most {LONGEST_PATTERN}")
    patterns = value if key == "patternProperties" and isinstance(value, dict) else {}
    if any(len(pattern) > LONGEST_PATTERN for pattern in patterns):
        raise FieldError(where, f"a pattern has more than {LONGEST_PATTERN} characters")
