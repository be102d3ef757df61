"""Measures each generator against the learner, and takes out the one whose numbers are off.

Mismatch at staleness 0 is numerics alone. At staleness n the learner has moved n versions on, and
that drift cannot be told from numerics: it is reported (flat over staleness: numerics; rising:
drift), but nobody is judged by it. The canary, which every worker scores with every weight version
(workers/replies.py), is of the same weights on both sides however late the groups are.
"""

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from interlock.config.schema import worker_settings
from interlock.config.stages import Sampled
from interlock.errors import TrainingError
from interlock.learner.step_result import StepResult
from interlock.mismatch import Mismatch
from interlock.recipes.stage import Stage
from interlock.records.metrics import WorkerMetrics
from interlock.workers.admission import hint

_CHECKS = ("engine-parity", "stale-weights")  # would tell more of a mismatch

Buckets = dict[str, dict[int, Mismatch]]  # worker -> staleness -> mismatch


def label(worker: str, staleness: int) -> str:
    """Under which a group's mismatch is summed up."""
    return f"{worker}/{staleness}"


def buckets(updates: Sequence[StepResult]) -> Buckets:
    """The mismatch of a step by worker and staleness."""
    found: dict[str, dict[int, list[Mismatch]]] = {}
    for update in updates:
        for name, mismatch in update.by_label.items():
            worker, _, staleness = name.rpartition("/")
            found.setdefault(worker, {}).setdefault(int(staleness), []).append(mismatch)
    return {
        worker: {staleness: sum(parts, Mismatch()) for staleness, parts in sorted(by.items())}
        for worker, by in found.items()
    }


def numerics(by_staleness: Mapping[int, Mismatch], min_tokens: int) -> float | None:
    """The k3 of a worker's fresh tokens; None when there are too few to tell."""
    fresh = by_staleness.get(0)
    return fresh.k3 if fresh is not None and fresh.tokens >= min_tokens else None


class Guard:
    """Watches the generators of one stage."""

    def __init__(self, stage: Stage[Sampled]) -> None:
        assert stage.generators is not None
        self._stage, self._generators = stage, stage.generators
        self._warned: set[tuple[str, int]] = set()  # worker, times that it came back

    def judge(
        self, step: int, updates: Sequence[StepResult], fresh: bool
    ) -> dict[str, WorkerMetrics]:
        """Put those that are out of the band in quarantine. -> what is to be logged of each

        `fresh`: this session generated the groups; those that a resumed run takes from the ledger
        say nothing of the workers it has. Raises TrainingError when that leaves an inline run
        without its generator.
        """
        measured = buckets(updates)
        settings, known = self._stage.settings, self._generators.facts()
        # Where tokens are left out the sampler's distribution is another one on purpose, unless
        # the learner leaves out the same.
        if fresh and ("kept" in settings.replays or not settings.sampling.narrows):
            for worker in sorted(measured.keys() & known.keys() - self._generators.quarantined()):
                k3 = numerics(measured[worker], self._stage.recipe.guard.min_tokens)
                self._judge(worker, step, k3)
        return {
            name: replace(own, mismatch=measured.get(name, {}))
            for name, own in self._generators.facts().items()
        }

    def _judge(self, worker: str, step: int, k3: float | None) -> None:
        limits = self._stage.recipe.guard
        if k3 is None or k3 <= limits.warn:
            return
        found = f"k3 {k3:.2g} against the learner at step {step}, more than"
        if k3 <= limits.quarantine:
            life = worker, self._generators.facts()[worker].requalified
            if life not in self._warned:
                self._warned.add(life)
                message = f"{worker}: {found} {limits.warn:g}; {self._hint(worker)}"
                self._stage.event("worker_mismatch", message, worker=worker)
            return
        if self._stage.recipe.fleet.kind == "inline":
            raise TrainingError(
                f"{worker}: {found} {limits.quarantine:g}; its numbers are off, and there is no "
                f"other: give it a wider dtype, or raise guard.quarantine; {self._hint(worker)}"
            )
        self._generators.quarantine(worker, f"{found} {limits.quarantine:g}", _CHECKS)

    def _hint(self, worker: str) -> str:
        return hint(worker_settings(self._stage.recipe)[worker], _CHECKS)
