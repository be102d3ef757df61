"""Runs the sections of a client's program and prints what each found, as one JSON object.

Its environment is the client's own, so nothing but the standard library is here.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

BASE_URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
KEY = os.environ.get("OPENAI_API_KEY", "")
MODEL = os.environ.get("INTERLOCK_MODEL", "smollm2-135m-instruct")
Section = Callable[[], dict[str, Any]]


def report(sections: dict[str, Section], others: dict[str, Section] | None = None) -> None:
    """Those that are named as arguments, else all but `others`. One that fails does not keep the
    rest from being tried.
    """
    known = sections | (others or {})
    wanted = sys.argv[1:] or list(sections)
    found = {name: _found(known[name]) for name in wanted}
    print(json.dumps(found, ensure_ascii=False, default=str))


def _found(section: Section) -> dict[str, Any]:
    try:
        return section()
    except Exception:
        return {"failed": traceback.format_exc()}


def caught(call: Callable[[], Any]) -> dict[str, Any]:
    """The error that a client raises of an answer, as its user sees it."""
    try:
        call()
    except Exception as error:
        names = ("status_code", "status", "type", "param", "code", "request_id", "message")
        told = {name: getattr(error, name, None) for name in names}
        return {"class": type(error).__name__} | told
    return {"class": None}
