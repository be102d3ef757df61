"""What planted faults of the verifiers' machinery cost the demo: nothing, where they are left out.

    arm ──> interlock's train on recipes/demo.toml, a share of all verdicts replaced ──> one row

    clean      no fault
    left_out   a fifth of the answers, chosen by a hash of each, has no verifier, whatever is tried
    zeros      the same answers score 0, as where such faults count as failures

Held-out accuracy is measured on whole evaluations of the weights, by `interlock eval` in all arms.
Counted in the ledger: right answers that score 0, of which `left_out` must have none.

    python bench/planted_faults.py --seeds 0 1 2 --runs runs/planted --json planted.json
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from statistics import fmean, stdev

from environment import environment
from interlock.config.reading import load_recipe
from interlock.recipes.train import train
from interlock.records.rl import Attempt, Problem, Verdict, VerdictStatus
from interlock.rundir import RunDir
from interlock.tasks.arithmetic import verify
from interlock.tasks.verifier_pool import VerifierProcess

RECIPE = Path(__file__).parent.parent / "recipes" / "demo.toml"
INTERLOCK = Path(sys.executable).with_name("interlock")
PROBLEMS = 512  # held out, and answered behind each run
COMMON = [
    "stage.steps=12",  # which teach the demo's task for the most part
    "stage.problems_per_step=8",
    "stage.eval.problems=16",
    f"stage.task.held_out={PROBLEMS}",
    "stage.task.retries=1",
    "stage.task.retry_s=1",
]
ARMS = ("clean", "left_out", "zeros")
CAUSE = "a planted fault"
Judge = Callable[[VerifierProcess, Attempt], Verdict]


@dataclass(frozen=True)
class Result:
    """`planted` are verdicts that were replaced, `fake_zeros` right answers that count as wrong."""

    arm: str
    seed: int
    accuracy: float
    planted: int
    answers: int
    fake_zeros: int


def is_planted(problem: Problem, answer: str, share: float) -> bool:
    digest = sha256(f"{problem.id}\0{answer}".encode(errors="replace")).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def planted(arm: str, share: float, judge: Judge) -> Judge:
    """The verifier's verdicts, but for a share of them."""
    lost = Verdict.failed(VerdictStatus.UNAVAILABLE, CAUSE)
    instead = Verdict(0.0) if arm == "zeros" else lost

    def faulty(self: VerifierProcess, attempt: Attempt) -> Verdict:
        hit = is_planted(attempt.problem, attempt.text, share)
        return instead if hit else judge(self, attempt)

    return judge if arm == "clean" else faulty


def train_one(arm: str, seed: int, share: float, directory: Path, settings: list[str]) -> None:
    """In a process of its own, for what is replaced stays so."""
    VerifierProcess.verify = planted(arm, share, VerifierProcess.verify)  # type: ignore[assignment, method-assign]
    train(load_recipe(RECIPE, [f"seed={seed}", *COMMON, *settings]), directory)


def result(arm: str, seed: int, share: float, directory: Path) -> Result:
    """Of a finished run; accuracy by a process in which nothing is planted."""
    command = [str(INTERLOCK), "eval", str(directory), "--problems", str(PROBLEMS), "--json"]
    measured = subprocess.run(command, check=True, capture_output=True)
    view = RunDir.read(directory)
    verdicts = [
        (scored.group.problem, answer.text, verdict)
        for place in view.ledger.steps()
        for scored in view.ledger.read(*place)
        for answer, verdict in zip(scored.group.completions, scored.verdicts, strict=True)
    ]
    hit = [each for each in verdicts if arm != "clean" and is_planted(each[0], each[1], share)]
    fake = [verdict.status.counts and verify(problem, text) for problem, text, verdict in hit]
    accuracy = json.loads(measured.stdout)["accuracy"]
    return Result(arm, seed, accuracy, len(hit), len(verdicts), sum(fake))


def show(results: list[Result]) -> None:
    """A Markdown table, as RESULTS.md has it."""
    print("| arm | held-out accuracy, mean over seeds | spread | planted | right answers at 0 |")
    print("|---|---|---|---|---|")
    for arm in dict.fromkeys(each.arm for each in results):
        rows = [each for each in results if each.arm == arm]
        accuracies = [row.accuracy for row in rows]
        spread = f"{stdev(accuracies):.1%}" if len(rows) > 1 else "–"
        share = sum(row.planted for row in rows) / sum(row.answers for row in rows)
        zeros = sum(row.fake_zeros for row in rows)
        print(f"| {arm} | {fmean(accuracies):.1%} | {spread} | {share:.1%} | {zeros} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--share", type=float, default=0.2, help="of the verdicts")
    parser.add_argument("--runs", type=Path, required=True, help="a new directory")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--arm", choices=ARMS, help="train this arm alone, for one seed")
    parser.add_argument("settings", nargs="*", help="of the recipe, such as stage.steps=2")
    given = parser.parse_args()
    if given.arm:
        train_one(given.arm, given.seeds[0], given.share, given.runs, given.settings)
        return
    results = []
    for seed in given.seeds:
        for arm in ARMS:
            directory = given.runs / f"{arm}-{seed}"
            command = [sys.executable, __file__, "--arm", arm, "--seeds", str(seed)]
            command += ["--share", str(given.share), "--runs", str(directory), *given.settings]
            subprocess.run(command, check=True)
            results.append(result(arm, seed, given.share, directory))
    show(results)
    if given.json:
        rows = [asdict(each) for each in results]
        given.json.write_text(json.dumps({"results": rows, "environment": environment()}, indent=1))


if __name__ == "__main__":
    main()
