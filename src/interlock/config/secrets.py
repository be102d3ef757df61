"""What of a recipe may be kept and shown: a worker's variables, passwords and keys may not.

    config as a tree ──redacted──> the tree in config.json, on the page and in events

A secret's place is taken by a short digest, so that a resumed run can tell that it has changed.
The digest is slow, and so short that many guesses fit it.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from interlock.text import hide_credentials

_REDACTED = re.compile(r"digest:[0-9a-f]{6}")
_SECRET = re.compile(r"token|secret|passw|credential|api_?key|private_?key", re.IGNORECASE)
# A number of tokens is none.
_COUNT = re.compile(r"(.*[._])?tokens=[-+]?[\d_.]+(e[-+]?\d+)?", re.IGNORECASE)
_ROUNDS = 20_000
_SHORTEST = 8  # characters; "npu:3" is no secret


def redacted(tree: dict[str, Any]) -> dict[str, Any]:
    """A recipe's tree without its secrets. What is redacted already stays as it is."""
    found = _texts(tree, hide_credentials)
    found["generator"] = [_generator(each) for each in tree.get("generator") or []]
    if not found["generator"]:
        del found["generator"]
    return found


def withheld(tree: dict[str, Any]) -> str | None:
    """The name of the first setting of which `tree` holds a digest alone."""
    for index, table in enumerate(tree.get("generator") or []):
        for name in ("env", "options"):
            for key, value in (table.get(name) or {}).items():
                if _REDACTED.fullmatch(str(value)):
                    return f"generator.{index}.{name}.{key}"
    return None


def shown_override(override: str) -> str:
    """A `key=value` of the command line, to be printed: a variable's value is left out."""
    key, equals, value = override.partition("=")
    return f"{key}=…" if equals and is_secret(key, value) else hide_credentials(override)


def is_secret(setting: str, value: str) -> bool:
    """Whether this value of a setting, named by its dotted path, may not be shown."""
    counts = _COUNT.fullmatch(f"{setting}={value}") is not None
    return ".env" in setting or (_SECRET.search(setting) is not None and not counts)


def without_secrets(text: str, env: Mapping[str, str]) -> str:
    """What a process says, without the values of variables that it was given, short ones apart."""
    words = {word for value in env.values() for word in value.split() if len(word) >= _SHORTEST}
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, "…")
    return text


def _generator(table: dict[str, Any]) -> dict[str, Any]:
    hidden: dict[str, Any] = _texts(table, hide_credentials)
    for name in ("env", "options"):
        if table.get(name):
            hidden[name] = {
                key: _digest(value) if name == "env" or _SECRET.search(key) else hidden[name][key]
                for key, value in table[name].items()
            }
    return hidden


def _digest(value: Any) -> str:
    text = str(value)
    if _REDACTED.fullmatch(text):
        return text
    slow = hashlib.pbkdf2_hmac("sha256", text.encode("utf-8", "replace"), b"interlock", _ROUNDS)
    return f"digest:{slow.hex()[:6]}"


def _texts(tree: Any, change: Callable[[str], str]) -> Any:
    """A copy in which every text that holds a URL is changed."""
    if isinstance(tree, dict):
        return {key: _texts(value, change) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_texts(value, change) for value in tree]
    return change(tree) if isinstance(tree, str) and "://" in tree else tree
