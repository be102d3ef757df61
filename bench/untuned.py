"""One recipe on five generators of reasoning-gym that it was not tuned on: before and after.

    generator ──> interlock train recipes/reasoning-gym.toml + its name ──> metrics, events ──> row
                  (a cold start on right answers, then GRPO)

The five were written down here before any of them was run with the recipe, which was developed on
others. letter_counting and spell_backward did not move with the demo's settings. What is measured,
before it, after the cold start and after all, is what greedy answers to the same held-out problems
earn by the generator's own scorer, and the share that is right; the two are one for scorers that
pay all or nothing. A generator has learned where Wilson's 95 % interval of what is earned lies
above the one before; of rewards between 0 and 1 that interval is too wide, if anything.
`commonest`: the share of these problems whose right answer is the most frequent one, which is had
for saying it always. A run that is finished is not run again, one that was cut off goes on.

    python bench/untuned.py --runs runs/untuned --json untuned.json
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path

from environment import environment
from interlock.errors import RunError
from interlock.rundir import RunDir

GENERATORS = ("letter_counting", "spell_backward", "chain_sum", "gcd", "number_sorting")
RECIPE = Path(__file__).parent.parent / "recipes" / "reasoning-gym.toml"
INTERLOCK = [sys.executable, "-m", "interlock.cli"]
CAUSES = (
    "nothing_taught",
    "little_taught",
    "form_never_met",
    "entropy_collapsed",
    "answers_cut",
    "accuracy_fell",
)
_Z = 1.959964  # of 95 %


@dataclass(frozen=True)
class Measured:
    """Means over the held-out problems."""

    earned: float
    right: float


@dataclass(frozen=True)
class Result:
    """`said`: why it did not learn, by itself."""

    generator: str
    problems: int
    before: Measured
    between: Measured  # the stages
    after: Measured
    commonest: float
    minutes: float
    said: list[str]

    @property
    def beyond_guessing(self) -> bool:
        """Whether it is better than to say the commonest answer always."""
        return interval(self.after.earned, self.problems)[0] > self.commonest

    @property
    def learned(self) -> bool:
        ends = [interval(each.earned, self.problems) for each in (self.before, self.after)]
        return ends[1][0] > ends[0][1]


def interval(share: float, problems: int) -> tuple[float, float]:
    """Wilson's score interval of a share of `problems` (JASA 22, 1927), at 95 %."""
    middle = share + _Z**2 / (2 * problems)
    half = _Z * sqrt(share * (1 - share) / problems + (_Z / (2 * problems)) ** 2)
    whole = 1 + _Z**2 / problems
    return (middle - half) / whole, (middle + half) / whole


def train(generator: str, directory: Path, settings: list[str]) -> None:
    """Begin or go on, unless it is finished. Raises CalledProcessError when it fails."""
    names = [f"stage.{place}.task.name=reasoning-gym/{generator}" for place in range(2)]
    command = [*INTERLOCK, "train", str(RECIPE), *names]
    try:
        with closing(RunDir.read(directory)) as run:
            if run.status == "finished":
                return
        resume = ["--resume"]
    except RunError:
        resume = []
    # 3: it came to its end for nothing, which is a result, too.
    done = subprocess.run([*command, *settings, "--run", str(directory), *resume], check=False)
    if done.returncode not in (0, 3):
        raise subprocess.CalledProcessError(done.returncode, command)


def result(generator: str, directory: Path) -> Result:
    with closing(RunDir.read(directory)) as run:
        found = [
            (line.stage, Measured(line.held_out_reward, line.accuracy))
            for line in run.metrics()
            if line.accuracy is not None and line.held_out_reward is not None
        ]
        held_out = run.ledger.read_evaluation(0, 0)
        said = [event.message for event in run.events() if event.kind in CAUSES]
        seconds = sum(each.ended - each.started for each in run.manifest.sessions if each.ended)
    last = dict(found)  # of each stage
    commonest = Counter(each.group.problem.answer for each in held_out).most_common(1)[0][1]
    share = commonest / len(held_out)
    measured = found[0][1], last[0], last[1]
    return Result(generator, len(held_out), *measured, share, seconds / 60, said)


def shown(measured: Measured, problems: int) -> str:
    low, high = interval(measured.earned, problems)
    right = "" if measured.right == measured.earned else f", {measured.right:.1%} right"
    return f"{measured.earned:.1%} [{low:.1%}, {high:.1%}]{right}"


def show(results: list[Result]) -> None:
    """A Markdown table, as RESULTS.md has it."""
    print(
        "| generator | before | after the cold start | after GRPO | learned | commonest answer |",
        end="",
    )
    print(" minutes | it said |\n|---|---|---|---|---|---|---|---|")
    for row in results:
        cells = [shown(each, row.problems) for each in (row.before, row.between, row.after)]
        learned = "yes" if row.learned else "no"
        if row.learned and not row.beyond_guessing:
            learned = "yes, no more than the commonest answer earns"
        print(
            f"| {row.generator} | {' | '.join(cells)} | {learned} | {row.commonest:.1%} "
            f"| {row.minutes:.1f} | {'; '.join(row.said) or 'nothing'} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of the recipe")
    parser.add_argument("--generators", nargs="+", default=list(GENERATORS), metavar="NAME")
    parser.add_argument("--runs", type=Path, default=Path("runs/untuned"), metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    results = []
    for generator in given.generators:
        train(generator, given.runs / generator, given.settings)
        results.append(result(generator, given.runs / generator))
    show(results)
    if given.json:
        rows = [
            asdict(each) | {"learned": each.learned, "beyond_guessing": each.beyond_guessing}
            for each in results
        ]
        figures = {"environment": environment(), "settings": given.settings, "results": rows}
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
