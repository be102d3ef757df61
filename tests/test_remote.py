"""One request to a service: what is an answer, what may pass, and when it may be sent again."""

import email.utils
import time
from collections.abc import Iterator
from functools import partial

import httpx2
import pytest
from rude_service import Request, RudeService

from interlock.remote import OverlongAnswer, Passing, exchange


@pytest.fixture
def client() -> Iterator[httpx2.Client]:
    with httpx2.Client() as made:
        yield made


@pytest.mark.parametrize(
    ("status", "data", "words"),
    [
        (200, b'{"a": 1}', '{"a": 1}'),
        (400, b'{"error": {"message": "too long"}}', "too long"),
        (404, b'{"message": "no route"}', "no route"),
        (501, b"<html>", "<html>"),
        (505, b"", "no word"),
    ],
)
def test_what_no_other_time_mends_is_an_answer(
    client: httpx2.Client, status: int, data: bytes, words: str
) -> None:
    with RudeService(lambda request: request.reply(status, data)) as service:
        found = exchange(client, "POST", service.url, {}, 5.0, 1 << 20)
    assert (found.status, found.content, found.words) == (status, data, words)


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 599])
def test_what_may_pass_says_when(client: httpx2.Client, status: int) -> None:
    soon = email.utils.formatdate(time.time() + 3600, usegmt=True)
    for header, least, most in (("7", 7, 7), (soon, 3500, 3600), ("²", None, None)):
        reply = partial(Request.reply, status=status, data=b"busy", Retry_After=header)
        with (
            RudeService(reply) as service,
            pytest.raises(Passing, match=f"HTTP {status}: busy") as raised,
        ):
            exchange(client, "POST", service.url, {}, 5.0, 1 << 20)
        pause_s = raised.value.pause_s
        assert pause_s is None if least is None else least <= (pause_s or 0) <= (most or 0)


def test_no_more_is_read_than_allowed_and_nothing_where_nobody_listens(
    client: httpx2.Client,
) -> None:
    with RudeService(lambda request: request.reply(200, b"x" * 100)) as service:
        assert len(exchange(client, "POST", service.url, {}, 5.0, 100).content) == 100
        with pytest.raises(OverlongAnswer, match="more than 99 bytes"):
            exchange(client, "POST", service.url, {}, 5.0, 99)
        url = service.url
    with pytest.raises(Passing, match="ConnectError: "):
        exchange(client, "POST", url, {}, 5.0, 100)
