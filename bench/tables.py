"""The tables of RESULTS.md from the figures that benchmarks wrote; the last step of `make bench`.

    NAME.json ──> its function in RENDERERS ──> between <!-- NAME --> and <!-- end NAME -->

    python bench/tables.py runs/bench [--into bench/RESULTS.md]

Everything outside of the markers is kept byte for byte. A benchmark without a file keeps what it
has, and is named. A file that is unknown or damaged, and a marker that is not there exactly once,
is one line and exit code 2; nothing is written then.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from interlock.errors import RunError
from interlock.rundir import write_atomically

Figures = Mapping[str, Any]  # what a benchmark wrote with --json

RESULTS = Path(__file__).with_name("RESULTS.md")
NAMES = {
    "interlock": "Interlock",
    "transformers": "transformers",
    "trl": "TRL",
    "vllm": "vLLM",
    "ray": "Ray",
}
NOT_REACHED = "not reached"


class TablesError(Exception):
    """What is wrong, in a line."""


def title(name: str) -> str:
    return NAMES.get(name, name)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [
        "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"
        for cells in (heads, *rows)
    ]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def block(figures: Figures, packages: Sequence[str], setting: str, *tables: str) -> str:
    """A line of date, machine, versions and settings, then the tables."""
    facts, settings = figures["environment"], figures.get("setting", {})
    used = [name for name in ("python", *packages) if name in facts]
    parts = [
        facts["date"],
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory']}",
        ", ".join(f"{title(name)} {facts[name]}" for name in used),
        setting.format(**settings),
    ]
    if "threads" not in settings:
        parts.append(f"OMP_NUM_THREADS {facts.get('OMP_NUM_THREADS', 'not set')}")
    return "\n\n".join(["; ".join(parts) + ".", *tables])


def number(value: float, digits: int) -> str:
    return NOT_REACHED if math.isinf(value) else f"{value:.{digits}f}"


def spread(figure: Figures, digits: int, unit: str = "", scale: float = 1.0) -> str:
    """Median (minimum-maximum)."""
    middle, low, high = (number(scale * figure[key], digits) for key in ("median", "min", "max"))
    return f"{middle}{unit} ({low}-{high})"


def percent(figure: Figures, digits: int = 1) -> str:
    return spread(figure, digits, " %", 100.0)


def ratio(figure: Figures) -> str:
    return f"**{figure['median']:.2f}** ({figure['min']:.2f}-{figure['max']:.2f})"


def of(values: Sequence[float]) -> Figures:
    return {"median": median(values), "min": min(values), "max": max(values)}


def rollout(figures: Figures) -> str:
    result, ready = figures["result"], figures["ready_s"]
    rows = [[title(name), spread(result[name], 0), f"{ready[name]:.1f} s"] for name in ready]
    for name in list(ready)[1:]:
        row = f"Interlock / {title(name)}, round by round"
        rows.append([row, ratio(result[f"ratio to {name}"]), ""])
    return block(
        figures,
        ("torch", "transformers", "vllm"),
        "{prompts} prompts x {group}, {new_tokens} new tokens, {dtype}, {threads} threads, "
        "{rounds} rounds",
        table(["", "tokens per second", "ready after"], rows),
    )


def decode(figures: Figures) -> str:
    found = {(row["rows"], row["context"]): row for row in figures["result"]}
    contexts = list(dict.fromkeys(context for _, context in found))

    def cell(row: Figures) -> str:
        if row["seconds"] is None:
            return f"not run: {row['kept_bytes'] / 1e9:.1f} GB"
        share = row["bound"] / row["seconds"]
        return f"{spread(of(row['rounds']), 2, ' ms', 1e3 / row['rows'])}, {100 * share:.0f} %"

    return block(
        figures,
        ("torch",),
        "{dtype}, {threads} threads, {rounds} rounds, {own} tokens of each sequence alone",
        table(
            ["sequences", *(f"context {context}" for context in contexts)],
            [
                [str(rows), *(cell(found[rows, context]) for context in contexts)]
                for rows in dict.fromkeys(rows for rows, _ in found)
            ],
        ),
    )


def decode_groups(figures: Figures) -> str:
    """Of the smallest group against the largest."""
    taken = [row for row in figures["result"] if row["seconds"] is not None]
    small, *_, large = sorted({row["group"] for row in taken})
    found = {(row["rows"], row["context"], row["group"]): row for row in taken}
    rows = []
    for count, context in dict.fromkeys((count, context) for count, context, _ in found):
        sides = [found[count, context, group] for group in (small, large)]
        gain = of([a / b for a, b in zip(*(side["rounds"] for side in sides), strict=True)])
        kept = [side["kept_bytes"] for side in sides]
        rows.append(
            [
                str(count),
                str(context),
                *(spread(of(side["rounds"]), 0, " ms", 1e3) for side in sides),
                ratio(gain),
                *(f"{size / 1e9:.2f} GB" for size in kept),
                f"{100 - 100 * kept[1] / kept[0]:.0f} %",
            ]
        )
    groups = [f"groups of {small}", f"groups of {large}"]
    heads = ["sequences", "context", f"a step, {groups[0]}", groups[1], "gain, round by round"]
    heads += [f"keys and values, {groups[0]}", groups[1], "saved"]
    setting = "{dtype}, {threads} threads, {rounds} rounds, {own} tokens of each sequence alone"
    return block(figures, ("torch",), setting, table(heads, rows))


def learner(figures: Figures) -> str:
    result = figures["result"]
    return block(
        figures,
        ("torch", "transformers"),
        "{problems} x {completions} completions of {length} tokens after {prompt}, {dtype}, "
        "{threads} threads, {rounds} rounds, transformers in micro-batches of {micro_batch}",
        table(
            ["", "effective tokens per second"],
            [
                ["Interlock", spread(result["interlock"], 0)],
                ["transformers + AdamW", spread(result["transformers"], 0)],
                ["Interlock / transformers, round by round", ratio(result["ratio"])],
                ["Interlock, of the measured GEMM peak", percent(result["share of peak"], 0)],
            ],
        ),
    )


def grpo_step(figures: Figures) -> str:
    summary, trl, rounds = figures["summary"], figures["trl"], len(figures["rounds"]["ours"])

    def row(name: str, side: Figures) -> list[str]:
        low, high = side["seconds_range"]
        return [
            name,
            f"{side['seconds']:.1f} ({low:.1f}-{high:.1f})",
            f"{side['generate_s']:.1f}",
            f"{side['ms_per_token']:.1f}",
            f"{side['peak_rss_mb'] * 2**20 / 1e9:.1f} GB",
        ]

    low, high = summary["ratio_range"]
    paired = ratio({"median": summary["ratio"], "min": low, "max": high})
    last = ["TRL / Interlock, round by round", paired, "", f"{summary['ratio_per_token']:.2f}", ""]
    return block(
        figures,
        ("torch", "transformers", "trl"),
        f"{figures['dtype']}, {rounds} rounds, TRL with {trl['weights']} weights in micro-batches "
        f"of {trl['micro_batch']}",
        table(
            ["", "seconds a step", "of it generation", "ms per generated token", "peak memory"],
            [row("Interlock", summary["ours"]), row("TRL", summary["trl"]), last],
        ),
    )


def demo_seeds(figures: Figures) -> str:
    seeds = figures["seeds"]
    steps = [step for step, _ in seeds[0]["curve"]]
    columns = [
        [accuracy for _, accuracy in each]
        for each in zip(*(seed["curve"] for seed in seeds), strict=True)
    ]
    rows = [
        [
            str(seed["seed"]),
            *(f"{100 * accuracy:.1f} %" for _, accuracy in seed["curve"]),
            f"{seed['minutes']:.1f}",
        ]
        for seed in seeds
    ]
    minutes = spread(of([seed["minutes"] for seed in seeds]), 1)
    rows.append(["median", *(percent(of(column)) for column in columns), minutes])
    heads = ["seed", "before", *(f"after {step}" for step in steps[1:]), "minutes"]
    return block(figures, ("torch",), "{recipe}", table(heads, rows))


def time_to_half(figures: Figures) -> str:
    result = figures["result"]
    sides = [
        [math.inf if value is None else value for value in result[name][key]]
        for name in ("interlock", "trl")
        for key in ("seconds_to_half", "steps_to_half")
    ]
    rows = [
        [
            str(place),
            *(number(value, 0) for value in values),
            "–" if paired is None else f"{paired:.2f}",
        ]
        for place, (*values, paired) in enumerate(zip(*sides, result["ratio"], strict=True), 1)
    ]
    paired = [value for value in result["ratio"] if value is not None]
    told = f", {len(paired)} of {len(rows)} runs" if len(paired) < len(rows) else ""
    last = ratio(of(paired)) + told if paired else "–"
    rows.append(["median", *(spread(of(side), 0) for side in sides), last])
    heads = ["run", "Interlock: seconds", "steps", "TRL: seconds", "steps", "TRL / Interlock"]
    chosen = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in figures["setting"].items()
        if name != "json" and value != "None"
    ]
    setting = ", ".join(chosen).replace("{", "{{").replace("}", "}}")
    return block(figures, ("torch", "transformers", "trl"), setting, table(heads, rows))


def sync(figures: Figures) -> str:
    result = figures["result"]
    rates = {name: found for name, found in result.items() if name.startswith("lr ")}
    links = {name: found for name, found in result.items() if name not in rates}
    shown = [
        ("weights changed", "changed", " %"),
        ("bytes of a delta, of the full bytes", "share", " %"),
        ("publish (encode, write, fsync)", "publish_s", " s"),
        ("fetch (read, apply, verify every tensor)", "fetch_s", " s"),
        ("encode, GB of model per second", "encode_gb_s", ""),
        ("apply and verify, GB of model per second", "apply_gb_s", ""),
    ]
    rows = [
        [
            name,
            *(spread(found[key], 2, unit, 100 if "%" in unit else 1) for found in rates.values()),
        ]
        for name, key, unit in shown
    ]
    shares = [f"{100 * found['anchor share']['median']:.0f} %" for found in rates.values()]
    seconds = [f"{found['anchor publish_s']['median']:.1f} s" for found in rates.values()]
    rows += [["bytes of the anchor, of the full bytes", *shares], ["publish the anchor", *seconds]]
    return block(
        figures,
        ("torch",),
        "{versions} deltas per learning rate, {rows} texts a step, {threads} threads to train, "
        "one to encode and apply",
        table(["", *map(plain, rates)], rows),
        *(link(name, found) for name, found in links.items()),
    )


def plain(name: str) -> str:
    """lr 1e-06 as people write it."""
    return name.replace("e-0", "e-")


def link(name: str, found: Figures) -> str:
    """What a slow link makes of deltas and of full weights."""
    steps = [key.split(", ")[2] for key in found if key.startswith("waiting, delta")]
    waits = [spread(found["delta, s"], 2, " s"), f"{found['plain, s']['median']:.0f} s"]
    rows = [
        ["one version", *waits],
        ["the first version", f"{found['anchor, s']['median']:.0f} s", waits[1]],
    ]
    for step in steps:
        shares = (found[f"waiting, {kind}, {step}"]["median"] for kind in ("delta", "plain"))
        rows.append([f"share of wall time, {step}", *(f"{100 * share:.1f} %" for share in shares)])
    return table([plain(name), "deltas", "full weights"], rows)


def coordinator(figures: Figures) -> str:
    pairs: dict[tuple[int, str], dict[bool, Figures]] = {}
    for row in figures["result"]:
        pairs.setdefault((row["workers"], row["fleet"]), {})[row["ledger"]] = row
    heads = ["workers", "fleet", "CPU ms a group", "with ledger", "groups/s with ledger"]
    heads += ["round trip with ledger, ms", "started after"]
    return block(
        figures,
        ("torch", "ray"),
        "groups of {completions} completions x {tokens} tokens, {rounds} rounds",
        table(
            heads,
            [
                [
                    str(workers),
                    title(fleet),
                    spread(found[False]["cpu_ms"], 2),
                    spread(found[True]["cpu_ms"], 2),
                    spread(found[True]["per_s"], 0),
                    spread(found[True]["trip_ms"], 1),
                    f"{found[True]['start_s']:.1f} s",
                ]
                for (workers, fleet), found in pairs.items()
            ],
        ),
    )


def recovery(figures: Figures) -> str:
    def cell(row: Figures | None, name: str) -> str:
        if row is None or row[name] is None:
            return "–"
        return "stops " * (name == "whole" and bool(row["stopped"])) + spread(row[name], 2)

    rows = []
    for fault, found in figures["result"].items():
        alone, beside = found["alone"], found.get("beside another")
        lost = alone["lost"] + (beside["lost"] if beside else 0)
        cells = [cell(alone, "noticed"), cell(alone, "whole"), cell(beside, "whole")]
        rows.append([fault, *cells, str(lost)])
    heads = ["fault", "noticed", "whole, alone", "whole, beside another", "groups lost"]
    setting = "{repeats} times each, backoff_s {backoff_s}"
    return block(figures, ("torch",), setting, table(heads, rows))


def qualify(figures: Figures) -> str:
    if (what := figures["setting"]["what"]) != "levels":
        raise ValueError(f"made by `qualify.py {what}`, not by `levels`")
    return block(
        figures,
        ("torch",),
        "{threads} threads, {jobs} at a time",
        table(
            ["device", "level", "seconds", "certified to"],
            [
                [row["device"], row["level"], f"{row['seconds']:.0f}", row["trust"]]
                for row in figures["result"]
            ],
        ),
    )


RENDERERS: dict[str, Callable[[Figures], str]] = {
    "demo_seeds": demo_seeds,
    "time_to_half": time_to_half,
    "grpo_step": grpo_step,
    "grpo_step-bfloat16": grpo_step,
    "rollout": rollout,
    "rollout-bfloat16": rollout,
    "decode": decode,
    "decode-groups": decode_groups,
    "learner": learner,
    "learner-long": learner,
    "learner-bfloat16": learner,
    "sync": sync,
    "coordinator": coordinator,
    "recovery": recovery,
    "qualify": qualify,
}


def rendered(path: Path) -> str:
    """The block of one file."""
    if path.stem not in RENDERERS:
        raise TablesError(f"{path}: no benchmark of this name; known: {', '.join(RENDERERS)}")
    try:
        figures = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TablesError(f"{path}: {error}; run its benchmark again") from None
    try:
        return RENDERERS[path.stem](figures)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise TablesError(f"{path}: not this benchmark's figures ({what})") from None


def replaced(text: str, name: str, content: str) -> str:
    """`text` with `content` between the markers of `name`."""
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    for marker in (begin, end):
        if (count := text.count(marker)) != 1:
            raise TablesError(f"{marker} stands there {count} times, not once")
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise TablesError(f"{end} stands before {begin}")
    return f"{before}{begin}\n{content}\n{end}{after}"


def update(folder: Path, results: Path) -> list[str]:
    """Rewrite `results` from the files of `folder`; the benchmarks whose tables were written."""
    if not folder.is_dir():
        raise TablesError(f"{folder}: no such folder; `make bench` makes it")
    blocks = {path.stem: rendered(path) for path in sorted(folder.glob("*.json"))}
    try:
        text = results.read_bytes().decode()
        for name, content in blocks.items():
            text = replaced(text, name, content)
        write_atomically(results, text.encode())
    except (OSError, UnicodeDecodeError, RunError) as error:
        raise TablesError(f"{results}: {error}") from None
    except TablesError as error:
        raise TablesError(f"{results}: {error}") from None
    return list(blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the benchmarks wrote NAME.json")
    parser.add_argument("--into", type=Path, default=RESULTS, metavar="FILE")
    given = parser.parse_args()
    try:
        written = update(given.folder, given.into)
    except TablesError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"written: {', '.join(written) or 'nothing'}")
    if left := [name for name in RENDERERS if name not in written]:
        print(f"left as it was: {', '.join(left)}")


if __name__ == "__main__":
    main()
