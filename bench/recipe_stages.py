"""A recipe of several stages, and what each of them is worth: accuracy, length, form, minutes.

    seed ──> interlock train RECIPE seed=N ──> stages/ and weights/ of the run ──> held-out problems
                                                                                        │
    a row for each stage and seed <── accuracy with its interval, tokens, form, minutes <┘

What is measured is kept as it comes: a run that was cut off goes on, and no model is measured
twice. Minutes of a stage are those of the clock, with its evaluations; of a resumed run they count
pauses.

    python bench/recipe_stages.py r1-tiny --seeds 0 1 2 --runs runs/r1-tiny --json r1-tiny.json
"""

import argparse
import json
import sys
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from environment import environment
from interlock.config.reading import parse_recipe
from interlock.config.schema import GeneratorSettings
from interlock.recipes.evaluate import measure, practised
from interlock.recipes.readable import thinks_first
from interlock.recipes.sinks import Sink
from interlock.records.passes import accuracy
from interlock.records.rl import of_tasks
from interlock.rundir import RunDir
from resumed import finish

RECIPES = Path(__file__).parent.parent / "recipes"
INTERLOCK = Path(sys.executable).with_name("interlock")


@dataclass(frozen=True)
class Measured:
    """A model's greedy answers to one task's held-out problems.

    `low`, `high`: the 95 % interval of the accuracy. `tokens`: the mean of an answer. `thinks`: the
    share of answers of one closed block of thinking and an answer behind it. `minutes`: of the
    stage that left the model.
    """

    seed: int
    stage: str
    task: str
    accuracy: float
    low: float
    high: float
    problems: int
    tokens: float
    thinks: float
    minutes: float


def train(recipe: Path, seed: int, directory: Path, settings: list[str]) -> None:
    """Begin or go on, unless it is finished. Raises CalledProcessError when it fails."""
    command = [str(INTERLOCK), "train", str(recipe), f"seed={seed}", *settings]
    finish(command, directory)


def models(run: Path) -> dict[str, tuple[str, float]]:
    """The model of each stage by its name, and the minutes that it took; the recipe's own first."""
    with closing(RunDir.read(run)) as view:
        recipe, lines = parse_recipe(view.config, source=str(run)), view.metrics()
        began = view.manifest.sessions[0].started
    found = {"model": (recipe.model.path, 0.0)}
    for index, stage in enumerate(recipe.stage):
        name = "-".join(filter(None, [f"{index:02d}", stage.name]))
        if stage.every_layer > 1:
            found[f"{stage.name or index}, before"] = (str(run / "stages" / f"{name}-begin"), 0.0)
        ended = max(line.time or 0.0 for line in lines if line.stage == index)
        last = index + 1 == len(recipe.stage)
        path = run / "weights" if last else run / "stages" / name
        found[stage.name or str(index)] = (str(path), (ended - began) / 60)
        began = ended
    return found


def measured(run: Path, seed: int, problems: int) -> list[Measured]:
    """Every model of a run, on the tasks of its last stage; what is known is in measured.json."""
    kept = run / "measured.json"
    rows = [Measured(**row) for row in json.loads(kept.read_text())] if kept.is_file() else []
    exam = practised(run)
    exam = exam._replace(problems=min(problems, *(task.held_out for task in exam.task)))
    for stage, (path, minutes) in models(run).items():
        if any(row.stage == stage for row in rows):
            continue
        answers = measure(path, exam, GeneratorSettings(slots=128), Sink())
        for task, scored in of_tasks(answers).items():
            share = accuracy(scored)
            turns = [turn for each in scored for turn in each.group.turns]
            lengths = [len(c.tokens) for each in scored for c in each.group.completions]
            thinks = fmean(map(thinks_first, turns))
            figures = share.mean, share.low, share.high, share.problems, fmean(lengths), thinks
            rows.append(Measured(seed, stage, task, *figures, minutes))
        kept.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return rows


def show(rows: list[Measured]) -> None:
    """A Markdown table, as RESULTS.md has it."""
    print("| after | task | seed | accuracy | 95 % | tokens | thinks | minutes |")
    print("|---|---|---|---|---|---|---|---|")
    for stage, task in dict.fromkeys((row.stage, row.task) for row in rows):
        for row in rows:
            if (row.stage, row.task) == (stage, task):
                print(
                    f"| {stage} | {task} | {row.seed} | {row.accuracy:.1%} | {row.low:.1%} to "
                    f"{row.high:.1%} | {row.tokens:.0f} | {row.thinks:.1%} | {row.minutes:.1f} |"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", help="r1-tiny, specialists, or a TOML file")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of the recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--problems", type=int, default=512, metavar="N", help="of each task")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="default: runs/RECIPE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    path = Path(given.recipe)
    recipe = path if path.suffix == ".toml" else RECIPES / f"{given.recipe}.toml"
    runs, rows = given.runs or Path("runs") / recipe.stem, []
    for seed in given.seeds:
        train(recipe, seed, runs / f"seed-{seed}", given.settings)
        rows += measured(runs / f"seed-{seed}", seed, given.problems)
    show(rows)
    if given.json:
        setting = {"recipe": recipe.name, "settings": given.settings}
        results = [asdict(row) for row in rows]
        figures = {"environment": environment(), "setting": setting, "results": results}
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
