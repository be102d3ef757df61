"""What a worker says in words, as it may be shown: once, on one line, without its secrets."""

from dataclasses import dataclass

from interlock.config.secrets import without_secrets
from interlock.fleet.base import Spec
from interlock.text import one_line

REASON = 300  # characters of what a worker says of a failure


def quoted(spec: Spec, text: str) -> str:
    """What it said of a failure, as it may be shown."""
    return one_line(without_secrets(text, spec.env), REASON)


@dataclass(eq=False)
class MergeNotice:
    """That a worker merges adapters, told once for every reason."""

    _why: str = ""  # of the last one; "": it did not merge

    def told(self, spec: Spec, why: str) -> str:
        """What to tell of it, unless that was told; `why`: "" if it does not merge."""
        before, self._why = self._why, why
        untold = why not in ("", before)
        return f"{spec.name} has adapters merged: {quoted(spec, why)}" if untold else ""
