"""The demo's result on several seeds: held-out accuracy before and after, and how long it took.

    seed ──> interlock train recipes/demo.toml seed=N --run DIR ──> the metrics in DIR ──> one row

The runs go one after the other, each by the command that a user would type. Minutes are those of
the whole command: opening the model, training, evaluations and the report, not the installation.

    python bench/demo_seeds.py --seeds 0 1 2 --runs runs/demo-seeds --json demo_seeds.json
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from environment import environment
from interlock.rundir import RunDir

RECIPE = Path(__file__).parent.parent / "recipes" / "demo.toml"
INTERLOCK = Path(sys.executable).with_name("interlock")


@dataclass(frozen=True)
class Result:
    """Accuracies are shares of the held-out problems answered right, greedily."""

    seed: int
    before: float
    after: float
    steps: int
    minutes: float
    curve: list[tuple[int, float]]  # step, accuracy


def run(seed: int, directory: Path, settings: list[str]) -> Result:
    """Train with one seed in a new directory. Raises CalledProcessError when the run fails."""
    command = [str(INTERLOCK), "train", str(RECIPE), f"seed={seed}", *settings]
    start = time.perf_counter()
    subprocess.run([*command, "--run", str(directory)], check=True)
    minutes = (time.perf_counter() - start) / 60
    metrics = RunDir.read(directory).metrics()
    curve = [(line.step, line.accuracy) for line in metrics if line.accuracy is not None]
    return Result(seed, curve[0][1], curve[-1][1], metrics[-1].step, minutes, curve)


def show(results: list[Result]) -> None:
    """A Markdown table, as RESULTS.md has it."""
    print("| seed | before | after | steps | minutes |")
    print("|---|---|---|---|---|")
    for result in results:
        print(
            f"| {result.seed} | {result.before:.1%} | {result.after:.1%} | {result.steps}"
            f" | {result.minutes:.1f} |"
        )
    print(
        f"| mean | {fmean(r.before for r in results):.1%} | {fmean(r.after for r in results):.1%} |"
        f" | {fmean(r.minutes for r in results):.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("settings", nargs="*", metavar="key=value", help="the recipe's settings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/demo-seeds"), metavar="DIR", help="must be new"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    results = [run(seed, given.runs / f"seed-{seed}", given.settings) for seed in given.seeds]
    show(results)
    if given.json:
        figures = {
            "environment": environment(),
            "setting": {"recipe": " ".join([f"recipes/{RECIPE.name}", *given.settings])},
            "seeds": [asdict(result) for result in results],
        }
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
