"""What is chosen by measurement against everything that there is to choose: is it the best?

    python bench/kernels.py [--model DIR] [--rounds 3] [--threads 2] [--json result.json]

The same work, generating and one update, in every dtype and kernel that this CPU has, in turns
inside every round; chips/probe.py chooses among these from a few products. What the probe gives up
as hopeless is left out, and so is a dtype that is not admissible. Seconds are the median, and the
share is taken round by round: of the best way of the same work, in any dtype.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from environment import environment
from interlock.chips import device, heap, probe, speeds
from interlock.config.losses import LossSettings
from interlock.config.schema import GeneratorSettings, LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.engine.base import Request
from interlock.engine.portable.engine import open_engine
from interlock.learner.learner import Learner
from interlock.models.checkpoint import load_decoder
from interlock.models.fetch import find_model
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import Sampling
from learner import groups_of
from rollout import Endless, prompts_of

Way = tuple[str, str]  # dtype, kernel
NEW_TOKENS = 32


def generating(model: Path, way: Way, rows: int) -> Callable[[], Any]:
    settings = GeneratorSettings(dtype=way[0], kernel=way[1], slots=rows)  # type: ignore[arg-type]
    tokenizer = Tokenizer.load(model)
    engine = open_engine(settings, model, Endless(tokenizer))
    rule = Sampling(max_tokens=NEW_TOKENS)
    requests = [Request(str(i), p, 1, rule, 0) for i, p in enumerate(prompts_of(tokenizer, rows))]
    return lambda: engine.generate(requests)


def learning(model: Path, way: Way) -> Callable[[], Any]:
    settings = LearnerSettings(dtype=way[0], kernel=way[1])  # type: ignore[arg-type]
    decoder = load_decoder(model, torch.float32, torch.device("cpu"))
    learner = Learner(decoder, settings, OptimizerSettings(lr=1e-6), 1000)
    groups, loss = groups_of(2, 8, 40, 48), LossSettings(correction="off")
    return lambda: learner.step(groups, loss)


def in_turns(sides: dict[Way, Callable[[], Any]], rounds: int) -> dict[Way, list[float]]:
    """Seconds of each; a round goes before, uncounted."""
    found: dict[Way, list[float]] = {way: [] for way in sides}
    for number in range(rounds + 1):
        for way, run in sides.items():
            began = time.perf_counter()
            run()
            if number:
                found[way].append(time.perf_counter() - began)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    given = parser.parse_args()

    heap.keep_freed()
    torch.set_num_threads(given.threads)
    model, place = find_model(given.model, print), device.claim("cpu")
    table = speeds.measure(place)
    chosen = probe.choose(table)
    print(environment())
    print(f"the probe took {table.seconds:.2f} s", flush=True)
    able = [e for e in table.speeds if e.decode and e.error <= probe.LIMITS[e.dtype]]
    ways = [(each.dtype, each.kernel) for each in able]
    taken = {name: (chosen.dtype, chosen.generator) for name in ("64 rows", "4 rows")}
    taken["update"] = (chosen.dtype, chosen.learner)
    figures = {}
    print("| work | dtype | kernel | seconds | default / this | |\n" + "|---" * 6 + "|")
    for work, default in taken.items():
        if work == "update":
            sides = {way: learning(model, way) for way in ways if way[1] != "mkl"}
        else:
            sides = {way: generating(model, way, int(work.split()[0])) for way in ways}
        seconds = in_turns(sides, given.rounds)
        figures[work] = {" ".join(way): values for way, values in seconds.items()}
        for way, values in seconds.items():
            ratios = [ours / theirs for ours, theirs in zip(seconds[default], values, strict=True)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            mark = "taken" if way == default else ""
            row = (work, *way, f"{statistics.median(values):.2f}", spread, mark)
            print("| " + " | ".join(row) + " |", flush=True)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
