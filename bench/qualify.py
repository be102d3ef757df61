"""What `interlock qualify` finds: every planted defect, no false alarm, and how long a level takes.

    defects   every defect of chips/sim/defects.py -> check that found it, seconds, verdict
              (with --fail-fast: a device that is rejected is not asked for more)
    healthy   the healthy CPU and the healthy simulated device, again and again -> their verdicts
    levels    quick and default, alone on the machine -> seconds

Every run is the command a user would type, in processes of its own. With --results, results are
appended to a JSON Lines file, one a run; a run that is in it already is not repeated, so an
interrupted benchmark goes on where it stopped.

    python bench/qualify.py defects --jobs 2 --results defects.jsonl
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import median
from typing import Any

from environment import environment
from interlock.chips.sim.defects import DEFECTS
from interlock.records.trust import Trust

INTERLOCK = Path(sys.executable).with_name("interlock")
DEVICES = ("cpu", "sim")


def qualify(device: str, level: str, seed: int, threads: int) -> dict[str, Any]:
    """One certificate as plain figures. Raises RuntimeError when none was issued."""
    options = ["--quick"] if level == "quick" else []
    options += ["--fail-fast"] if device.startswith("sim:") else []
    with tempfile.TemporaryDirectory() as directory:
        command = [INTERLOCK, "qualify", "--device", device, "--json", "--seed", str(seed)]
        environ = {"OMP_NUM_THREADS": str(threads), "INTERLOCK_CERTIFICATES": directory}
        began = time.perf_counter()
        done = subprocess.run(
            [*map(str, command), *options, "--out", directory],
            capture_output=True,
            text=True,
            env=os.environ | environ,
        )
        seconds = time.perf_counter() - began
    if done.returncode not in (0, 1) or not done.stdout:
        raise RuntimeError(f"{device}: exit code {done.returncode}: {done.stderr[-500:]}")
    found = json.loads(done.stdout)
    results = {each["check"]: (each["result"], each["seconds"]) for each in found["findings"]}
    return {
        "device": device,
        "level": level,
        "seed": seed,
        "threads": threads,
        "trust": found["trust"],
        "reasons": found["reasons"],
        "results": results,
        "seconds": seconds,
    }


def run_all(
    runs: Sequence[tuple[str, str, int]], jobs: int, threads: int, path: Path | None
) -> Iterator[dict[str, Any]]:
    """Results of (device, level, seed), those known already first; each is kept as it comes."""
    path = path or Path(os.devnull)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    known = {(r["device"], r["level"], r["seed"]): r for r in map(json.loads, lines)}
    yield from (known[run] for run in runs if run in known)
    left = [run for run in runs if run not in known]
    with ThreadPoolExecutor(jobs) as pool, open(path, "a", encoding="utf-8") as file:
        waiting = [pool.submit(qualify, *run, threads) for run in left]
        for done in as_completed(waiting):
            result = done.result()
            file.write(json.dumps(result) + "\n")
            file.flush()
            yield result


def noted(
    results: Iterator[dict[str, Any]], found: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The same results, each kept in `found` as it passes."""
    for result in results:
        found.append(result)
        yield result


def failed(result: dict[str, Any]) -> list[str]:
    return [name for name, (outcome, _) in result["results"].items() if outcome == "fail"]


def until(result: dict[str, Any], check: str) -> float:
    """Seconds of all checks up to the end of `check`."""
    total = 0.0
    for name, (_, seconds) in result["results"].items():
        total += seconds
        if name == check:
            break
    return total


def show_defects(results: Iterator[dict[str, Any]]) -> bool:
    """A Markdown table; whether every defect was found, with the right verdict."""
    print("| class | defect | found by | after s | verdict | right |")
    print("|---|---|---|---|---|---|")
    right = True
    for result in results:
        name = result["device"].removeprefix("sim:")
        checks, expected = failed(result), DEFECTS[name].trust
        good = bool(checks) and Trust(result["trust"]) is expected
        right = right and good
        after = f"{until(result, checks[0]):.0f}" if checks else "–"
        verdict = "yes" if good else f"**no: {expected}**"
        print(
            f"| {DEFECTS[name].failure} | {name} | {', '.join(checks) or '**nothing**'} | {after} "
            f"| {result['trust']} | {verdict} |",
            flush=True,
        )
    return right


def show_healthy(results: Iterator[dict[str, Any]]) -> bool:
    """Runs and alarms of each device and level; whether there was no alarm."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        rows.setdefault((result["device"], result["level"]), []).append(result)
        if result["trust"] != Trust.TRAIN:
            print(f"ALARM {result['device']} seed {result['seed']}: {result['reasons']}")
    print("| device | level | runs | certified to train | seconds a run, median (min-max) |")
    print("|---|---|---|---|---|")
    for (device, level), found in rows.items():
        good = sum(result["trust"] == Trust.TRAIN for result in found)
        seconds = [result["seconds"] for result in found]
        spread = f"{median(seconds):.0f} ({min(seconds):.0f}-{max(seconds):.0f})"
        print(f"| {device} | {level} | {len(found)} | {good} | {spread} |")
    return all(r["trust"] == Trust.TRAIN for found in rows.values() for r in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("defects", "healthy", "levels"))
    parser.add_argument("--level", choices=("quick", "default"), default="default")
    parser.add_argument("--rounds", type=int, default=20, help="of healthy (default: 20)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="of torch, a run (default: 1)")
    parser.add_argument("--results", type=Path, help="JSON Lines, appended to")
    parser.add_argument("--only", nargs="*", default=sorted(DEFECTS), help="defects")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    given = parser.parse_args()
    print(json.dumps(environment()))
    match given.what:
        case "defects":
            runs = [(f"sim:{name}", given.level, 0) for name in given.only]
        case "healthy":
            runs = [(device, given.level, n) for n in range(given.rounds) for device in DEVICES]
        case "levels":
            runs = [(device, level, 0) for level in ("quick", "default") for device in DEVICES]
    found: list[dict[str, Any]] = []
    results = noted(run_all(runs, given.jobs, given.threads, given.results), found)
    show = show_defects if given.what == "defects" else show_healthy
    right = show(results)
    if given.json is not None:
        setting = {name: str(value) for name, value in vars(given).items()}
        figures = {"environment": environment(), "setting": setting, "result": found}
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    # How long a level takes is no verdict: what was wrong stands in the table, and above it.
    sys.exit(0 if right or given.what == "levels" else 1)


if __name__ == "__main__":
    main()
