"""Numbers and names on the command line."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path


def at_least(least: int) -> Callable[[str], int]:
    """A whole number that is not too small."""

    def number(text: str) -> int:
        if not re.fullmatch(r"-?\d{1,18}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)

    return number


def no_empty(text: str) -> str:
    """What an option is given: nothing at all is as a rule a variable that was not set."""
    if not text:
        raise argparse.ArgumentTypeError("'' names nothing; leave it out, or name something")
    return text


def no_empty_path(text: str) -> Path:
    """Path("") is the directory one is in."""
    return Path(no_empty(text))
