"""What an adapter gains on the demo's task against full training, seed by seed.

    seed ─┬─ recipes/demo.toml, in full ────────────────> accuracy before and after
          └─ the same with learner.lora, 15 times the rate ─> the same

Accuracy is greedy, on --problems held-out sums. The figure is the gain of the adapter over that of
full training with the same seed, and the lower end of its 95 % interval over the seeds (Student's
t); a seed with which full training gains nothing has no such figure, and is told. Runs go one after
the other; what is finished is not run again, and an interrupted one goes on.

    python bench/lora_gain.py --seeds 0 1 2 3 4 --runs runs/lora-gain --json lora_gain.json
"""

import argparse
import json
import math
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from scipy import stats

from environment import environment
from interlock.rundir import RunDir

RECIPE = Path(__file__).parent.parent / "recipes" / "demo.toml"
INTERLOCK = Path(sys.executable).with_name("interlock")
RATE = 3e-5  # of full training, the demo's
TIMES = 15  # of an adapter in runs of under 100 steps, see docs/lora.md


class Gain(NamedTuple):
    seed: int
    full: float  # accuracy after less accuracy before
    lora: float

    @property
    def ratio(self) -> float | None:
        return self.lora / self.full if self.full > 0 else None


def gain(directory: Path, settings: list[str]) -> float:
    """Of a run, which is begun, gone on with, or read where it is finished."""
    if _status(directory) != "finished":
        more = ["--resume"] if (directory / "manifest.json").is_file() else []
        command = [str(INTERLOCK), "train", str(RECIPE), *settings, "--run", str(directory)]
        done = subprocess.run([*command, *more], check=False)
        if done.returncode not in (0, 3):  # 3: it learned nothing
            raise subprocess.CalledProcessError(done.returncode, command)
    with closing(RunDir.read(directory)) as run:
        found = [line.accuracy for line in run.metrics() if line.accuracy is not None]
    return found[-1] - found[0]


def _status(directory: Path) -> str:
    if not (directory / "manifest.json").is_file():
        return "new"
    with closing(RunDir.read(directory)) as run:
        return run.status


def lower_bound(ratios: list[float]) -> float | None:
    """The lower end of the 95 % interval of their mean; None: of one alone it has none."""
    if len(ratios) < 2:
        return None
    width = stats.t.ppf(0.975, len(ratios) - 1) * stdev(ratios) / math.sqrt(len(ratios))
    return fmean(ratios) - float(width)


def told(found: list[Gain]) -> str:
    """The figure in a line."""
    ratios = [each.ratio for each in found if each.ratio is not None]
    without = [str(each.seed) for each in found if each.ratio is None]
    line = f"adapter / full of {len(ratios)} seeds: "
    line += f"{fmean(ratios):.3f}" if ratios else "none"
    if (bound := lower_bound(ratios)) is not None:
        line += f", at least {bound:.3f} (95 %)"
    return line + (f"; full training gained nothing with {', '.join(without)}" if without else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("settings", nargs="*", metavar="key=value", help="the recipe's settings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--problems", type=int, default=1000, help="held out (default: 1000)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--times", type=float, default=TIMES, help="full training's rate")
    parser.add_argument("--runs", type=Path, default=Path("runs/lora-gain"), metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    common = [f"stage.task.held_out={given.problems}", f"stage.eval.problems={given.problems}"]
    common += ["stage.eval.every=0", *given.settings]
    lora = [f"learner.lora.rank={given.rank}", f"stage.optimizer.lr={given.times * RATE}"]
    found = []
    for seed in given.seeds:
        own = [f"seed={seed}", *common]
        full = gain(given.runs / f"full-{seed}", [f"stage.optimizer.lr={RATE}", *own])
        found.append(Gain(seed, full, gain(given.runs / f"lora-{seed}", [*lora, *own])))
        print(f"seed {seed}: full {full:+.1%}, adapter {found[-1].lora:+.1%}", flush=True)
    print(told(found))
    if given.json:
        ratios = [each.ratio for each in found if each.ratio is not None]
        figures = {
            "environment": environment(),
            "settings": [*lora, *common],
            "seeds": [each._asdict() | {"ratio": each.ratio} for each in found],
            "bound": lower_bound(ratios),
        }
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
