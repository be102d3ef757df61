"""What every route stands on: the model's names, its tokenizer, the replicas, limits, figures.

routes ──> Endpoint ──begin──> Hearing <── Replicas
"""

import logging
import random
import secrets
import time
from collections.abc import Sequence

from interlock.config.serving import ServeSettings
from interlock.engine.base import Limits
from interlock.errors import InterlockError
from interlock.models.tokenizer import Tokenizer
from interlock.records.serving import Ended, EndKind, Generation
from interlock.serve.http.refusals import Refusal, refusal_of
from interlock.serve.listening import Hearing, Switchboard
from interlock.serve.metrics import Measured
from interlock.serve.prompts.prompting import ChatFormat
from interlock.serve.sessions.store import Sessions
from interlock.text import one_line
from interlock.workers.replicas.base import Replicas

log = logging.getLogger("interlock.serve")


class Endpoint:
    """`replicas` is None until they were started; `why` says what keeps them from it."""

    def __init__(self, names: Sequence[str], tokenizer: Tokenizer, settings: ServeSettings) -> None:
        self.names, self.tokenizer, self.settings = list(names), tokenizer, settings
        self.form = ChatFormat(tokenizer, settings.thinking, settings.tool_form)
        limits = settings.limits
        self.sessions = Sessions(
            tokenizer, limits.sessions, limits.sessions_mb << 20, limits.session_idle_s
        )
        self.replicas: Replicas | None = None
        self.why = "the replicas are starting"
        self.closing = False
        self.created = int(time.time())
        self.measured = Measured(self.name, lambda: self.replicas)
        self._board: Switchboard | None = None
        self._hearings: set[Hearing] = set()

    @property
    def name(self) -> str:
        """Under which it is told."""
        return self.names[0]

    def check_model(self, asked: str | None) -> None:
        """Raise Refusal unless the model goes by this name."""
        if asked is not None and asked not in self.names:
            shown = one_line(asked, 80)
            said = f"the model {shown!r} is not served here; ask for {self.name!r}"
            raise Refusal(404, said, "model", "model_not_found")

    @property
    def ready(self) -> bool:
        return self.serving(self.replicas)

    @staticmethod
    def serving(replicas: Replicas | None) -> bool:
        """Whether some replica serves."""
        return replicas is not None and any(each.state.serves for each in replicas.facts())

    def pool(self) -> Replicas:
        """The replicas. Raises Refusal (503) while there are none, or nothing more is taken."""
        if self.closing:
            raise Refusal(503, "the server ends", code="closing", headers={"Retry-After": "5"})
        if self.replicas is None:
            raise Refusal(503, self.why, code="loading", headers={"Retry-After": "1"})
        return self.replicas

    @property
    def limits(self) -> Limits:
        """Of the model, as the replicas that serve have them."""
        return self.pool().limits

    def begin(self, generations: Sequence[Generation]) -> Hearing:
        """Have them drawn, and hear of it. On the loop's thread. Raises Refusal."""
        replicas = self.pool()
        if self._board is None:
            self._board = Switchboard()
        hearing = Hearing(self._board, replicas, self.settings.limits.deadline_s)
        try:
            hearing.begin(generations)
        except InterlockError as error:
            raise refusal_of(error, self.serving(replicas)) from None
        self._hearings.add(hearing)
        return hearing

    def end(self, hearing: Hearing) -> None:
        """What still runs for it is cancelled."""
        hearing.close()
        self._hearings.discard(hearing)

    @property
    def heard(self) -> int:
        """Requests that are being answered."""
        return len(self._hearings)

    def end_all(self, reason: str) -> None:
        """Tell every asker that its answer ends here."""
        for hearing in list(self._hearings):
            hearing.end_all(Ended(EndKind.LOST, reason))


def new_id(prefix: str) -> str:
    """A name that no other request has."""
    return f"{prefix}-{secrets.token_hex(12)}"


def new_seed() -> int:
    """Of a request that names none."""
    return random.getrandbits(62)
