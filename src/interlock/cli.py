"""The command line: one function per verb.

What a verb needs is imported inside it, so that help is instant.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from interlock import __version__
from interlock.config import Task
from interlock.errors import ConfigError, InterlockError, UserError
from interlock.records import Sampling
from interlock.rundir import RunDir


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one verb and exit: 0 done, 1 the run failed, 2 the user's mistake, 130 interrupted."""
    try:
        given = _parse(arguments)
        given.verb(given)
    except UserError as error:
        _fail(error, 2)
    except InterlockError as error:
        _fail(error, 1)
    except ModuleNotFoundError as error:
        if (error.name or "interlock").partition(".")[0] == "interlock":
            raise
        _fail(f"this needs the package {error.name!r}; pip install 'interlock[demo]'", 2)
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away, as `| head` does
        sys.exit(0)
    sys.exit(0)


def _fail(error: object, code: int) -> NoReturn:
    print(f"interlock: {error}", file=sys.stderr)
    sys.exit(code)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Take key=value arguments behind the options too; argparse alone only takes those before."""
    parser = _parser()
    given, rest = parser.parse_known_args(arguments)
    if rest and not (hasattr(given, "settings") and all("=" in x and x[0] != "-" for x in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        given.settings += rest
    return given


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _fail(f"{message} (see {self.prog} --help)", 2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="interlock",
        description="Post-train reasoning models by reinforcement learning, and use them.",
    )
    parser.add_argument("--version", action="version", version=f"interlock {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    verb = verbs.add_parser(
        "demo", help="teach a small model addition, in minutes, on this machine"
    )
    verb.add_argument(
        "settings", nargs="*", metavar="key=value", help="change the recipe's settings"
    )
    verb.add_argument("--run", type=Path, metavar="DIR", help="run directory (default: runs/demo…)")
    verb.set_defaults(verb=demo)

    verb = verbs.add_parser("train", help="run a recipe")
    verb.add_argument("recipe", metavar="RECIPE.toml")
    verb.add_argument(
        "settings", nargs="*", metavar="key=value", help="change the recipe's settings"
    )
    verb.add_argument("--run", type=Path, metavar="DIR", help="run directory (default: runs/NAME…)")
    verb.add_argument("--resume", action="store_true", help="go on with the run in --run DIR")
    verb.set_defaults(verb=train)

    _add_eval(verbs)

    verb = verbs.add_parser("chat", help="talk to a model")
    verb.add_argument(
        "model", metavar="MODEL", help="a model directory, a hub id or a run directory"
    )
    verb.add_argument("--system", help="a system turn")
    verb.add_argument("--temperature", type=float, default=0.7, help="0 is greedy (default: 0.7)")
    verb.add_argument("--max-tokens", type=int, default=512, metavar="N", help="default: 512")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)")
    verb.add_argument("--device", default="cpu", help="default: cpu")
    verb.set_defaults(verb=chat)

    verb = verbs.add_parser("report", help="write a run's report as one HTML file")
    verb.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    verb.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/report.html")
    verb.set_defaults(verb=report)
    return parser


def _add_eval(verbs: Any) -> None:
    verb = verbs.add_parser(
        "eval",
        help="measure a model's accuracy on a task's held-out problems",
        description="A run directory is measured as the run was, unless --task names a task. "
        "Held out are the problems that a run with the same task settings never trained on.",
    )
    verb.add_argument(
        "model", metavar="MODEL", help="a model directory, a hub id or a run directory"
    )
    verb.add_argument(
        "settings", nargs="*", metavar="key=value", help="of the task: options.digits=3, seed=1, …"
    )
    verb.add_argument("--task", help="arithmetic, gsm8k, jsonl, reasoning-gym/NAME")
    verb.add_argument("--problems", type=int, metavar="N", help="default: 128")
    verb.add_argument("--max-tokens", type=int, metavar="N", help="default: 256, or the run's own")
    verb.add_argument("--stop", action="append", metavar="TEXT", help="ends an answer; repeatable")
    verb.add_argument(
        "--show", type=int, default=3, metavar="N", help="answers to show (default: 3)"
    )
    verb.add_argument("--device", default="cpu", help="default: cpu")
    verb.add_argument("--json", action="store_true", help="print one JSON object")
    verb.set_defaults(verb=evaluate)


def demo(given: argparse.Namespace) -> None:
    """The shipped demo recipe, then what it changed."""
    from interlock.recipes.shipped import DEMO

    given.recipe, given.resume = str(DEMO), False
    train(given)


def train(given: argparse.Namespace) -> None:
    """Run a recipe with a live display; then the figures and the report."""
    from rich.console import Console

    from interlock import config, terminal
    from interlock.recipes.train import train as run_recipe
    from interlock.report.page import write_report  # now: a missing plotly must not cost a run

    recipe = config.load(Path(given.recipe), given.settings)
    if given.resume and given.run is None:
        raise ConfigError("--resume needs --run DIR, the run to go on with")
    directory = given.run or _free_directory(recipe.name)
    if int(os.environ.get("RANK", "0")) > 0:  # torchrun's: it only helps the learner of rank 0
        run_recipe(recipe, directory, resume=given.resume)
        return
    console = Console(highlight=False, markup=False)
    console.print(f"run directory: {directory}", soft_wrap=True)
    try:
        with terminal.watching(console) as watch:
            run_recipe(recipe, directory, resume=given.resume, watch=watch)
    except KeyboardInterrupt:
        if not (directory / "manifest.json").exists():
            raise
        command = shlex.join(["interlock", "train", given.recipe, *given.settings])
        console.print(f"to go on: {command} --run {directory} --resume", soft_wrap=True)
        raise
    terminal.print_outcome(console, RunDir.read(directory))
    console.print(f"report: {write_report(directory).resolve()}", soft_wrap=True)


def evaluate(given: argparse.Namespace) -> None:
    """Greedy accuracy on held-out problems, with its 95 % interval."""
    from rich.console import Console

    from interlock import config, terminal
    from interlock.recipes.evaluate import accuracy, measure
    from interlock.report.summary import wilson

    count = 128 if given.problems is None else given.problems
    task, sampling = _what_to_measure(given, count)
    generator = config.Generator(device=given.device)
    console = Console(highlight=False, markup=False, stderr=given.json)
    with terminal.watching(console) as watch:
        scored = measure(_model(given.model), task, count, generator, sampling, watch)
    if given.json:
        low, high = wilson(accuracy(scored), len(scored))
        figures = {"accuracy": accuracy(scored), "low": low, "high": high, "problems": len(scored)}
        print(json.dumps(figures | {"model": given.model, "task": config.to_tree(task)}))
    else:
        terminal.print_accuracy(console, scored, given.show)


def _what_to_measure(given: argparse.Namespace, count: int) -> tuple[Task, Sampling]:
    """The task, and the limits of an answer: those of the command line, or the run's own."""
    from interlock import config

    if given.task:
        limit = 256 if given.max_tokens is None else given.max_tokens
        task = config.task(given.task, count, given.settings)
        return task, config.sampling(0.0, limit, given.stop or [])
    if not (Path(given.model) / "weights").is_dir():
        raise ConfigError(f"{given.model} is no finished run; say what to measure with --task")
    if given.settings:
        raise ConfigError(f"{given.settings[0]} would change the run's own task; give --task too")
    from interlock.recipes.evaluate import practised

    task, drawn = practised(Path(given.model))
    if not 0 < count <= task.held_out:
        raise ConfigError(
            f"--problems {count}: the run held out {task.held_out}; choose from those"
        )
    limit = drawn.max_tokens if given.max_tokens is None else given.max_tokens
    return task, config.sampling(0.0, limit, given.stop or drawn.stop)


def chat(given: argparse.Namespace) -> None:
    """Answer each line of the terminal or of standard input, remembering the conversation."""
    from interlock import config
    from interlock.models.fetch import find_model
    from interlock.rollout.generator import open_generator
    from interlock.terminal import visible

    sampling = config.sampling(given.temperature, given.max_tokens, [])
    model = find_model(_model(given.model), lambda note: print(note, file=sys.stderr))
    settings = config.Generator(device=given.device, slots=1)
    generator = open_generator(settings, model, chat_template=None, name="chat")
    messages = [{"role": "system", "content": given.system}] if given.system else []
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            question = input(prompt)
        except EOFError:
            break
        if not question.strip():
            continue
        messages.append({"role": "user", "content": question})
        seed = given.seed + len(messages)  # another noise for every turn
        answer = generator.reply(
            messages, sampling, seed, lambda text: print(visible(text), end="", flush=True)
        )
        print()
        messages.append({"role": "assistant", "content": answer})


def report(given: argparse.Namespace) -> None:
    """Write the report of a run, finished or not."""
    from interlock.report import write_report

    print(write_report(given.run, given.out))


def _model(name: str) -> str:
    """A run directory stands for its final weights."""
    weights = Path(name) / "weights"
    return str(weights) if weights.is_dir() else name


def _free_directory(name: str) -> Path:
    """runs/NAME, or the first of runs/NAME-2, -3, … that does not exist."""
    number = 1
    while (path := Path("runs") / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return path


if __name__ == "__main__":
    main()
