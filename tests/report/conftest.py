import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from interlock.mismatch import Mismatch
from interlock.records.metrics import (
    Event,
    EventKind,
    PublishMetrics,
    RolloutMetrics,
    StepMetrics,
    StepSeconds,
    UpdateMetrics,
    WorkerMetrics,
    WorkerState,
)
from interlock.records.rl import Completion, FinishReason, Group, Problem, ScoredGroup, Verdict
from interlock.rundir import RunDir

CONFIG: dict[str, Any] = {"name": "test", "model": {"path": "m"}, "stage": [{"kind": "grpo"}]}


def scored_group(problem: str, *answers: tuple[str, float]) -> ScoredGroup:
    """One group of (text, reward) answers to the question "<problem>?"."""
    completions = [
        Completion.sampled([7], [-0.5], FinishReason.STOP, text, weight_version=0)
        for text, _ in answers
    ]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": problem}]
    group = Group(Problem(problem, messages, f"{problem}!"), [1], completions, "w0")
    return ScoredGroup(group, [Verdict(reward) for _, reward in answers])


@pytest.fixture
def make_group() -> Callable[..., ScoredGroup]:
    return scored_group


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunDir]:
    def make(config: dict[str, Any] = CONFIG) -> RunDir:
        return RunDir.create(tmp_path / "run", config, {"interlock": "0.1", "torch": "2.13.0"})

    return make


@pytest.fixture
def grpo_step() -> Callable[..., StepMetrics]:
    """The metrics of one GRPO step, whose numbers follow from `step`."""

    def metrics(
        stage: int,
        step: int,
        *,
        rollout: Any = (),
        update: Any = (),
        seconds: Any = (),
        **changes: Any,
    ) -> StepMetrics:
        made = RolloutMetrics(
            reward=step / 100, correct=step / 50, length=20.0 + step,
            truncated=step / 1000, tokens=1000 * step, groups=8, groups_skipped=2,
            verifier_errors=1,
        )  # fmt: skip
        learned = UpdateMetrics(
            loss=-step, grad_norm=2.0 * step, lr=1e-6 * step, entropy=1 / step,
            mismatch=Mismatch(800 * step, 1e-4 * step, 0.5, 1e-3 * step), clipped_share=0.0,
            vetoed=0, tokens=800 * step, bad_steps=0,
        )  # fmt: skip
        spent = StepSeconds(generate=5.0, verify=0.5, update=4.0, step=10.0)
        whole = StepMetrics(
            stage=stage,
            step=step,
            kind="grpo",
            weight_version=step,
            rollout=replace(made, **dict(rollout)),
            update=replace(learned, **dict(update)),
            seconds=replace(spent, **dict(seconds)),
        )
        return replace(whole, **changes)

    return metrics


class _Worker:
    """Counters of one made-up generator, as a coordinator would log them."""

    def __init__(
        self, engine: str, device: str, dtype: str, rate: float, k3: float, rise: float
    ) -> None:
        self.rate, self.k3, self.rise = rate, k3, rise
        self.facts = WorkerMetrics(
            WorkerState.GENERATING, engine, device, dtype, weight_version=0, canary_k3=k3 / 3
        )

    def work(self, step: int, size: int, chance: random.Random) -> None:
        facts = self.facts
        facts.state, facts.weight_version = WorkerState.GENERATING, step
        facts.groups += 4
        seconds = chance.uniform(5, 7)
        facts.seconds_generating += seconds
        facts.tokens += round(seconds * self.rate * chance.uniform(0.9, 1.1))
        facts.seconds_loading += 0.2 + size / 5e8
        facts.fetched_bytes += size
        facts.mismatch = {
            staleness: Mismatch(
                tokens, self.k3 * self.rise**staleness * chance.uniform(0.8, 1.25), 0.6, 1e-4
            )
            for staleness, tokens in enumerate((900, 700, 120))
            if staleness < step
        }

    def idle(self, state: WorkerState, **more: int) -> None:
        self.facts.state, self.facts.mismatch = state, {}
        for name, count in more.items():
            setattr(self.facts, name, getattr(self.facts, name) + count)


def fleet_steps(steps: int = 40) -> tuple[list[StepMetrics], list[Event]]:
    """Metrics and events of a run with two generators, one step every ten seconds from time 0.

    vllm-0 is killed in step 9 and quarantined in step 27; torch-0 hangs in step 15 and answers
    garbage in step 21.
    """
    chance = random.Random(3)
    torch = _Worker("torch 2.13.0", "cpu (2 cores)", "bfloat16", 420.0, 4e-5, 1.6)
    vllm = _Worker("vllm 0.32.0", "cpu (AVX-512)", "bfloat16", 310.0, 6e-4, 1.1)
    lines, events = [], []

    def event(time: float, kind: EventKind, worker: str, message: str) -> None:
        events.append(Event(time, kind, message, worker))

    for name in ("torch-0", "vllm-0"):
        event(1.0, "worker_started", name, f"worker {name} started")
    for step in range(1, steps + 1):
        anchor = step % 20 == 1
        size = 269_000_000 if anchor else chance.randrange(2_400_000, 3_100_000)
        if step == 9:
            vllm.idle(WorkerState.RESTARTING, restarts=1, redispatched=2)
            event(84.0, "worker_lost", "vllm-0", "worker vllm-0 ended with signal 9")
        elif step < 27:
            vllm.k3 *= 1.07
            vllm.work(step, size, chance)
        elif step == 27:
            vllm.idle(WorkerState.QUARANTINED, dropped=3, redispatched=3)
            event(266.0, "worker_mismatch", "vllm-0", "k3 3.1e-3 is above guard.warn = 0.001")
            event(269.0, "worker_quarantined", "vllm-0", "k3 1.2e-2 is above 0.01")
        if step in (15, 16):
            torch.idle(WorkerState.RESTARTING, restarts=step == 15, redispatched=step == 15)
        else:
            torch.work(step, size, chance)
        if step == 15:
            event(147.0, "worker_silent", "torch-0", "worker torch-0 was silent for 30 s")
        if step == 21:
            torch.facts.refused += 1
            event(205.0, "worker_garbage", "torch-0", "a logprob of torch-0 is not a number")
        stale = 2 if step in (10, 17) else 0
        spent = StepSeconds(
            wait=chance.uniform(3, 5), verify=0.3, update=4.0, publish=0.2 + size / 4e8, step=10.0
        )
        used = RolloutMetrics(
            reward=step / 100, groups=8, groups_stale=stale, groups_set_aside=int(step == 30),
            staleness_mean=chance.uniform(0.5, 1.2), staleness_max=min(step - 1, 2),
        )  # fmt: skip
        lines.append(
            StepMetrics(
                time=10.0 * step, stage=0, step=step, kind="grpo", rollout=used, seconds=spent,
                published=PublishMetrics(size, anchors=int(anchor), deltas=int(not anchor)),
                workers={"torch-0": replace(torch.facts), "vllm-0": replace(vllm.facts)},
            )
        )  # fmt: skip
    return lines, events


@pytest.fixture
def fleet_run() -> tuple[list[StepMetrics], list[Event]]:
    return fleet_steps()
