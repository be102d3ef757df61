"""The routes of the review page.

GET /       the page        GET /rows?all=      what is to be decided on, and who said what
POST /rows/ID/review        {"reviewer": …, "review": {"decision": …} | null}
"""

import asyncio
import math
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from fastapi import FastAPI, HTTPException, Request, Response
from msgspec.structs import replace
from starlette.requests import ClientDisconnect

from interlock.errors import ConfigError, InterlockError
from interlock.label.review.decisions import Decisions, agreements
from interlock.label.rows import LabelRow, Review
from interlock.report.live.shell import COMMON_STYLE, Document, document, guarded
from interlock.text import visible

FLAGGED = frozenset({"disagreed", "flaky", "too_hard", "unfit"})  # what is to be looked at
_PAGE = Path(__file__).parent / "page"
_LONGEST = 1 << 16  # bytes of what is sent


class SaidOfRow(msgspec.Struct, forbid_unknown_fields=True):
    reviewer: str
    review: Review | None = None


def make_app(
    decisions: Decisions, marks: frozenset[str], hosts: Sequence[str], key: str | None = None
) -> FastAPI:
    """`marks`: of the rows that are shown."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    guarded(app, hosts, key)
    writing = threading.Lock()

    @app.get("/")
    async def page() -> Response:
        return _page().response()

    @app.get("/rows")
    async def rows(reviewer: str = "") -> Response:
        shown = [row for row in decisions.rows if row.mark in marks]
        return _json(
            {
                "file": visible(decisions.path.name),
                "all": len(decisions.rows),
                "rows": [_shown(row, reviewer.strip()) for row in shown],
                "agreements": [
                    each._asdict() | {"kappa": None if math.isnan(each.kappa) else each.kappa}
                    for each in agreements(decisions.rows)
                ],
            }
        )

    @app.post("/rows/{row}/review")
    async def review(row: str, request: Request) -> Response:
        content = await _sent(request)
        try:
            said = msgspec.json.decode(content, type=SaidOfRow)
        except msgspec.MsgspecError as error:
            raise HTTPException(400, str(error)) from None

        def decide() -> LabelRow:
            with writing:
                return decisions.decide(row, said.reviewer, said.review)

        try:
            return _json(_shown(await asyncio.to_thread(decide), said.reviewer.strip()))
        except ConfigError as error:
            raise HTTPException(400, str(error)) from None
        except InterlockError as error:
            raise HTTPException(507, str(error)) from None

    return app


async def _sent(request: Request) -> bytes:
    """No more of it is kept than a review is long, whatever is sent."""
    content = b""
    try:
        async for part in request.stream():
            content += part
            if len(content) > _LONGEST:
                raise HTTPException(413, "a review is no longer than 64 kB")
    except ClientDisconnect:  # nobody is told
        raise HTTPException(400, "the request broke off") from None
    return content


def _shown(row: LabelRow, reviewer: str) -> dict[str, Any]:
    """Who has not decided is not told what the others said."""
    if reviewer not in row.reviews:
        row = replace(row, reviews={})
    told = msgspec.to_builtins(row)
    told["question_shown"], told["answer_shown"] = visible(row.text), visible(row.answer)
    for sample in told.get("samples", []):
        sample["text"] = visible(sample["text"])
    return dict(told)


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


@cache
def _page() -> Document:
    return document(_PAGE / "page.html", [COMMON_STYLE, _PAGE / "page.css"], [_PAGE / "page.js"])
