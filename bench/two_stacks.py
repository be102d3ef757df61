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
    steps = [line for line in lines if line["step"]]
    accuracy = [line["accuracy"] for line in lines if line["accuracy"] is not None]
    (worker,) = steps[-1]["workers"].values()
    fresh = [
        bucket["0"]
        for line in steps
        for own in line["workers"].values()
        if "0" in (bucket := own["mismatch"])
    ]
    return {
        "engine": worker["engine"],
        "dtype": worker["dtype"],
        "accuracy": accuracy,
        "k3_fresh": spread([bucket["k3"] for bucket in fresh]),
        "k3": spread([line["mismatch_k3"] for line in steps if "mismatch_k3" in line]),
        "max": max(line.get("mismatch_max", 0.0) for line in steps),
        "share_above_2": spread([line.get("mismatch_share_above_2", 0.0) for line in steps]),
        "canary_k3": worker["canary_k3"],
        "staleness_mean": spread([line["staleness_mean"] for line in steps]),
        "seconds_step": spread([line["seconds_step"] for line in steps]),
        "seconds_wait": spread([line.get("seconds_wait", 0.0) for line in steps]),
        "tokens_per_second": worker["tokens"] / worker["seconds_generating"],
        "minutes": (lines[-1]["time"] - view.manifest.created) / 60,
    }


def spread(values: list[float]) -> list[float]:
    """Minimum, median, maximum."""
    return [min(values), median(values), max(values)] if values else []


if __name__ == "__main__":
    main()
