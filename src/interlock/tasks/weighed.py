"""Who says what a task's answers earn: its verifier, a model as a judge, or all of a list.

    attempts ──VerifierPool──> verdicts ─┬──────────────────────> sum of weight * value, parts
                  those that were judged ├──Judge──> values ──┘
                                         └──VerifierPool "code"

Rewards of a list that ask over a network, or start sandboxes, have no place in the verifier's
process (config.rewards.OUTSIDE): they are asked of what it judged, here.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from msgspec.structs import replace

from interlock.config.judging import JudgeSettings
from interlock.config.rewards import OUTSIDE, AccuracyReward, AnyReward, CodeReward, JudgeReward
from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Attempt, Verdict
from interlock.tasks.packages import module_of
from interlock.tasks.retries import Pair
from interlock.tasks.verifier_pool import VerifierPool

if TYPE_CHECKING:
    from interlock.tasks.judge.panel import Judge

_NOTHING = AccuracyReward(weight=0.0, low=-1e6, high=1e6)  # so that only what is outside earns


def opened(task: TaskSettings) -> "VerifierPool | Judge | WeighedPool":
    """What judges a task's answers, to be entered. Raises TaskError and SandboxError."""
    if task.judge is not None:
        return _judge(task.judge, f"task {task.name!r} with a judge")
    if any(isinstance(each, OUTSIDE) for each in task.reward):
        return WeighedPool(task)
    return VerifierPool(task)


def judges(pool: "VerifierPool | Judge | WeighedPool") -> "Iterator[Judge]":
    """The models among those that judge."""
    if isinstance(pool, WeighedPool):
        yield from pool.judges
    elif not isinstance(pool, VerifierPool):
        yield pool


class WeighedPool:
    """A list with rewards from outside of the verifier's process, as a VerifierPool."""

    def __init__(self, task: TaskSettings) -> None:
        inside = [each for each in task.reward if not isinstance(each, OUTSIDE)]
        self._verifier = VerifierPool(replace(task, reward=inside or [_NOTHING]))
        self._outside: list[tuple[AnyReward, VerifierPool | Judge]] = [
            (each, _outside(each, task)) for each in task.reward if isinstance(each, OUTSIDE)
        ]
        self.judges = [pool for _, pool in self._outside if not isinstance(pool, VerifierPool)]

    @property
    def errors(self) -> int:
        return sum(pool.errors for pool in self._pools())

    @property
    def retried(self) -> int:
        return sum(pool.retried for pool in self._pools())

    def __enter__(self) -> "WeighedPool":
        with ExitStack() as stack:
            for pool in self._pools():
                stack.enter_context(pool)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def verify(self, pairs: Sequence[Pair | Attempt]) -> list[Verdict]:
        """One verdict per answer, in order: the sum over all of the list.

        What one of them could not judge has that one's status, and earns nothing of any.
        """
        attempts = [Attempt(*pair) for pair in pairs]
        verdicts = self._verifier.verify(attempts)
        for reward, pool in self._outside:
            judged = [place for place, verdict in enumerate(verdicts) if verdict.status.judged]
            found = pool.verify([attempts[place] for place in judged])
            for place, value in zip(judged, found, strict=True):
                weight = reward.weight_at(attempts[place].step)
                verdicts[place] = _added(verdicts[place], reward.called, weight, value)
        return verdicts

    def _pools(self) -> "Iterator[VerifierPool | Judge]":
        yield self._verifier
        yield from (pool for _, pool in self._outside)


def _added(verdict: Verdict, name: str, weight: float, value: Verdict) -> Verdict:
    if not value.status.judged:
        return value
    reward = math.fsum([verdict.reward, weight * value.reward])
    return replace(verdict, reward=reward, parts=verdict.parts | {name: value.reward})


def _outside(reward: AnyReward, task: TaskSettings) -> "VerifierPool | Judge":
    if isinstance(reward, JudgeReward):
        return _judge(reward.judge, f"reward {reward.called!r}")
    assert isinstance(reward, CodeReward)
    path = task.options.get("path")
    if isinstance(path, str) and path.startswith("hf:"):
        raise TaskError(
            f"reward {reward.called!r} hides its tests from programs, and path = {path!r} is no "
            "file here; save the data set, and give its path"
        )
    options = task.options if task.name == "code" else {"path": path}
    return VerifierPool(
        TaskSettings(
            "code",
            options,
            workers=reward.workers,
            timeout_s=reward.timeout_s,
            memory_mb=reward.memory_mb,
            retries=task.retries,
            retry_s=task.retry_s,
        )
    )


def _judge(settings: JudgeSettings, who: str) -> "Judge":
    panel = module_of("interlock.tasks.judge.panel", who, "remote")
    judge: Judge = panel.Judge(settings)
    return judge
