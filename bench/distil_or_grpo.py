"""On-policy distillation against GRPO: one student, one task, the compute that each takes.

    SmolLM2-135M ─┬─ sft, longer ─> teacher ────────────────┐
                  └─ sft, short ──> student ─┬─ grpo    x seeds  ─> accuracy by
                                             └─ distill x seeds     compute

    python bench/distil_or_grpo.py [--seeds 0 1 2] [--runs runs/distil-or-grpo] [--json FILE]

Both arms begin with the same student and sample as many completions of the same problems a step;
GRPO learns from the verifier's verdicts, distillation from the teacher's whole distribution after
each token (reverse KL), and never from a verdict. After every few steps the same 1,000 problems
that no part was trained on are answered greedily; that is not counted. Counted is all else:

    seconds   of processor, of the run's process, while it samples, updates and publishes; teacher's
              scoring included
    FLOPs     2 per weight and token of a pass, 4 more of a backward pass; the vocabulary projection
              where a distribution is needed; the teacher's pass included; attention's own products
              and the optimizer are not

What the teacher and the student took to make is shown, and is in neither arm: whoever distils has a
teacher. A part that is finished is not run again, and one that was interrupted goes on.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec
from safetensors import safe_open

from environment import environment
from interlock.config.reading import parse_recipe
from interlock.config.tasks import TaskSettings
from interlock.recipes.sinks import Sink
from interlock.recipes.train import train
from interlock.records.metrics import StepMetrics
from interlock.records.rl import ScoredGroup
from interlock.rundir import RunDir
from interlock.tasks import open_task

MODEL = "smollm2-135m-instruct"
TEMPLATE = Path(__file__).with_name("plain.jinja")
LIMITS = {"max_tokens": 8, "stop": ["\n"]}
ARMS = ("grpo", "distill")
_ROWS_FROM = 1_000_000  # a step far behind those of the arms: its problems are other ones


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How much of everything. `brief` is for tests: it says nothing of either arm."""

    held_out: int = 1000
    teacher_steps: int = 40
    student_steps: int = 15
    batch: int = 32  # rows of a step of sft
    problems: int = 12
    completions: int = 8
    grpo_steps: int = 12
    distill_steps: int = 6
    grpo_every: int = 6  # steps between two evaluations
    distill_every: int = 3
    sft_lr: float = 1e-4
    grpo_lr: float = 3e-5
    distill_lr: float = 1e-4


BRIEF = Size(
    held_out=16,
    teacher_steps=2,
    student_steps=1,
    batch=8,
    problems=2,
    completions=4,
    grpo_steps=2,
    distill_steps=2,
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


def task_of(size: Size) -> dict[str, Any]:
    options = {"operators": ["+"], "digits": 2, "template": "{a} {op} {b} ="}
    return {"name": "arithmetic", "options": options, "held_out": size.held_out}


def recipe_of(name: str, runs: Path, size: Size) -> dict[str, Any]:
    """The recipe of a part: "teacher", "student", or an arm with its seed, "grpo-0"."""
    kind, _, seed = name.partition("-")
    stage: dict[str, Any] = {"task": task_of(size), "sampling": LIMITS}
    if kind in ("teacher", "student"):
        path = MODEL
        steps = size.teacher_steps if kind == "teacher" else size.student_steps
        rows = {"data": str(runs / "rows.jsonl"), "batch_size": size.batch}
        rate = {"lr": size.sft_lr, "schedule": "linear", "warmup_steps": min(4, steps - 1)}
        stage |= rows | {"kind": "sft", "steps": steps, "optimizer": rate}
        stage["eval"] = {"problems": min(size.held_out, 128), "every": 5}
    else:
        path = str(runs / "student" / "weights")
        stage |= {"kind": kind, "problems_per_step": size.problems}
        stage["completions"] = size.completions
        if kind == "grpo":
            steps, every, lr = size.grpo_steps, size.grpo_every, size.grpo_lr
        else:
            steps, every, lr = size.distill_steps, size.distill_every, size.distill_lr
            stage["teacher"] = [{"model": str(runs / "teacher" / "weights")}]
        stage |= {"steps": steps, "optimizer": {"lr": lr, "schedule": "linear"}}
        stage["eval"] = {"problems": size.held_out, "every": every}
    return {
        "name": name,
        "seed": int(seed or 0),
        "checkpoint_every": 0,
        "keep_checkpoints": 0,
        "model": {"path": path, "chat_template": str(TEMPLATE)},
        "generator": [{"slots": 128}],
        "stage": [stage],
    }


def write_rows(path: Path, size: Size) -> None:
    """What teacher and student learn by heart: sums with their answers, none of them held out."""
    source = open_task(msgspec.convert(task_of(size), TaskSettings))
    count = size.batch * max(size.teacher_steps, size.student_steps)
    with path.open("w", encoding="utf-8") as file:
        for problem in source.train(_ROWS_FROM, min(count, 3000)):
            row = {"prompt": problem.messages[-1]["content"], "completion": f" {problem.answer}"}
            file.write(json.dumps(row) + "\n")


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
    if not (runs / "rows.jsonl").exists():
        write_rows(runs / "rows.jsonl", size)
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
    parser.add_argument("--part", metavar="NAME", help="run this part alone, in this process")
    parser.add_argument("--brief", action="store_true", help="a few steps, to see that all works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    size, runs = BRIEF if given.brief else Size(), given.runs
    runs.mkdir(parents=True, exist_ok=True)
    if given.part:
        run_part(given.part, runs, size)
        return
    arms = [f"{arm}-{seed}" for seed in given.seeds for arm in ARMS]
    for name in ("teacher", "student", *arms):
        if (runs / name / "weights" / "config.json").exists():
            print(f"{name} is finished", flush=True)
            continue
        command = [sys.executable, __file__, "--part", name, "--runs", str(runs)]
        # Processor seconds of two threads say how well they share, not what was computed.
        own = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        subprocess.run([*command, *["--brief"] * given.brief], env=own, check=True)
        print(f"{name} is finished now", flush=True)
    student, teacher = (weights_of(runs / name / "weights") for name in ("student", "teacher"))
    curves = {name: curve_of(name, runs, student, teacher) for name in arms}
    rows = list(compared(curves, given.seeds))
    show(curves, rows)
    if given.json:
        made = {
            name: [
                {"step": line.step, "accuracy": line.accuracy}
                for line in RunDir.read(runs / name).metrics()
                if line.accuracy is not None
            ]
            for name in ("teacher", "student")
        }
        figures = {
            "environment": environment(),
            "setting": msgspec.to_builtins(size) | {"seeds": given.seeds},
            "made": made,
            "curves": msgspec.to_builtins(curves),
            "seeds": rows,
        }
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
