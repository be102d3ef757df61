"""Who may ask: keys from files and from the environment, never from the command line.

    --api-keys FILE, INTERLOCK_API_KEY ──load_keys──> Keys ──whose(header)──> "key-2", or nobody

A key is told apart by its place in the file; the key itself is kept here and shown nowhere.
"""

import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from interlock.errors import ConfigError
from interlock.regular import read_regular
from interlock.text import one_line

API_VARIABLE, ADMIN_VARIABLE = "INTERLOCK_API_KEY", "INTERLOCK_ADMIN_KEY"
_SHORTEST = 16  # characters
_MOST_BYTES = 1 << 20
_MOST = 1000  # all are compared at every request


class Keys:
    """Some keys, each with a name that may be told."""

    def __init__(self, keys: Sequence[str], prefix: str = "key") -> None:
        self._keys = [(key.encode(), f"{prefix}-{n}") for n, key in enumerate(keys, 1)]

    def __len__(self) -> int:
        return len(self._keys)

    def whose(self, given: bytes) -> str | None:
        """The name of a key; None: nobody's. Takes as long whichever it is."""
        found = None
        for key, name in self._keys:
            if hmac.compare_digest(key, given):
                found = name
        return found

    def overlaps(self, other: "Keys") -> bool:
        """Whether some key opens both."""
        return any(other.whose(key) is not None for key, _ in self._keys)


def load_keys(file: Path | None, variable: str, environment: Mapping[str, str]) -> list[str]:
    """The keys of a file, one a line (# begins a comment), and that of a variable. Raises
    ConfigError.
    """
    found = [] if file is None else _lines(file)
    if variable in environment:
        found.append(environment[variable])
    for number, key in enumerate(found, 1):
        if not re.fullmatch(rf"[\x21-\x7e]{{{_SHORTEST},512}}", key):
            source = "a key" if file is None else f"key {number} of {one_line(str(file), 80)}"
            raise ConfigError(
                f"{source} is not {_SHORTEST} to 512 characters of ASCII without blanks; make one "
                "with: openssl rand -hex 24"
            )
    if len(found) > _MOST:
        raise ConfigError(f"{len(found)} keys are more than {_MOST}; give fewer")
    if len(set(found)) < len(found):
        raise ConfigError(f"a key of {file or variable} stands there twice; remove one")
    return found


def _lines(file: Path) -> list[str]:
    try:
        text = read_regular(file, _MOST_BYTES).decode("utf-8")
    except OSError as error:
        shown = one_line(str(file), 80)
        raise ConfigError(f"cannot read the keys in {shown}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"cannot read the keys in {file}: {one_line(str(error), 80)}") from None
    lines = [line.strip() for line in text.splitlines()]
    if not (keys := [line for line in lines if line and line[0] != "#"]):
        raise ConfigError(f"{file} holds no key; write one a line")
    return keys


def new_key() -> str:
    """A key that nobody guesses."""
    return secrets.token_urlsafe(24)
