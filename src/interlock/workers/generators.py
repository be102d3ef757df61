"""The generators as a recipe sees them: work goes in, groups come out, weights are published.

    order(work) ──> Generators ──> collect(purpose) ──> outcomes, problem by problem
    publish(version, tensors) ──^

`Inline` (inline.py) is the one generator of a small run, called directly; `Dispatcher`
(dispatcher.py) has any number of worker processes. What the recipe does is the same.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from interlock.records.adapters import AdapterForm
from interlock.records.cost import MemoryPeak
from interlock.records.metrics import WorkerMetrics
from interlock.records.replay import NO_REPLAY, Replay
from interlock.records.rl import Group, Problem, Sampling

if TYPE_CHECKING:
    from torch import Tensor


class Purpose(StrEnum):
    TRAIN = "train"
    EVALUATE = "evaluate"  # goes before training


@dataclass(frozen=True)
class Work:
    """Problems that one worker is given together; `keys` are the caller's numbers of them.

    `exact`: a worker computes it alone, and its groups are handed on when all are there. What is
    computed together rounds together, so a unit that is repeated whole gives the same bits; one
    that was half done is repeated whole. Otherwise a worker takes it in beside other work, each
    group is handed on as it comes, and only what is missing is repeated.
    """

    purpose: Purpose
    keys: tuple[int, ...]
    problems: tuple[Problem, ...]
    completions: int  # of each problem
    sampling: Sampling
    seed: int
    exact: bool
    since: int = 0  # weight version; what an older one samples would be dropped
    replay: Replay = NO_REPLAY  # what completions are to tell

    @property
    def sequences(self) -> int:
        return len(self.problems) * self.completions

    def part(self, places: Sequence[int]) -> "Work":
        """The problems at these places alone."""
        keys = tuple(self.keys[place] for place in places)
        return replace(self, keys=keys, problems=tuple(self.problems[place] for place in places))


class Outcome(NamedTuple):
    """What became of one problem: its group, or why it was set aside."""

    key: int
    group: Group | None
    reason: str = ""


class Published(NamedTuple):
    """What publishing a weight version cost; zeros where nothing was written."""

    kind: str = ""
    bytes: int = 0


class Beside(NamedTuple):
    """What an adapter is, and the weights that it stands beside: the same for all versions of one
    `Generators`, and asked for only where they are not held.
    """

    form: AdapterForm
    base: Callable[[], Mapping[str, "Tensor"]]


Keep = Callable[[Sequence[tuple[int, Group]]], None]  # makes training groups durable, by key
Forget = Callable[[str], Sequence[int]]  # undoes that for what a worker made, if unused -> keys
LearnerScore = Callable[[list[int]], list[float]]  # the learner's logprobs of tokens[1:]


class Generators(Protocol):
    keep: Keep  # called with training groups before they are handed out
    forget: Forget  # called with a worker when it is put in quarantine
    progress: Callable[[], None]  # called for every problem that is done with

    @property
    def version(self) -> int | None:
        """Of the weights last published."""

    @property
    def size(self) -> int:
        """How many workers the recipe asks for."""

    def publish(
        self,
        number: int,
        tensors: Mapping[str, "Tensor"],
        score: LearnerScore,
        adapter: Beside | None = None,
    ) -> Published:
        """From now on, answer with these weights. Exact work that is under way is finished with the
        old; other work goes on under the new, as soon as its worker has them.

        `adapter`: `tensors` are one, by PEFT's names; None: they are whole weights. Raises
        SyncError or RunError when they cannot be stored.
        """

    def order(self, work: Sequence[Work]) -> None:
        """Have it done, by whichever worker."""

    def collect(self, purpose: Purpose, timeout_s: float) -> list[Outcome]:
        """What came back since the last call; waits for the first at most `timeout_s`. What is
        ordered for an evaluation comes back together.

        Raises TrainingError when no generator is left, ConfigError when none could ever work.
        """

    def quarantine(self, worker: str, reason: str, checks: Sequence[str]) -> None:
        """Do not use a worker, unless it is qualified anew. `checks` would tell more."""

    def quarantined(self) -> frozenset[str]: ...

    def withdrawn(self) -> Set[int]:
        """Keys of training groups that were made by a worker before its quarantine and not used
        by then. They may not be used, wherever it is now; until they are ordered again.
        """

    def dropped(self, worker: str) -> None:
        """Count a group of this worker that will not be used."""

    def facts(self) -> dict[str, WorkerMetrics]: ...

    def peaks(self) -> dict[str, MemoryPeak]:
        """Of the memory of each that has a process of its own, since the last call."""

    def close(self) -> None: ...


def no_keep(_: Sequence[tuple[int, Group]]) -> None:
    """For whoever has no ledger."""


def no_forget(_: str) -> Sequence[int]:
    """For whoever has no ledger."""
    return ()


def no_progress() -> None:
    """For when nobody looks."""
