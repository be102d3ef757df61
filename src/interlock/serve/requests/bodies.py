"""A request's body, read and understood as JSON within limits of size, time and depth.

    bytes as they come ──read──> JSON text ──parse──> a tree ──schemas──> a request

A name that stands twice in an object, NaN, half a surrogate pair or bytes that are no UTF-8 are
mistakes here, whatever a lenient reader would make of them.
"""

import asyncio
import json
import math
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from interlock.serve.http.refusals import Refusal, wrong

_DEEPEST = 64  # containers in one another
_CLOSE = {"Connection": "close"}  # what is still coming is not read


async def read(request: Request, most: int, seconds: float) -> bytes:
    """The body of a JSON request. Raises Refusal: 415, 413 as soon as it is too long, 408."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        shown = repr(kind[:60]) if kind else "none"
        said = f"the content type is {shown}; send Content-Type: application/json"
        raise Refusal(415, said, code="content_type", headers=_CLOSE)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "a compressed body is not read", code="content_encoding", headers=_CLOSE)
    told = request.headers.get("content-length", "0")
    if told.isdecimal() and (len(told) > 18 or int(told) > most):
        _too_long(most)
    found = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                found += part
                if len(found) > most:
                    _too_long(most)
    except TimeoutError:
        said = f"the body did not arrive within {seconds:g} s"
        raise Refusal(408, said, code="body_timeout", headers=_CLOSE) from None
    except ClientDisconnect:
        raise Refusal(400, "the connection ended before the body did") from None
    return bytes(found)


def parse(body: bytes) -> dict[str, Any]:
    """The object that a body is. Raises Refusal."""
    try:
        text = body.decode("utf-8")
        if text.startswith("\ufeff"):
            said = "the body begins with a byte order mark; leave it out"
            raise wrong(None, said, "invalid_json")
        tree = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_whole,
            parse_float=_finite,
        )
    except UnicodeDecodeError as error:
        raise wrong(None, f"the body is no UTF-8 at byte {error.start}", "invalid_json") from None
    except RecursionError:
        _too_deep()
    except ValueError as error:
        raise wrong(None, f"the body is no JSON: {error}", "invalid_json") from None
    if not isinstance(tree, dict):
        raise wrong(None, "the body is to be a JSON object", "invalid_json")
    _check_depth(tree)
    if "\\u" in text:
        _check_surrogates(tree)
    return tree


def _too_long(most: int) -> NoReturn:
    raise Refusal(413, f"the body is over {most} bytes", code="body_too_long", headers=_CLOSE)


def _too_deep() -> NoReturn:
    raise wrong(None, f"the body is nested deeper than {_DEEPEST}", "invalid_json") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise wrong(twice, f"the name {twice[:60]!r} stands twice in one object", "invalid_json")
    return found


def _constant(name: str) -> NoReturn:
    raise wrong(None, f"{name} is no JSON number", "invalid_json")


def _whole(text: str) -> int:
    """Python reads whole numbers of any length, in time that grows with its square."""
    if len(text) > 40:
        raise wrong(None, f"a number of {len(text)} digits is too long", "invalid_json")
    return int(text)


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise wrong(None, f"{text[:20]} is beyond what a number can be", "invalid_json")
    return value


def _check_depth(tree: Any) -> None:
    level = [tree]
    for _ in range(_DEEPEST):
        inner: list[Any] = []
        for each in level:
            for value in each.values() if type(each) is dict else each:
                if type(value) is dict or type(value) is list:
                    inner.append(value)
        if not inner:
            return
        level = inner
    _too_deep()


def _check_surrogates(tree: Any) -> None:
    try:
        json.dumps(tree, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        said = "half a surrogate pair (\\ud800 to \\udfff alone) is no text"
        raise wrong(None, said, "invalid_json") from None
