"""Each credit and loss rule on the demo's task: held-out accuracy after equal steps, per seed.

    rule x seed ──> interlock train recipes/demo.toml + its settings ──> interlock eval ──> one row

The settings are those of the table in docs/recipes.md. Every arm of a seed sees the same problems
in the same order and takes as many optimizer steps; four of each batch, for with one all rules are
the same gradient but for its scale. A run that is finished is not run again, one that was cut off
goes on.

    python bench/credit_rules.py --seeds 0 1 2 --runs runs/credit-rules --json credit_rules.json
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

from environment import environment
from interlock.rundir import RunDir
from resumed import finish

RECIPE = Path(__file__).parent.parent / "recipes" / "demo.toml"
INTERLOCK = Path(sys.executable).with_name("interlock")
COMMON = [
    "stage.steps=15",
    "stage.problems_per_step=8",
    "stage.updates_per_step=4",
    "stage.optimizer.lr=1e-5",  # a third of the demo's, for four times as many updates
    "stage.eval.problems=16",  # the weights are measured on all of them behind the run
]
RULES = {
    "GRPO": ["loss.normalize=sequence", "loss.kl_beta=0.001"],
    "DAPO": ["loss.clip_high=0.28", "loss.overlong_zone=8", "extra_groups=6"],
    "Dr.GRPO": ["loss.normalize=constant", "loss.advantage=mean"],
    "RLOO": ["loss.advantage=leave_one_out"],
    "GSPO": ["loss.rule=gspo", "loss.normalize=sequence"],
    "CISPO": ["loss.rule=cispo", "loss.advantage=batch_std"],
    "SAPO": ["loss.rule=sapo", "loss.normalize=sequence"],
    "DPPO": ["loss.rule=dppo", "loss.correction=bypass", "loss.advantage=mean"],
    "V3.2": [
        "loss.advantage=mean",
        "loss.kl_beta=0.001",
        "loss.kl_estimate=unbiased",
        "loss.off_policy_quantile=0.99",
    ],
}


@dataclass(frozen=True)
class Result:
    """`accuracy`: the share of the held-out problems answered right, greedily, after the last step.

    `masked` is the mean share of tokens without a gradient, `answers` the number sampled.
    """

    rule: str
    seed: int
    accuracy: float
    masked: float
    answers: int
    minutes: float


def train(rule: str, seed: int, held_out: int, directory: Path, settings: list[str]) -> None:
    """Begin or go on, unless it is finished. Raises CalledProcessError when it fails."""
    command = [str(INTERLOCK), "train", str(RECIPE), f"seed={seed}", *COMMON]
    command += [f"stage.task.held_out={held_out}"]
    command += [f"stage.{each}" for each in RULES[rule]] + settings
    finish(command, directory)


def result(rule: str, seed: int, held_out: int, directory: Path) -> Result:
    """Of a finished run, whose accuracy is kept beside it."""
    view, kept = RunDir.read(directory), directory.with_suffix(".json")
    if not kept.exists():
        command = [str(INTERLOCK), "eval", str(directory), "--problems", str(held_out), "--json"]
        kept.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    steps = [line for line in view.metrics() if line.rollout.groups]
    answers = sum(
        len(scored.group.completions)
        for place in view.ledger.steps()
        for scored in view.ledger.read(*place)
    )
    minutes = sum(each.ended - each.started for each in view.manifest.sessions if each.ended) / 60
    masked = fmean(line.update.masked_share or 0.0 for line in steps)
    accuracy = json.loads(kept.read_bytes())["accuracy"]
    return Result(rule, seed, accuracy, masked, answers, minutes)


def show(results: list[Result]) -> None:
    """A Markdown table, as RESULTS.md has it."""
    print("| rule | accuracy, mean of seeds | each | masked | answers | minutes |")
    print("|---|---|---|---|---|---|")
    for rule in dict.fromkeys(each.rule for each in results):
        rows = [each for each in results if each.rule == rule]
        accuracies = [row.accuracy for row in rows]
        spread = f" ± {stdev(accuracies):.1%}" if len(rows) > 1 else ""
        print(
            f"| {rule} | {fmean(accuracies):.1%}{spread} | "
            f"{', '.join(f'{share:.1%}' for share in accuracies)} | "
            f"{fmean(row.masked for row in rows):.2%} | {fmean(row.answers for row in rows):,.0f} "
            f"| {fmean(row.minutes for row in rows):.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of the recipe")
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--problems", type=int, default=1024, metavar="N", help="held out")
    parser.add_argument("--runs", type=Path, default=Path("runs/credit-rules"), metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    results = []
    for seed in given.seeds:
        for rule in given.rules:
            directory = given.runs / f"{rule}-{seed}".replace(".", "")
            train(rule, seed, given.problems, directory, given.settings)
            results.append(result(rule, seed, given.problems, directory))
    show(results)
    if given.json:
        rows = [asdict(each) for each in results]
        figures = {"environment": environment(), "settings": given.settings, "results": rows}
        given.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
