"""How long a run takes to stop when the store of its weights is full, and to go on elsewhere.

    python bench/full_store.py [--repeats 5]      (as root: it mounts a file system of 12 MB)

Seconds from the last finished step to the end of the run, and from --resume to the next step; and
how many groups were lost.
"""

import argparse
import json
import subprocess
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from environment import environment
from interlock.config.reading import load_recipe
from interlock.errors import RunError
from interlock.recipes.train import train
from interlock.rundir import RunDir
from recovery import tiny_recipe

STEPS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    print(json.dumps(environment()))
    rounds = []
    for _ in range(given.repeats):
        with TemporaryDirectory() as directory:
            rounds.append(once(Path(directory)))
    for name, values in zip(
        ("stops", "goes on", "groups lost"), zip(*rounds, strict=True), strict=True
    ):
        print(f"{name}: {median(values):.2f} ({min(values):.2f}-{max(values):.2f})")


def once(directory: Path) -> tuple[float, float, float]:
    disk, run = directory / "disk", directory / "run"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk], check=True)
    try:
        recipe, settings = tiny_recipe(directory), [f"stage.steps={STEPS}"]
        try:
            train(load_recipe(recipe, [*settings, f"sync.url={disk}"]), run)
        except RunError as error:
            assert "no space left" in str(error), error
        stopped = RunDir.read(run)
        last = stopped.metrics()[-1]
        ended = stopped.manifest.sessions[-1].ended
        assert stopped.status == "failed" and ended is not None
        train(load_recipe(recipe, settings), run, resume=True)
    finally:
        subprocess.run(["umount", disk], check=True)
    view = RunDir.read(run)
    resumed = view.manifest.sessions[-1].started
    following = next(line for line in view.metrics() if line.step == last.step + 1)
    problems = STEPS * int(view.config["stage"][0]["problems_per_step"])
    lost = problems - len(view.ledger.used(0))
    assert last.time is not None and following.time is not None
    return ended - last.time, following.time - resumed, float(lost)


if __name__ == "__main__":
    main()
