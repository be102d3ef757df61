"""Seconds of training until half of the held-out sums are right: Interlock against TRL.

    python bench/time_to_half.py [--seeds 0 1 2] [--most-steps 10] [--json time_to_half.json]

Both sides train SmolLM2-135M-Instruct on the demo's task: the same problems in the same order, the
same verifier, 12 problems x 8 completions of at most 32 tokens that end with their line, and the
same hyper-parameters (group-normalised advantages, token-normalised clipped loss, no KL term, AdamW
with betas 0.9 and 0.95, a constant learning rate of 3e-5), in float32. Each is a process of its
own; they take steps in turns, and one that is there takes no more.

After every step each side answers the same 128 held-out problems greedily, with the same engine.
That is not counted; all else is: generation, rewards, update and what the trainer writes down.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from environment import environment
from grpo_step import Side
from interlock.config.tasks import TaskSettings
from interlock.records.rl import Sampling

MODEL = "smollm2-135m-instruct"
PROBLEMS = 12
COMPLETIONS = 8
RULE = Sampling(temperature=1.0, max_tokens=32, stop=["\n"])
LEARNING_RATE = 3e-5
BETAS = (0.9, 0.95)
HELD_OUT = 128
SIDES = {"interlock": "half_interlock.py", "trl": "half_trl.py"}


@dataclass(frozen=True)
class Progress:
    """What a side tells after a step."""

    seconds: float  # of this step, without the evaluation
    accuracy: float  # after it
    tokens: int  # generated


def task(seed: int) -> TaskSettings:
    """The demo's. Another seed draws other problems, in another order."""
    options = {"operators": ["+"], "digits": 2}
    return TaskSettings(name="arithmetic", options=options, seed=seed, held_out=HELD_OUT)


def race(seed: int, most_steps: int, goal: float) -> dict[str, list[list[float]]]:
    """Step, seconds so far and accuracy of each side after each of its steps."""
    arguments = [f"--seed={seed}", f"--steps={most_steps}"]
    sides = [Side(name, script, arguments) for name, script in SIDES.items()]
    curves: dict[str, list[list[float]]] = {name: [] for name in SIDES}
    running = list(sides)
    for step in range(1, most_steps + 1):
        for side in list(running):
            told = Progress(**side.go())
            curve = curves[side.name]
            curve.append([step, told.seconds + (curve[-1][1] if curve else 0.0), told.accuracy])
            print(
                f"seed {seed}  step {step:2}  {side.name:9} {told.seconds:6.1f} s,"
                f" {curve[-1][1]:7.1f} in all  {told.tokens} tokens  {told.accuracy:.1%}",
                flush=True,
            )
            if told.accuracy >= goal:
                running.remove(side)
                side.close()
    for side in running:
        side.close()
    return curves


def reached(curve: list[list[float]], goal: float) -> tuple[float | None, float | None]:
    """Step and seconds at which the goal was met, or None and None."""
    if not curve or curve[-1][2] < goal:
        return None, None
    return curve[-1][0], curve[-1][1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--most-steps", type=int, default=10, help="give up after these")
    parser.add_argument("--goal", type=float, default=0.5, help="share of the problems right")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    result: dict[str, Any] = {
        name: {"steps_to_half": [], "seconds_to_half": [], "curve": []} for name in SIDES
    }
    ratios: list[float | None] = []
    for seed in given.seeds:
        for name, curve in race(seed, given.most_steps, given.goal).items():
            steps, seconds = reached(curve, given.goal)
            result[name]["steps_to_half"].append(steps)
            result[name]["seconds_to_half"].append(seconds)
            result[name]["curve"].append(curve)
        ours, theirs = (result[name]["seconds_to_half"][-1] for name in SIDES)
        ratios.append(theirs / ours if ours and theirs else None)
        print(f"seed {seed}: {ours} s and {theirs} s, ratio {ratios[-1]}", flush=True)
    known = [ratio for ratio in ratios if ratio is not None]
    if known:
        print(f"TRL / Interlock: median {median(known):.2f}, {min(known):.2f} to {max(known):.2f}")
    if given.json:
        setting = {name: str(value) for name, value in vars(given).items()}
        figures = {
            "environment": environment(),
            "setting": setting,
            "result": result | {"ratio": ratios},
        }
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
