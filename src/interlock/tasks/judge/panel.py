"""The judge of a stage: verdicts on many answers at a time, and what they cost.

    with Judge(settings) as judge ──> judge.verify([(problem, answer), …]) ──> [Verdict, …]

It runs in the run's own process: it executes nothing, waits for the network alone, and so its key
is in no other process. What becomes of an answer by what went wrong: docs/recipes.md, "Failures".
"""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any

import msgspec

from interlock.config.judging import JudgeSettings
from interlock.errors import TaskError, Unavailable
from interlock.records.rl import Attempt, Problem, Verdict, VerdictStatus
from interlock.tasks.judge import questions
from interlock.tasks.judge.client import JudgeClient, JudgeCost, JudgeRefusal
from interlock.tasks.judge.outage import Outage
from interlock.tasks.retries import Pair
from interlock.text import one_line

logger = logging.getLogger(__name__)

_GARBAGE_ATTEMPTS = 2  # at a grade that the judge does not give in its form
_WORDS = 400


class Judge:
    """See above. Opening raises TaskError for settings that cannot be, and without the key."""

    def __init__(self, settings: JudgeSettings, client: JudgeClient | None = None) -> None:
        if why := next(settings.conflicts(), None):
            raise TaskError(f"judge: {why}")
        self._settings = settings
        self._client = client or JudgeClient(settings, key_of(settings))
        self._outage = Outage(settings.outage_after, settings.outage_s)
        self._before = self._client.cost
        self.errors = 0  # answers that were not judged

    def __enter__(self) -> "Judge":
        self._threads = ThreadPoolExecutor(self._settings.concurrency, thread_name_prefix="judge")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._client.close()

    def try_out(self) -> None:
        """Ask for one grade, before a run begins. Raises TaskError when none is given."""
        problem = Problem("try", [{"role": "user", "content": "What is 1 + 1?"}], "2")
        verdict = self.judged(problem, "2")
        if not verdict.status.judged:
            raise TaskError(f"{verdict.cause}; mend url, model, key_env or body of the judge")

    def verify(self, pairs: Sequence[Pair | Attempt]) -> list[Verdict]:
        """One verdict per (problem, answer), in order; rewards from 0 to 1."""
        verdicts = list(self._threads.map(lambda pair: self.judged(*pair[:2]), pairs))
        for (problem, *_), verdict in zip(pairs, verdicts, strict=True):
            if not verdict.status.judged:
                self.errors += 1
                logger.warning("no grade of %s: %s", problem.id, verdict.cause)
        return verdicts

    @property
    def retried(self) -> int:
        """Requests that were made again."""
        return self._client.cost.retries

    def cost(self) -> JudgeCost:
        """Since this was last asked."""
        now = msgspec.structs.replace(self._client.cost, unasked=self._outage.unasked)
        spent, self._before = now - self._before, now
        return spent

    def judged(self, problem: Problem, answer: str) -> Verdict:
        """One verdict; whatever happens."""
        settings, why = self._settings, ""
        for attempt in range(_GARBAGE_ATTEMPTS):
            try:
                body = self._body(problem, answer, settings.seed + attempt)
                said = self._outage.asked(partial(self._client.complete, body))
                if said.finish != "stop":
                    raise ValueError(f"the judge did not finish its grade ({said.finish[:40]})")
                return self._verdict(questions.graded(said.text, settings))
            except Unavailable as error:
                return Verdict.failed(VerdictStatus.UNAVAILABLE, str(error))
            except JudgeRefusal as error:
                return Verdict.failed(VerdictStatus.ERROR, one_line(str(error), _WORDS))
            except ValueError as error:  # what it says may be the answer's doing: it counts
                why = one_line(str(error), _WORDS)
        return Verdict.failed(VerdictStatus.ERROR, why)

    def _verdict(self, grade: questions.Grade) -> Verdict:
        settings = self._settings
        right_from = settings.highest if settings.right_from is None else settings.right_from
        share = (grade.score - settings.lowest) / (settings.highest - settings.lowest)
        return Verdict(share, correct=grade.score >= right_from)

    def _body(self, problem: Problem, answer: str, seed: int) -> dict[str, Any]:
        settings = self._settings
        return settings.body | {
            "model": settings.model,
            "messages": questions.asked(problem, answer, settings),
            "response_format": questions.schema(settings),
            "temperature": 0,
            "max_tokens": settings.max_tokens,
            "seed": seed,
        }


def key_of(settings: JudgeSettings) -> str | None:
    """The key, from the environment. Raises TaskError, which names the variable."""
    if settings.key_env is None:
        return None
    key = os.environ.get(settings.key_env, "").strip()
    if not key:
        raise TaskError(
            f"judge: the variable {settings.key_env} is not set; export {settings.key_env}=…"
        )
    if not key.isascii() or not key.isprintable():
        raise TaskError(f"judge: what the variable {settings.key_env} holds is no key")
    return key
