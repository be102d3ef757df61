"""One JSON object, read character by character: what is wrong with it is known at once.

"{" … "}" ──ObjectReader.push──> MORE … DONE │ BAD
"""

import json
import re
from enum import Enum

_SCALAR = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null", re.ASCII)
_IN_SCALAR = frozenset("+-.0123456789Eaeflnrstu")
_BEGINS = frozenset('{["-0123456789tfn')
_BLANK = frozenset(" \t\n\r")
_ESCAPED = frozenset('"\\/bfnrtu')
_HEX = frozenset("0123456789abcdefABCDEF")
_DEEPEST = 64
_LONGEST_SCALAR = 400


class Reading(Enum):
    """How far a text is read."""

    MORE = "more"
    DONE = "done"  # it ended with this character
    BAD = "bad"


class ObjectReader:
    """`members` has the raw text of the object's own members in pieces, as far as each has come."""

    def __init__(self) -> None:
        self.members: dict[str, list[str]] = {}
        self.in_string = False
        self._open: list[str] = []  # closing brackets that are to come, the innermost last
        self._wants = "{"  # what may come: { value : , and a first value or key, which may be none
        self._key, self._written, self._scalar = "", "", ""  # `written`: of the key that is read
        self._escape = 0  # characters of an escape to come; -1: the one behind a backslash
        self._is_key = False

    @property
    def complete(self) -> set[str]:
        """Names of the members whose value has ended."""
        return self.members.keys() - ({self._key} if self._in_value else set())

    @property
    def _in_value(self) -> bool:
        own = self.in_string and not self._is_key
        return len(self._open) > 1 or own or bool(self._scalar)

    def push(self, char: str) -> Reading:
        """Take the next character; none may follow DONE or BAD."""
        if self.in_string:
            return self._in_string(char)
        if self._scalar:
            if char in _IN_SCALAR and len(self._scalar) < _LONGEST_SCALAR:
                self._scalar += char
                return self._kept(char)
            if not _SCALAR.fullmatch(self._scalar):
                return Reading.BAD
            self._scalar = ""
        if char in _BLANK:
            return self._kept(char) if len(self._open) > 1 else Reading.MORE
        return self._structure(char)

    def _structure(self, char: str) -> Reading:
        wants = self._wants
        if self._open and char == self._open[-1] and wants in (",", "first", "key"):
            return self._close(char)
        if wants == ":" and char == ":":
            self._wants = "value"
        elif wants == "," and char == ",":
            self._wants = "name" if self._open[-1] == "}" else "value"
        elif wants in ("key", "name") and char == '"':
            self.in_string = self._is_key = True
            self._written = ""
        elif wants == "{" and char == "{":
            self._open, self._wants = ["}"], "key"
            return Reading.MORE
        elif wants in ("value", "first"):
            return self._value(char)
        else:
            return Reading.BAD
        return self._kept(char) if len(self._open) > 1 else Reading.MORE

    def _value(self, char: str) -> Reading:
        if char not in _BEGINS or len(self._open) == _DEEPEST:
            return Reading.BAD
        if len(self._open) == 1:
            self.members[self._key] = []
        self._kept(char)
        if char in "{[":
            self._open.append("}" if char == "{" else "]")
            self._wants = "key" if char == "{" else "first"
            return Reading.MORE
        self._wants = ","
        if char == '"':
            self.in_string, self._is_key = True, False
        else:
            self._scalar = char
        return Reading.MORE

    def _close(self, char: str) -> Reading:
        if len(self._open) > 1:
            self._kept(char)
        self._open.pop()
        self._wants = ","
        return Reading.MORE if self._open else Reading.DONE

    def _in_string(self, char: str) -> Reading:
        if char < " ":
            return Reading.BAD
        if self._escape:
            if not self._escaped(char):
                return Reading.BAD
        elif char == "\\":
            self._escape = -1
        elif char == '"':
            self.in_string = False
            if self._is_key:
                self._wants = ":"
                if len(self._open) == 1:
                    return self._named()
        if self._is_key and len(self._open) == 1:
            self._written += char
            return Reading.MORE
        return self._kept(char)

    def _escaped(self, char: str) -> bool:
        if self._escape == -1:
            self._escape = 4 if char == "u" else 0
            return char in _ESCAPED
        self._escape -= 1
        return char in _HEX

    def _named(self) -> Reading:
        self._key = json.loads(f'"{self._written}"')
        return Reading.BAD if self._key in self.members else Reading.MORE

    def _kept(self, char: str) -> Reading:
        self.members[self._key].append(char)
        return Reading.MORE
