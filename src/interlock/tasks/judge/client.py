"""Asking an OpenAI-compatible URL for one chat completion: retried, bounded, counted.

    complete(body) ── attempt ──> JudgeSaid
         ^               │ what may pass (interlock.remote), no chat completion
         └── pause ──────┘ (Retry-After, else doubling, with a random part; within the deadline)

What the service may have refused because of what it was sent (400, 413, 422) is not tried again.
"""

import json
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2
import msgspec

from interlock.config.judging import JudgeSettings
from interlock.errors import Unavailable
from interlock.processes.deadline import Deadline
from interlock.remote import Passing, Service
from interlock.text import one_line

_MOST_BYTES = 1 << 20  # of an answer of the service
_PAUSE_S, _MOST_PAUSE_S = 0.5, 30.0
_OF_WHAT_WAS_SENT = frozenset({400, 413, 422})
_WORDS = 240


class JudgeRefusal(Exception):
    """The service takes no such request; what was asked about may be the reason."""


class JudgeCost(msgspec.Struct):
    """What was spent. Seconds are those that requests took, summed over all at a time."""

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    money: float | None = None  # None: no price was given
    unasked: int = 0  # answers for which a service that is down was not asked

    def __sub__(self, before: "JudgeCost") -> "JudgeCost":
        now, then = msgspec.structs.asdict(self), msgspec.structs.asdict(before)
        spent: dict[str, Any] = {
            name: None if value is None else value - then[name] for name, value in now.items()
        }
        return JudgeCost(**spent)

    def figures(self) -> dict[str, float]:
        """As metrics have them."""
        return {n: v for n, v in msgspec.structs.asdict(self).items() if v is not None}


class JudgeSaid(msgspec.Struct, frozen=True):
    text: str
    finish: str


class JudgeClient:
    """One service. Threads may share it. Close it at the end."""

    def __init__(
        self,
        settings: JudgeSettings,
        key: str | None,
        sleep: Callable[[float], None] = time.sleep,
        drawn: Callable[[], float] = random.random,
    ) -> None:
        """`key`: of the service, sent to it alone and told to nobody."""
        self._settings, self._sleep, self._drawn = settings, sleep, drawn
        self._key = key
        self._url = settings.url.rstrip("/") + "/chat/completions"
        self._cost = JudgeCost(money=None if _free(settings) else 0.0)
        self._counting = threading.Lock()
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._service = Service(settings.concurrency, headers)

    def close(self) -> None:
        self._service.close()

    @property
    def cost(self) -> JudgeCost:
        """Until now."""
        with self._counting:
            return msgspec.structs.replace(self._cost)

    def complete(self, body: dict[str, Any]) -> JudgeSaid:
        """Ask until there is an answer. Raises Unavailable and JudgeRefusal."""
        settings = self._settings
        deadline = Deadline(settings.deadline_s)
        why = ""
        for attempt in range(settings.attempts):
            try:
                return self._timed(body, deadline)
            except Passing as error:
                why = self._safe(str(error))
                doubling = min(_PAUSE_S * 2**attempt, _MOST_PAUSE_S) * (0.5 + self._drawn() / 2)
                pause_s = doubling if error.pause_s is None else error.pause_s
            if attempt + 1 == settings.attempts or pause_s >= deadline.left:
                break
            self._count(retries=1)
            self._sleep(pause_s)
        raise Unavailable(f"the judge at {settings.url}: {why}")

    def _timed(self, body: dict[str, Any], deadline: Deadline) -> JudgeSaid:
        self._count(requests=1)
        began = time.monotonic()
        try:
            return self._once(body, min(self._settings.timeout_s, max(deadline.left, 0.001)))
        finally:
            self._count(seconds=time.monotonic() - began)

    def _once(self, body: dict[str, Any], seconds: float) -> JudgeSaid:
        """One request. Raises Passing, Unavailable, JudgeRefusal."""
        try:
            found = self._service.exchange("POST", self._url, body, seconds, _MOST_BYTES)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise Passing(f"{type(error).__name__}: {one_line(str(error), _WORDS)}") from None
        if found.status == 200:
            return self._read(found.content)
        words = f"HTTP {found.status}: {self._safe(found.words)}"
        if found.status in _OF_WHAT_WAS_SENT:
            raise JudgeRefusal(f"the judge refused the request, {words}")
        raise Unavailable(f"the judge at {self._settings.url}: {words}")

    def _read(self, data: bytes) -> JudgeSaid:
        """Raises Passing: a service that answers with something else is not in order."""
        try:
            tree = json.loads(data)
            choice = tree["choices"][0]
            text, finish = choice["message"]["content"], choice["finish_reason"]
            usage = tree.get("usage") or {}
            spent = [usage.get(f"{side}_tokens") or 0 for side in ("prompt", "completion")]
            if not (isinstance(text, str) and isinstance(finish, str)) or not all(
                type(each) is int and 0 <= each < 1 << 40 for each in spent
            ):
                raise TypeError
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise Passing("it answered with no chat completion") from None
        self._count(prompt_tokens=spent[0], completion_tokens=spent[1])
        return JudgeSaid(text, finish)

    def _safe(self, words: str) -> str:
        """In one line and without the key, which services have been seen to quote."""
        return one_line(words.replace(self._key, "…") if self._key else words, _WORDS)

    def _count(self, **more: float) -> None:
        settings, cost = self._settings, self._cost
        with self._counting:
            for name, value in more.items():
                setattr(cost, name, getattr(cost, name) + value)
            if cost.money is not None:
                spent = cost.prompt_tokens * (settings.price_in or 0.0)
                spent += cost.completion_tokens * (settings.price_out or 0.0)
                cost.money = spent / 1e6


def _free(settings: JudgeSettings) -> bool:
    return settings.price_in is None and settings.price_out is None
