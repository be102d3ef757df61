"""On-policy distillation against GRPO: one student, one task, the compute that each takes.

    SmolLM2-135M-Instruct ─┬─ grpo, the demo's run ──> teacher ──┐
                           ├─ grpo, the same, x seeds            │   ─> accuracy by compute
                           └─ distill x seeds <──────────────────┘   ─> accuracy by compute

    python bench/distil_or_grpo.py [--seeds 0 1 2] [--runs runs/distil-or-grpo] [--json FILE]

The task, the student and GRPO's settings are those of recipes/demo.toml; distillation has them too,
and fewer steps. A step of either arm samples as many completions of the same problems. GRPO learns
from the verifier's verdicts, distillation from the teacher's whole distribution after each token
(reverse KL), and never from a verdict. After every few steps the same problems, which no part was
trained on, are answered greedily; that is not counted. Counted is all else:

    seconds   of processor, of the run's process, while it samples, updates and publishes; teacher's
              scoring included
    FLOPs     2 per weight and token of a pass, 4 more of a backward pass; the vocabulary projection
              where a distribution is needed; the teacher's pass included; attention's own products
              and the optimizer are not

What it took to make the teacher is in neither arm: whoever distils has one. A part that is finished
is not run again, and one that was interrupted goes on.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec
from safetensors import safe_open

from environment import environment
from interlock.config.reading import parse_recipe
from interlock.recipes.sinks import Sink
from interlock.recipes.train import train
from interlock.records.metrics import StepMetrics
from interlock.records.rl import ScoredGroup
from interlock.rundir import RunDir

DEMO = Path(__file__).parent.parent / "recipes" / "demo.toml"
ARMS = ("grpo", "distill")
TEACHERS_SEED = 100  # none of the arms'


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How much of everything."""

    held_out: int = 1000
    problems: int = 12  # of a step, with as many completions each as the demo has
    max_tokens: int = 32
    grpo_steps: int = 20
    distill_steps: int = 8
    grpo_every: int = 5  # steps between two evaluations
    distill_every: int = 2


# For tests: it says nothing of either arm.
BRIEF = Size(
    held_out=8,
    problems=2,
    max_tokens=8,
    grpo_steps=1,
    distill_steps=1,
    grpo_every=1,
    distill_every=1,
)


class Weights(NamedTuple):
    """How many a model has: in its layers, and in the projection onto the vocabulary."""

    body: int
    head: int


class Point(msgspec.Struct, frozen=True):
    """What an arm has spent after a step, and what it can do then."""

    step: int
    seconds: float
    flops: float
    accuracy: float | None  # None: not measured after this step


def recipe_of(name: str, runs: Path, size: Size) -> dict[str, Any]:
    """The recipe of a part: "teacher", or an arm with its seed, "grpo-0"."""
    kind, _, seed = name.partition("-")
    tree: dict[str, Any] = tomllib.loads(DEMO.read_text(encoding="utf-8"))
    (stage,) = tree["stage"]
    steps, every = size.grpo_steps, size.grpo_every
    if kind == "distill":
        steps, every = size.distill_steps, size.distill_every
        stage["teacher"] = [{"model": str(runs / "teacher" / "weights")}]
    stage |= {"kind": "distill" if kind == "distill" else "grpo", "steps": steps}
    stage["problems_per_step"] = size.problems
    stage["sampling"]["max_tokens"] = size.max_tokens
    stage["eval"] = {"problems": size.held_out, "every": every if kind in ARMS else 0}
    stage["task"]["held_out"] = size.held_out
    tree |= {"name": name, "seed": int(seed) if seed else TEACHERS_SEED, "checkpoint_every": 0}
    return tree


class ProcessorSeconds(Sink):
    """Writes down, after every step, the seconds of processor that its phases took."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._phase, self._since = "start", time.process_time()
        self._spent: dict[str, float] = {}

    def phase(self, name: str, total: int = 0) -> None:
        now = time.process_time()
        self._spent[self._phase] = self._spent.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = name, now

    def step(self, metrics: StepMetrics) -> None:
        self.phase("between")  # publishing, too
        line = {"step": metrics.step, "seconds": self._spent}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._spent = {}


def run_part(name: str, runs: Path, size: Size) -> None:
    """Run a part to its end, from where it stands."""
    directory = runs / name
    recipe = parse_recipe(recipe_of(name, runs, size), name)
    resume = (directory / "manifest.json").exists()
    told = ProcessorSeconds(runs / f"{name}.seconds.jsonl")
    train(recipe, directory, resume=resume, sinks=[told])


def seconds_of(path: Path) -> dict[int, float]:
    """Of each step, what it took, evaluations apart; of a step that was repeated, the last time."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        told = json.loads(line)
        parts = told["seconds"]
        spent = ("generating", "updating", "between")
        found[told["step"]] = sum(parts.get(part, 0.0) for part in spent)
    return found


def weights_of(model: Path) -> Weights:
    """By the headers of the file; embeddings are tied, and cost nothing to look up."""
    body = head = 0
    with safe_open(model / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118  no mapping
            count = math.prod(file.get_slice(name).get_shape())
            body += count if name.startswith("model.layers.") else 0
            head += count if name == "model.embed_tokens.weight" else 0
    return Weights(body, head)


def flops_of(scored: Sequence[ScoredGroup], kind: str, student: Weights, teacher: Weights) -> float:
    """Of one step: a prompt is computed once for its completions, in sampling and in learning.

    Groups whose rewards are equal are sampled and not learned from by GRPO.
    """
    spent = 0.0
    for each in scored:
        prompt = len(each.group.prompt_tokens)
        sampled = sum(len(answer.tokens) for answer in each.group.completions)
        forward = 2.0 * ((prompt + sampled) * student.body + sampled * student.head)
        spent += forward  # sampling
        if kind == "distill":
            spent += 3 * forward
            spent += 2.0 * ((prompt + sampled) * teacher.body + sampled * teacher.head)
        elif len(set(each.rewards)) > 1:
            spent += 3 * forward
    return spent


def curve_of(name: str, runs: Path, student: Weights, teacher: Weights) -> list[Point]:
    """What was spent and reached after each step of a finished arm."""
    view = RunDir.read(runs / name)
    seconds, found = seconds_of(runs / f"{name}.seconds.jsonl"), []
    took = flops = 0.0
    for line in view.metrics():
        if line.step:
            took += seconds[line.step]
            scored = view.ledger.read(0, line.step)
            flops += flops_of(scored, line.kind, student, teacher)
        found.append(Point(line.step, took, flops, line.accuracy))
    return found


def reached(curve: Sequence[Point], goal: float) -> tuple[float, float] | None:
    """Seconds and FLOPs at which an accuracy was met first, between two measurements on a straight
    line; None: never.
    """
    before: Point | None = None
    for point in curve:
        if point.accuracy is None:
            continue
        if point.accuracy >= goal:
            if before is None or before.accuracy is None:
                return point.seconds, point.flops
            part = (goal - before.accuracy) / (point.accuracy - before.accuracy)
            return (
                before.seconds + part * (point.seconds - before.seconds),
                before.flops + part * (point.flops - before.flops),
            )
        before = point
    return None


def compared(curves: dict[str, list[Point]], seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Of each seed: both arms' last accuracy, and what distillation took for that of GRPO."""
    for seed in seeds:
        grpo, distill = (curves[f"{arm}-{seed}"] for arm in ARMS)
        goal = grpo[-1].accuracy
        assert goal is not None
        theirs, ours = reached(grpo, goal), reached(distill, goal)
        assert theirs is not None
        yield {
            "seed": seed,
            "before": grpo[0].accuracy,
            "grpo": goal,
            "distill": distill[-1].accuracy,
            "grpo_seconds": theirs[0],
            "grpo_flops": theirs[1],
            "distill_seconds": ours and ours[0],
            "distill_flops": ours and ours[1],
            "share_of_seconds": ours[0] / theirs[0] if ours and theirs[0] else None,
            "share_of_flops": ours[1] / theirs[1] if ours and theirs[1] else None,
        }


def show(curves: dict[str, list[Point]], rows: Sequence[dict[str, Any]]) -> None:
    """Markdown tables, as RESULTS.md has them."""
    print("| run | step | processor seconds | TFLOP | accuracy |\n|---|---|---|---|---|")
    for name, curve in curves.items():
        for point in curve:
            if point.accuracy is not None:
                spent = f"{point.seconds:.0f} | {point.flops / 1e12:.2f} | {point.accuracy:.1%}"
                print(f"| {name} | {point.step} | {spent} |")
    print()
    for figure in ("grpo", "distill", "share_of_seconds", "share_of_flops"):
        known = [row[figure] for row in rows if row[figure] is not None]
        least = f"{min(known):.3f}-{median(known):.3f}-{max(known):.3f}" if known else "never"
        print(f"{figure}: {least} ({len(known)} of {len(rows)} seeds)")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--runs", type=Path, default=Path("runs/distil-or-grpo"), metavar="DIR")
    parser.add_argument("--held-out", type=int, default=1000, metavar="N", help="default: 1000")
    parser.add_argument("--part", metavar="NAME", help="run this part alone, in this process")
    parser.add_argument("--brief", action="store_true", help="a few steps, to see that all works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    size, runs = BRIEF if given.brief else Size(held_out=given.held_out), given.runs
    runs.mkdir(parents=True, exist_ok=True)
    if given.part:
        run_part(given.part, runs, size)
        return
    arms = [f"{arm}-{seed}" for seed in given.seeds for arm in ARMS]
    for name in ("teacher", *arms):
        if (runs / name / "weights" / "config.json").exists():
            print(f"{name} is finished", flush=True)
            continue
        command = [sys.executable, __file__, "--part", name, "--runs", str(runs)]
        command += ["--held-out", str(size.held_out)]
        # Processor seconds of two threads say how well they share, not what was computed.
        own = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        subprocess.run([*command, *["--brief"] * given.brief], env=own, check=True)
        print(f"{name} is finished now", flush=True)
    weights = weights_of(runs / "teacher" / "weights")  # the student's are as many
    curves = {name: curve_of(name, runs, weights, weights) for name in arms}
    rows = list(compared(curves, given.seeds))
    show(curves, rows)
    if given.json:
        figures = {
            "environment": environment(),
            "setting": msgspec.to_builtins(size) | {"seeds": given.seeds},
            "teacher": RunDir.read(runs / "teacher").metrics()[-1].accuracy,
            "curves": msgspec.to_builtins(curves),
            "seeds": rows,
        }
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
