"""Drawing by pass rate against none: word problems, most of which teach a small model nothing.

    1,000 problems of one to five steps ── interlock label ──> pass rates, and how long that took
        ├─ none     in an order that hangs on the seed alone
        ├─ untried  [stage.task.draw] without the pass rates: only what the run itself finds out
        └─ labels   [stage.task.draw] with them

    python bench/curriculum.py [--seeds 0] [--arms none untried labels] [--runs DIR] [--json FILE]

The problems are made here, in the manner of GSM8K's: a story, numbers, one whole number as the
answer. The arms differ in the drawing alone, and in what chance makes of it. Of every step it is
counted how many of its groups teach (their rewards differ); every few steps the same problems,
which no arm trains on, are answered greedily. What is finished is not run again, and what was
interrupted goes on; but for the labelling, whose time is measured.
"""

import argparse
import json
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import msgspec

from environment import environment
from interlock.config.reading import parse_recipe
from interlock.recipes.train import train
from interlock.rundir import RunDir

DEMO = Path(__file__).parent.parent / "recipes" / "demo.toml"
MODEL = "smollm2-135m-instruct"
ARMS = {"none": None, "untried": "unlabelled.jsonl", "labels": "labels.jsonl"}
INSTRUCTION = "Answer with the number alone."
_NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jonas")
_THINGS = ("apples", "books", "stamps", "marbles", "cards", "shells", "coins", "pencils")
_MOST = 999  # of a count on the way


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How much of everything."""

    problems: int = 1000  # that are labelled; of these
    held_out: int = 200
    samples: int = 8  # answers to each
    max_tokens: int = 12
    steps: int = 45
    every: int = 15  # steps between two evaluations
    problems_per_step: int = 8
    completions: int = 8


# To see that all works: it says nothing of any arm.
BRIEF = Size(
    problems=24, held_out=8, samples=2, steps=2, every=1, problems_per_step=2, completions=2
)


def word_problem(rng: Random) -> dict[str, str]:
    """A story of one to five steps, with numbers of one digit or two."""
    name, thing, most = rng.choice(_NAMES), rng.choice(_THINGS), rng.choice((9, 9, 30, 99))
    have = rng.randint(2, most)
    story = [f"{name} has {have} {thing}."]
    for _ in range(rng.randint(1, 5)):
        have, said = _step(rng, have, most)
        story.append(said)
    return {
        "question": f"{' '.join(story)} How many {thing} does {name} have now? {INSTRUCTION}",
        "answer": str(have),
    }


def _step(rng: Random, have: int, most: int) -> tuple[int, str]:
    """-> how many there are then, and how it is told"""
    number, times = rng.randint(2, most), rng.randint(2, 4)
    ways = [(have + number, f"A friend brings {number} more.")]
    if have > number:
        ways.append((have - number, f"{number} of them get lost."))
    if have * times <= _MOST:
        ways.append((have * times, f"Then there are {times} times as many."))
    if have % times == 0:
        ways.append((have // times, f"They are shared among {times} children, and one part stays."))
    return rng.choice(ways)


def write_problems(path: Path, size: Size) -> None:
    """Different ones; the same for the same size."""
    rng, found = Random("word problems"), dict[str, dict[str, str]]()
    while len(found) < size.problems:
        problem = word_problem(rng)
        found[problem["question"]] = problem
    path.write_text("".join(json.dumps(row) + "\n" for row in found.values()), encoding="utf-8")


def label(runs: Path, size: Size) -> dict[str, Any]:
    """Measure the pass rates by the command; -> what there is of each mark, and the seconds it took

    The rows without them are the same, in the same order.
    """
    data, out, told = (runs / name for name in ("problems.jsonl", "labels.jsonl", "label.json"))
    if not told.exists():
        write_problems(data, size)
        out.unlink(missing_ok=True)  # what was measured in part says nothing of the time
        command = [sys.executable, "-m", "interlock.cli", "label", str(data), "--model", MODEL]
        command += ["--out", str(out), "--samples", str(size.samples), "--stop", "\n"]
        began = time.monotonic()
        subprocess.run([*command, "--max-tokens", str(size.max_tokens)], check=True)
        seconds = time.monotonic() - began
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        plain = [{name: row[name] for name in ("question", "answer")} for row in rows]
        lines = "".join(json.dumps(row) + "\n" for row in plain)
        (runs / "unlabelled.jsonl").write_text(lines, encoding="utf-8")
        figures = {
            "seconds": seconds,
            "problems": len(rows),
            "tokens": sum(each["tokens"] for row in rows for each in row["samples"]),
            "marks": Counter(row["mark"] for row in rows),
            "rates": Counter(row["pass_rate"] for row in rows),
        }
        told.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    found: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    return found


def recipe_of(arm: str, seed: int, runs: Path, size: Size) -> dict[str, Any]:
    """The demo's recipe on these problems."""
    tree: dict[str, Any] = tomllib.loads(DEMO.read_text(encoding="utf-8"))
    (stage,) = tree["stage"]
    stage |= {"steps": size.steps, "problems_per_step": size.problems_per_step}
    stage |= {"completions": size.completions}
    stage["sampling"]["max_tokens"] = size.max_tokens
    stage["eval"] = {"problems": size.held_out, "every": size.every}
    data = runs / (ARMS[arm] or "unlabelled.jsonl")
    stage["task"] = {
        "name": "jsonl",
        "options": {"path": str(data)},
        "held_out": size.held_out,
        "seed": seed,
    }
    if ARMS[arm]:
        stage["task"]["draw"] = {}
    return tree | {"name": f"{arm}-{seed}", "seed": seed, "checkpoint_every": 10}


def run_arm(arm: str, seed: int, runs: Path, size: Size) -> dict[str, Any]:
    """Its figures, once it has run to its end from where it stood."""
    directory = runs / f"{arm}-{seed}"
    if not (directory / "weights" / "config.json").exists():
        recipe = parse_recipe(recipe_of(arm, seed, runs, size), directory.name)
        train(recipe, directory, resume=(directory / "manifest.json").exists())
    metrics = RunDir.read(directory).metrics()
    steps = [line.rollout for line in metrics if line.step]
    teach = [(each.groups or 0) - (each.groups_skipped or 0) for each in steps]
    pools = [pool for each in steps[-1:] for pool in each.pools.values()]
    return {
        "arm": arm,
        "seed": seed,
        "accuracy": {line.step: line.accuracy for line in metrics if line.accuracy is not None},
        "teach": teach,
        "groups": sum(each.groups or 0 for each in steps),
        "seconds": sum(line.seconds.step or 0.0 for line in metrics),
        "retired": pools[0].retired if pools else None,
        "pools": msgspec.to_builtins(pools[0]) if pools else None,
    }


def show(labels: dict[str, Any], arms: Sequence[dict[str, Any]], size: Size) -> None:
    """Markdown, as RESULTS.md has it."""
    marks = ", ".join(f"{count} {mark}" for mark, count in labels["marks"].items())
    print(
        f"{labels['problems']:,} problems labelled, {size.samples} answers each: "
        f"{labels['tokens']:,} tokens in {labels['seconds']:.0f} s ({marks})\n"
    )
    print("| arm, seed | groups that teach, of a step | by thirds | accuracy | retired |")
    print("|---|---|---|---|---|")
    for each in arms:
        teach, third = each["teach"], max(1, len(each["teach"]) // 3)
        parts = [fmean(teach[at : at + third]) for at in range(0, third * 3, third) if teach[at:]]
        whole = f"{fmean(teach):.2f} of {size.problems_per_step} | "
        whole += ", ".join(f"{part:.2f}" for part in parts)
        accuracy = " → ".join(f"{value:.1%}" for value in each["accuracy"].values())
        retired = "–" if each["retired"] is None else each["retired"]
        print(f"| {each['arm']}, {each['seed']} | {whole} | {accuracy} | {retired} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--steps", type=int, default=Size().steps, metavar="N")
    parser.add_argument("--runs", type=Path, default=Path("runs/curriculum"), metavar="DIR")
    parser.add_argument("--brief", action="store_true", help="a few steps, to see that all works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    size = BRIEF if given.brief else Size(steps=given.steps)
    given.runs.mkdir(parents=True, exist_ok=True)
    labels, arms = label(given.runs, size), []
    for seed in given.seeds:
        for arm in given.arms:
            arms.append(run_arm(arm, seed, given.runs, size))
            print(f"{arm}-{seed} is finished", flush=True)
    show(labels, arms, size)
    if given.json:
        figures = {
            "environment": environment(),
            "setting": msgspec.to_builtins(size),
            "labels": labels,
            "arms": arms,
        }
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
