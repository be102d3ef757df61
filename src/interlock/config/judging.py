"""A judge's settings: a model behind an OpenAI-compatible URL that gives answers a score."""

import re
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import urlsplit

from msgspec import Meta

from interlock.config.fields import NonNegative, Positive, Rate, SettingsTable, Weight

_OWN = frozenset({"messages", "model", "n", "response_format", "stream", "temperature"})
_SET_BESIDE = ("max_tokens", "seed")  # which a body would be overridden by


class JudgeSettings(SettingsTable, frozen=True):
    """What is asked, where, how patiently, and what it costs."""

    url: str  # of the API, such as "https://api.example.org/v1"
    model: str  # by the name that the API knows
    # What a good answer is; the judge reads it before each.
    rubric: str = "The answer is right, complete and to the point."
    key_env: str | None = None  # the variable of the environment that holds the key; None: none
    lowest: Annotated[int, Meta(ge=-1000, le=1000)] = 0  # of a score; the reward of it is 0
    highest: Annotated[int, Meta(ge=-1000, le=1000)] = 10  # the reward of it is 1
    right_from: int | None = None  # the score from which on an answer is right; None: the highest
    reference: bool = True  # whether the judge is shown the reference answer, where there is one
    max_characters: Positive = 20_000  # of an answer; of a longer one the judge sees both ends
    max_tokens: Positive = 512  # of what the judge says
    timeout_s: Rate = 60.0  # of one request
    attempts: Annotated[int, Meta(ge=1, le=100)] = 5  # at a request, the first included
    deadline_s: Rate = 300.0  # of all attempts at one answer
    # After so many answers in a row that it was not reached for, it is not asked for outage_s.
    outage_after: Positive = 16
    outage_s: Rate = 60.0
    concurrency: Annotated[int, Meta(ge=1, le=1024)] = 8  # requests at a time
    price_in: Weight | None = None  # of a million tokens of prompts, in any currency
    price_out: Weight | None = None  # of a million tokens that it says
    seed: NonNegative = 0  # of a judge that samples all the same
    body: dict[str, Any] = {}  # more fields of every request, as the API has them

    def conflicts(self) -> Iterator[str]:
        """Why these settings do not go together: what follows the table's name in a message."""
        for why in address_conflicts(self.url):
            yield f"url {why}"
        if "@" in self.url:
            yield "url holds a user or a password; put the key into a variable (key_env)"
        if self.key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", self.key_env):
            yield "key_env is no name of a variable; give its name, never the key itself"
        if self.lowest >= self.highest:
            yield f"lowest = {self.lowest} is not below highest = {self.highest}"
        if self.right_from is not None and not self.lowest < self.right_from <= self.highest:
            yield f"right_from = {self.right_from} is not above lowest and up to highest"
        if taken := sorted(_OWN & self.body.keys()):
            yield f"body.{taken[0]} is set by the judge itself; remove it"
        for name in _SET_BESIDE:
            if name in self.body:
                yield f"body.{name} is said twice, here and as {name}; set {name}, outside of body"


def address_conflicts(url: str) -> Iterator[str]:
    """Why no request can be sent to what lies below it: what follows "url " in a message."""
    try:
        place = urlsplit(url)
        host, sound = (place.hostname or "").encode("idna"), place.port != 0
    except ValueError:  # a port that is no number or none that there is, half an IPv6 address, …
        host, sound = b"", False
    if not (host and sound and url.isprintable() and " " not in url) or not re.match(
        "https?:", url
    ):
        yield f"= {url!r} is no address; give one such as http://127.0.0.1:8000/v1"
    elif place.query or place.fragment:
        yield "holds a query or a fragment, which what is asked would become part of; remove it"
