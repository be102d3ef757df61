"""A field of a request that cannot be served: which one, and what to do about it."""

from typing import Any

from interlock.errors import ConfigError


class FieldError(ConfigError):
    """One field of a request is wrong; `param` names it as clients are told: "messages[2].role"."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param


def text_of(value: Any, param: str) -> str:
    """A text that can be encoded. Raises FieldError."""
    if not isinstance(value, str):
        raise FieldError(param, f"{_shown(value)} is no string; send text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        bad = value[error.start]
        raise FieldError(
            param, f"holds half of a surrogate pair ({bad!a}); send valid Unicode"
        ) from None
    return value


def object_of(value: Any, param: str) -> dict[str, Any]:
    """Raises FieldError unless it is a JSON object."""
    if not isinstance(value, dict):
        raise FieldError(param, f"{_shown(value)} is no object; send a JSON object")
    return value


def list_of(value: Any, param: str) -> list[Any]:
    """Raises FieldError unless it is a JSON list."""
    if not isinstance(value, list):
        raise FieldError(param, f"{_shown(value)} is no list; send a JSON list")
    return value


def not_empty(content: list[Any], param: str) -> None:
    """Raise FieldError on a message's content that is a list of nothing."""
    if not content:
        raise FieldError(param, "is an empty list; send a text, or at least one part")


def known(value: dict[str, Any], names: set[str], param: str) -> None:
    """Raise FieldError on a member that is not among `names`; null is the same as not sent."""
    for name, member in value.items():
        if name not in names and member is not None:
            raise FieldError(
                f"{param}.{name}" if param else name,
                "is not supported; leave it out of the request",
            )


def one_of(value: Any, allowed: tuple[str, ...], param: str) -> str:
    """Raises FieldError unless it is one of `allowed`."""
    if value not in allowed:
        raise FieldError(param, f"{_shown(value)} is unknown; give one of {', '.join(allowed)}")
    return str(value)


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
