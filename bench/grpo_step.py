"""Seconds per GRPO step: Interlock against TRL's GRPOTrainer, taking turns in one run.

    this process ──"go"──> ours_grpo.py: one step ──facts──> this process
                 ──"go"──> trl_grpo.py: one step ──facts──> this process      … round by round

Each side is a process of its own, so memory is measured apart and neither loads what the other
needs. One works while the other sleeps on its pipe. A step is all that happens from "go" until the
side is idle again: generation, rewards, update, and what the trainer writes down. Each side takes
one step to warm up first.

Both do the step of workload.py: the same model, prompts, reward, group size, limits and learning
rate, compute in --dtype on fp32 masters, no KL term, loss normalised by tokens. `trained` tells how
many groups each update had: Interlock leaves groups of equal reward out. Completions are sampled,
so lengths differ a little: compare milliseconds per generated token as well. Memory is the peak
resident set of each side's process, without Interlock's verifier process.

    python bench/grpo_step.py --rounds 5 --json grpo_step.json
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from environment import environment
from interlock.chips.device import most_resident
from workload import COMPLETIONS, PROBLEMS

SIDES = {"ours": "ours_grpo.py", "trl": "trl_grpo.py"}


@dataclass(frozen=True)
class Facts:
    """What a side tells of its last step."""

    tokens: int  # generated, end-of-turn tokens included
    trained_groups: int  # of PROBLEMS
    generate_s: float
    peak_rss_mb: float


@dataclass(frozen=True)
class Step:
    """One step as this process saw it."""

    seconds: float
    facts: Facts

    @property
    def ms_per_token(self) -> float:
        return 1000 * self.seconds / self.facts.tokens


class Turns:
    """A side's end of the pipe. Make it before a library can print: stdout becomes stderr."""

    def __init__(self) -> None:
        self._replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def idle(self, facts: Any) -> None:
        """Tell the facts of the step before, a dataclass or None; sleep until told to go, or exit
        when over.
        """
        print(json.dumps(facts and asdict(facts)), file=self._replies, flush=True)
        if not sys.stdin.readline():
            sys.exit(0)


class Side:
    """A trainer in its own process, started and waited for until it is idle."""

    def __init__(self, name: str, script: str, arguments: list[str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(script)), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reply()

    def go(self) -> Any:
        """The facts of one step."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._reply()

    def step(self) -> Step:
        start = time.perf_counter()
        facts = self.go()
        return Step(time.perf_counter() - start, Facts(**facts))

    def close(self) -> None:
        """Let the side end by itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _reply(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended early, exit code {self._process.wait()}")
        return json.loads(line)


def peak_rss_mb() -> float:
    """Of the calling process, in MiB."""
    return most_resident() / 2**20


def measure(sides: list[Side], rounds: int) -> dict[str, list[Step]]:
    """One warm-up step of each side, then `rounds` steps of each, in turns."""
    steps: dict[str, list[Step]] = {side.name: [] for side in sides}
    for number in range(rounds + 1):
        for side in sides:
            step = side.step()
            if number:
                steps[side.name].append(step)
            facts, label = step.facts, f"round {number}" if number else "warm-up"
            print(
                f"{label:8} {side.name:5} {step.seconds:7.2f} s"
                f"  generation {facts.generate_s:6.2f} s  {step.ms_per_token:6.2f} ms/token"
                f"  length {facts.tokens / (PROBLEMS * COMPLETIONS):4.1f}"
                f"  trained {facts.trained_groups}/{PROBLEMS}  {facts.peak_rss_mb:5.0f} MiB",
                flush=True,
            )
    return steps


def summary(steps: dict[str, list[Step]]) -> dict[str, Any]:
    """Medians and ranges of each side, and TRL over ours, paired round by round."""
    figures: dict[str, Any] = {}
    for name, taken in steps.items():
        seconds = [step.seconds for step in taken]
        figures[name] = {
            "seconds": median(seconds),
            "seconds_range": [min(seconds), max(seconds)],
            "generate_s": median(step.facts.generate_s for step in taken),
            "ms_per_token": median(step.ms_per_token for step in taken),
            "completion_length": sum(step.facts.tokens for step in taken)
            / (len(taken) * PROBLEMS * COMPLETIONS),
            "trained_groups": sum(step.facts.trained_groups for step in taken) / len(taken),
            "peak_rss_mb": max(step.facts.peak_rss_mb for step in taken),
        }
    pairs = list(zip(steps["ours"], steps["trl"], strict=True))
    ratios = [trl.seconds / ours.seconds for ours, trl in pairs]
    figures["ratio"] = median(ratios)
    figures["ratio_range"] = [min(ratios), max(ratios)]
    figures["ratio_per_token"] = median(trl.ms_per_token / ours.ms_per_token for ours, trl in pairs)
    return figures


def show(figures: dict[str, Any]) -> None:
    for name in SIDES:
        side = figures[name]
        low, high = side["seconds_range"]
        print(
            f"{name:5} median {side['seconds']:.2f} s ({low:.2f}-{high:.2f}), generation"
            f" {side['generate_s']:.2f} s, {side['ms_per_token']:.2f} ms per generated token,"
            f" mean length {side['completion_length']:.1f},"
            f" trained {side['trained_groups']:.1f}/{PROBLEMS} groups,"
            f" peak {side['peak_rss_mb']:.0f} MiB"
        )
    low, high = figures["ratio_range"]
    print(
        f"TRL / ours: {figures['ratio']:.2f} x a step ({low:.2f}-{high:.2f}),"
        f" {figures['ratio_per_token']:.2f} x per generated token"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every step there")
    parser.add_argument("--trl-micro-batch", type=int, default=8, help="see trl_grpo.py")
    parser.add_argument("--trl-weights", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    given = parser.parse_args()
    both = [f"--steps={given.rounds + 1}", f"--dtype={given.dtype}"]
    trl = [f"--micro-batch={given.trl_micro_batch}", f"--weights={given.trl_weights}"]
    sides = [
        Side("ours", SIDES["ours"], both),
        Side("trl", SIDES["trl"], both + trl),
    ]
    measured = measure(sides, given.rounds)
    for side in sides:
        side.close()
    figures = summary(measured)
    show(figures)
    if given.json:
        result = {
            "environment": environment(),
            "dtype": given.dtype,
            "trl": {"micro_batch": given.trl_micro_batch, "weights": given.trl_weights},
            "summary": figures,
            "rounds": {name: [asdict(step) for step in taken] for name, taken in measured.items()},
        }
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
