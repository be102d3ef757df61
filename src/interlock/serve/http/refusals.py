"""Every answer that is no success: its status, and OpenAI's body with all four keys.

    what was raised ──refusal_of──> Refusal ──body_for──> {"error": {message, type, param, code}}
                                                └── /v1/messages: {"type": "error", "error": …}

400 is the asker's mistake and never a 5xx, which clients send again.
"""

import re

import msgspec

from interlock.errors import (
    ConfigError,
    InterlockError,
    ModelError,
    Overloaded,
    TaskError,
    Unserved,
)
from interlock.records.serving import Ended, EndKind
from interlock.text import error_line, one_line

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_MESSAGES = re.compile(r"(/sessions/[^/]+)?/v1/messages(/.*)?", re.DOTALL)
_LONGEST = 600  # characters of a message


class Refusal(Exception):
    """What an asker is told instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.message = one_line(message, _LONGEST)
        self.headers = headers or {}

    @property
    def tree(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's body, all four keys."""
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _KINDS.get(self.status, default)
        told = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": told}

    def body_for(self, path: str) -> bytes:
        """As clients of a path read it."""
        more = {"type": "error"} if _MESSAGES.fullmatch(path) else {}
        return msgspec.json.encode(more | self.tree)


def wrong(param: str | None, message: str, code: str | None = "invalid_value") -> Refusal:
    """The asker's mistake; `param` names the field."""
    return Refusal(400, message, param, code)


def defect() -> Refusal:
    """A failure of our own: its traceback goes to the log, and nothing of it to the client."""
    return Refusal(500, "the server failed; its log says more", code="internal_error")


def refusal_of(error: InterlockError, serves: bool = True) -> Refusal:
    """What an error of ours means to whoever asked; `serves`: whether some replica does."""
    match error:
        case Overloaded():
            headers = {"Retry-After": str(max(1, round(error.retry_s)))}
            if serves and not isinstance(error, Unserved):
                return Refusal(429, str(error), code="overloaded", headers=headers)
            return Refusal(503, str(error), code="no_replica", headers=headers)
        case ConfigError() | ModelError() | TaskError():
            return wrong(getattr(error, "param", None), error_line(error))
    return Refusal(500, error_line(error), code="internal_error")


def refusal_of_end(ended: Ended) -> Refusal:
    """What it means that a generation ended before its answer did."""
    match ended.kind:
        case EndKind.MISTAKE:
            code = "context_length_exceeded" if re.search("context", ended.reason) else None
            return Refusal(400, ended.reason, code=code)
        case EndKind.LATE:
            return Refusal(504, ended.reason or "the deadline passed", code="deadline_exceeded")
    return Refusal(503, ended.reason or "no replica could end it", code="replica_lost")
