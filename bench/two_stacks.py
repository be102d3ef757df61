"""A learner in torch and a generator in vLLM, in one run: mismatch, and accuracy with and without
the correction of it.

    python bench/two_stacks.py [--rounds 1] [--corrections truncated off] [key=value …]

Needs `make vllm`. Runs recipes/two-stacks.toml, the demo's task, once per correction and round.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from environment import environment
from interlock.rundir import RunDir

RECIPE = Path(__file__).parents[1] / "recipes" / "two-stacks.toml"
DEADLINE_S = 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--corrections", nargs="+", default=["truncated", "off"])
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--keep", type=Path, help="keep the run directories below this one")
    given = parser.parse_intermixed_args()
    print(json.dumps(environment()))
    with TemporaryDirectory() as scratch:
        where = given.keep or Path(scratch)
        for number in range(given.rounds):
            for correction in given.corrections:
                settings = [
                    *given.settings,
                    f"seed={number}",
                    f"stage.loss.correction={correction}",
                ]
                figures = run(given.recipe, where / f"{correction}-{number}", settings)
                print(json.dumps({"correction": correction, "seed": number} | figures), flush=True)


def run(recipe: Path, directory: Path, settings: list[str]) -> dict[str, Any]:
    """Train in a process of its own, with one thread: the generator has the other core."""
    command = [sys.executable, "-m", "interlock.cli", "train", str(recipe), "--run", str(directory)]
    subprocess.run(
        [*command, *settings],
        check=True,
        timeout=DEADLINE_S,
        stdout=subprocess.DEVNULL,
        env={"OMP_NUM_THREADS": "1", **os.environ},
    )
    view = RunDir.read(directory)
    lines = view.metrics()
    steps = [line for line in lines if line.step]
    (worker,) = steps[-1].workers.values()
    fresh = [
        own.mismatch[0] for line in steps for own in line.workers.values() if 0 in own.mismatch
    ]
    gaps = [line.update.mismatch for line in steps if line.update.mismatch]
    ended = lines[-1].time
    assert ended is not None
    return {
        "engine": worker.engine,
        "dtype": worker.dtype,
        "accuracy": known(line.accuracy for line in lines),
        "k3_fresh": spread([gap.k3 for gap in fresh]),
        "k3": spread([gap.k3 for gap in gaps]),
        "max": max(gap.max for gap in gaps),
        "share_above_2": spread([gap.share_above_2 for gap in gaps]),
        "canary_k3": worker.canary_k3,
        "staleness_mean": spread(known(line.rollout.staleness_mean for line in steps)),
        "seconds_step": spread(known(line.seconds.step for line in steps)),
        "seconds_wait": spread(known(line.seconds.wait for line in steps)),
        "tokens_per_second": worker.tokens / worker.seconds_generating,
        "minutes": (ended - view.manifest.created) / 60,
    }


def known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def spread(values: list[float]) -> list[float]:
    """Minimum, median, maximum."""
    return [min(values), median(values), max(values)] if values else []


if __name__ == "__main__":
    main()
