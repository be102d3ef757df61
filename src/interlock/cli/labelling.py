"""`interlock label DATA`: how a model stands to every problem of a data set."""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from interlock.config.reading import parse_sampling, parse_task
from interlock.config.schema import GeneratorSettings
from interlock.errors import ConfigError


def add_label(choices: Any) -> None:
    verb = choices.add_parser(
        "label",
        help="measure which problems of a data set teach a model, and which are wrong",
        description="Goes on where it stopped: what is in --out is not measured again.",
    )
    verb.add_argument("data", metavar="DATA", help="JSONL, Parquet, a directory or hf:org/name")
    verb.add_argument(
        "settings", nargs="*", metavar="key=value", help="of the task: options.instruction=…"
    )
    verb.add_argument("--model", required=True, help="a model directory, a run or hf:org/name")
    verb.add_argument("--out", type=Path, default=Path("labels.jsonl"), metavar="FILE")
    verb.add_argument("--task", default="jsonl", help="jsonl (default) or gsm8k")
    verb.add_argument("--samples", type=int, default=8, metavar="N", help="answers to each (8)")
    verb.add_argument("--temperature", type=float, default=1.0, help="default: 1")
    verb.add_argument("--max-tokens", type=int, default=256, metavar="N", help="default: 256")
    verb.add_argument("--stop", action="append", metavar="TEXT", help="ends an answer; repeatable")
    verb.add_argument(
        "--easy", type=float, default=0.95, metavar="SHARE", help="right from here on: too easy"
    )
    verb.add_argument(
        "--hard", type=float, default=0.0, metavar="SHARE", help="right up to here: too hard"
    )
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (0)")
    verb.add_argument("--device", default="cpu", help="default: cpu")
    verb.set_defaults(verb=label)


def label(given: argparse.Namespace) -> None:
    """Measure, a line of progress for every part; then how many there are of each mark."""
    if not 1 <= given.samples <= 1024:
        raise ConfigError(f"--samples {given.samples}: give a number from 1 to 1024")
    if not 0 <= given.hard < given.easy <= 1:
        raise ConfigError(
            f"--hard {given.hard:g} and --easy {given.easy:g}: give shares of which the first is "
            "the smaller, such as 0 and 0.95"
        )
    if given.out.is_dir():
        raise ConfigError(f"--out {given.out} is a directory; give the name of a file")
    task = parse_task(given.task, 1, [f"options.path={given.data}", *given.settings])
    sampling = parse_sampling(given.temperature, given.max_tokens, given.stop or [])

    from interlock.label.measuring import Measuring, label_all

    began = time.monotonic()
    drawn = 0

    def progress(done: int, total: int, tokens: int) -> None:
        nonlocal drawn
        drawn = tokens
        spent = time.monotonic() - began
        print(f"{done}/{total} problems, {tokens:,} tokens, {spent:.0f} s", file=sys.stderr)

    how = Measuring(task, given.samples, sampling, given.easy, given.hard, given.seed)
    generator = GeneratorSettings(device=given.device)
    rows = label_all(
        how, given.model, given.out, generator, lambda note: print(note, file=sys.stderr), progress
    )
    counts = Counter(row.mark for row in rows)
    for mark, count in counts.most_common():
        print(f"{mark:10} {count:6,}  {count / len(rows):6.1%}")
    print(f"{given.out}: {len(rows):,} problems; {drawn:,} tokens in {_time(began)}")


def _time(began: float) -> str:
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
