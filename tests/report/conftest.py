import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
def grpo_step() -> Callable[..., dict[str, Any]]:
    """The line of one GRPO step, whose numbers follow from `step`."""

    def line(stage: int, step: int, **changes: Any) -> dict[str, Any]:
        return {
            "stage": stage, "kind": "grpo", "step": step, "reward": step / 100, "accuracy": None,
            "length": 20.0 + step, "truncated": step / 1000, "entropy": 1 / step, "loss": -step,
            "grad_norm": 2.0 * step, "lr": 1e-6 * step, "mismatch_k3": 1e-4 * step,
            "mismatch_max": 0.5, "mismatch_share_above_2": 1e-3 * step, "clipped": 0.0,
            "vetoed": 0.0, "seconds_generate": 5.0, "seconds_verify": 0.5, "seconds_update": 4.0,
            "seconds_step": 10.0, "generated_tokens": 1000 * step, "trained_tokens": 800 * step,
            "groups": 8, "groups_skipped": 2, "bad_steps": 0, "verifier_errors": 1,
            "weight_version": step,
        } | changes  # fmt: skip

    return line


class _Worker:
    """Counters of one made-up generator, as a coordinator would log them."""

    def __init__(
        self, engine: str, device: str, dtype: str, rate: float, k3: float, rise: float
    ) -> None:
        self.rate, self.k3, self.rise = rate, k3, rise
        self.facts: dict[str, Any] = {
            "engine": engine, "device": device, "dtype": dtype, "state": "generating",
            "weight_version": 0, "groups": 0, "tokens": 0, "seconds_generating": 0.0,
            "seconds_loading": 0.0, "fetched_bytes": 0, "dropped": 0, "redispatched": 0,
            "refused": 0, "restarts": 0, "canary_k3": k3 / 3, "mismatch": {},
        }  # fmt: skip

    def work(self, step: int, size: int, chance: random.Random) -> None:
        facts = self.facts
        facts["state"], facts["weight_version"] = "generating", step
        facts["groups"] += 4
        seconds = chance.uniform(5, 7)
        facts["seconds_generating"] += seconds
        facts["tokens"] += round(seconds * self.rate * chance.uniform(0.9, 1.1))
        facts["seconds_loading"] += 0.2 + size / 5e8
        facts["fetched_bytes"] += size
        facts["mismatch"] = {
            str(staleness): {
                "tokens": tokens, "max": 0.6, "share_above_2": 1e-4,
                "k3": self.k3 * self.rise**staleness * chance.uniform(0.8, 1.25),
            }
            for staleness, tokens in enumerate((900, 700, 120))
            if staleness < step
        }  # fmt: skip

    def idle(self, state: str, **more: int) -> None:
        self.facts |= {"state": state, "mismatch": {}}
        for name, count in more.items():
            self.facts[name] += count


def fleet_steps(steps: int = 40) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Lines and events of a run with two generators, one step every ten seconds from time 0.

    vllm-0 is killed in step 9 and quarantined in step 27; torch-0 hangs in step 15 and answers
    garbage in step 21.
    """
    chance = random.Random(3)
    torch = _Worker("torch 2.13.0", "cpu (2 cores)", "bfloat16", 420.0, 4e-5, 1.6)
    vllm = _Worker("vllm 0.32.0", "cpu (AVX-512)", "bfloat16", 310.0, 6e-4, 1.1)
    lines, events = [], []

    def event(time: float, kind: str, worker: str, message: str) -> None:
        events.append({"time": time, "kind": kind, "worker": worker, "message": message})

    for name in ("torch-0", "vllm-0"):
        event(1.0, "worker_started", name, f"worker {name} started")
    for step in range(1, steps + 1):
        anchor = step % 20 == 1
        size = 269_000_000 if anchor else chance.randrange(2_400_000, 3_100_000)
        if step == 9:
            vllm.idle("restarting", restarts=1, redispatched=2)
            event(84.0, "worker_lost", "vllm-0", "worker vllm-0 ended with signal 9")
        elif step < 27:
            vllm.k3 *= 1.07
            vllm.work(step, size, chance)
        elif step == 27:
            vllm.idle("quarantined", dropped=3, redispatched=3)
            event(266.0, "worker_mismatch", "vllm-0", "k3 3.1e-3 is above guard.warn = 0.001")
            event(269.0, "worker_quarantined", "vllm-0", "k3 1.2e-2 is above 0.01")
        if step in (15, 16):
            torch.idle("restarting", restarts=step == 15, redispatched=step == 15)
        else:
            torch.work(step, size, chance)
        if step == 15:
            event(147.0, "worker_silent", "torch-0", "worker torch-0 was silent for 30 s")
        if step == 21:
            torch.facts["refused"] += 1
            event(205.0, "worker_garbage", "torch-0", "a logprob of torch-0 is not a number")
        stale = 2 if step in (10, 17) else 0
        lines.append({
            "time": 10.0 * step, "stage": 0, "kind": "grpo", "step": step, "reward": step / 100,
            "accuracy": None, "seconds_wait": chance.uniform(3, 5), "seconds_verify": 0.3,
            "seconds_update": 4.0, "seconds_publish": 0.2 + size / 4e8, "seconds_step": 10.0,
            "published_bytes": size, "published": {"anchor" if anchor else "delta": 1},
            "staleness_mean": chance.uniform(0.5, 1.2), "staleness_max": min(step - 1, 2),
            "groups": 8, "groups_stale": stale, "groups_set_aside": int(step == 30),
            "workers": {"torch-0": dict(torch.facts), "vllm-0": dict(vllm.facts)},
        })  # fmt: skip
    return lines, events


@pytest.fixture
def fleet_run() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return fleet_steps()
