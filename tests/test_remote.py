"""One request to a service: what is an answer, what may pass, and when it may be sent again."""

import email.utils
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from rude_service import Manner, Request, RudeService, drip, drip_headers, hang, progress

from interlock.remote import OverlongAnswer, Passing, Service


@pytest.fixture
def client() -> Iterator[Service]:
    made = Service(8, {})
    yield made
    made.close()


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
    client: Service, status: int, data: bytes, words: str
) -> None:
    with RudeService(lambda request: request.reply(status, data)) as service:
        found = client.exchange("POST", service.url, {}, 5.0, 1 << 20)
    assert (found.status, found.content, found.words) == (status, data, words)


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 599])
def test_what_may_pass_says_when(client: Service, status: int) -> None:
    soon = email.utils.formatdate(time.time() + 3600, usegmt=True)
    for header, least, most in (("7", 7, 7), (soon, 3500, 3600), ("²", None, None)):
        reply = partial(Request.reply, status=status, data=b"busy", Retry_After=header)
        with (
            RudeService(reply) as service,
            pytest.raises(Passing, match=f"HTTP {status}: busy") as raised,
        ):
            client.exchange("POST", service.url, {}, 5.0, 1 << 20)
        pause_s = raised.value.pause_s
        assert pause_s is None if least is None else least <= (pause_s or 0) <= (most or 0)


def test_no_more_is_read_than_allowed_and_nothing_where_nobody_listens(
    client: Service,
) -> None:
    with RudeService(lambda request: request.reply(200, b"x" * 100)) as service:
        assert len(client.exchange("POST", service.url, {}, 5.0, 100).content) == 100
        with pytest.raises(OverlongAnswer, match="more than 99 bytes"):
            client.exchange("POST", service.url, {}, 5.0, 99)
        url = service.url
    with pytest.raises(Passing, match="ConnectError: "):
        client.exchange("POST", url, {}, 5.0, 100)


@pytest.mark.parametrize("manner", [drip, drip_headers, progress, hang])
def test_a_request_ends_in_time_whatever_comes(client: Service, manner: Manner) -> None:
    """Each of these answers every read of a socket in time."""
    with RudeService(manner) as service:
        began = time.monotonic()
        with pytest.raises(Passing, match=r"no whole answer within 0\.5 s"):
            client.exchange("POST", service.url, {}, 0.5, 1 << 20)
        assert 0.4 < time.monotonic() - began < 5


def test_what_is_still_asked_at_the_end_is_given_up() -> None:
    service = Service(8, {})
    with RudeService(hang) as rude, ThreadPoolExecutor(1) as threads:
        asked = threads.submit(service.exchange, "POST", rude.url, {}, 60.0, 100)
        while not rude.asked:
            time.sleep(0.01)
        service.close()
        with pytest.raises(Passing, match="no whole answer"):
            asked.result(timeout=10)
    with pytest.raises(Passing, match="no whole answer"):
        service.exchange("POST", rude.url, {}, 60.0, 100)
