"""The verbs, one function each.

What a verb needs is imported inside it, so that help is instant.
"""

import argparse
import json
import os
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path

from interlock.cli import starting, watching
from interlock.cli.staging import only, own_recipe
from interlock.config.reading import load_recipe, parse_sampling
from interlock.config.schema import GeneratorSettings
from interlock.config.secrets import shown_override
from interlock.errors import BudgetSpent, ConfigError, VoidResult
from interlock.rundir import RunDir
from interlock.text import visible

_REMOTE_SHELL = "ssh -o BatchMode=yes -o ConnectTimeout=20"
_NODE_S = 3600.0  # for the devices of a node


def demo(given: argparse.Namespace) -> None:
    """The shipped demo recipe, then what it changed."""
    from interlock.recipes.shipped import DEMO

    given.recipe, given.resume, given.check, given.stage = str(DEMO), False, False, None
    train(given)


def train(given: argparse.Namespace) -> None:
    """Run a recipe with a live display; then the figures and the report."""
    if given.unqualified:
        given.settings.append("unqualified=true")
    # Before torch is imported, which takes seconds: a slip is told at once.
    if given.resume and (Path(given.recipe) / "manifest.json").is_file():
        recipe = own_recipe(given)
    else:
        recipe = load_recipe(Path(given.recipe), given.settings)
    if given.resume and given.run is None:
        raise ConfigError("--resume needs --run DIR, the run to go on with")
    if given.stage is not None:
        recipe = only(recipe, given.stage, given.run if given.resume else None)
    if given.check:
        starting.check(recipe, given.run or _free_directory(recipe.name), given.resume)
        return

    from interlock import terminal
    from interlock.recipes.train import train as run_recipe
    from interlock.report import summary
    from interlock.report.page import write_report  # now: a missing plotly must not cost a run

    directory = given.run or _free_directory(recipe.name)
    if int(os.environ.get("RANK", "0")) > 0:  # torchrun's: it only helps the learner of rank 0
        run_recipe(recipe, directory, resume=given.resume)
        return
    console = terminal.Screen()
    try:
        with ExitStack() as stack:
            if given.live:
                url = stack.enter_context(watching.beside(directory))
                console.print(f"watch at {url}", soft_wrap=True)
            screen = stack.enter_context(terminal.watching(console))
            run_recipe(recipe, directory, resume=given.resume, sinks=[screen])
    except BudgetSpent:
        write_report(directory)
        terminal.print_outcome(console, RunDir.read(directory))
        raise
    except KeyboardInterrupt:
        if not (directory / "manifest.json").exists():
            raise
        command = shlex.join(
            ["interlock", "train", given.recipe, *map(shown_override, given.settings)]
            + (["--stage", given.stage] if given.stage is not None else [])
        )
        console.print(f"to go on: {command} --run {directory} --resume", soft_wrap=True)
        raise
    written = write_report(directory)
    run = RunDir.read(directory)
    terminal.print_outcome(console, run)
    console.print(f"report: {written.resolve()}", soft_wrap=True)
    if void := summary.void(run):
        raise VoidResult("; ".join(void))


def evaluate(given: argparse.Namespace) -> None:
    """Accuracy on held-out problems, with its 95 % interval; and pass@k, where it is asked for."""
    from interlock import terminal
    from interlock.cli.exams import asking_for, figures, what_to_measure
    from interlock.recipes.evaluate import measure
    from interlock.report.summary import not_judged

    exam = what_to_measure(given)
    generator = GeneratorSettings(device=given.device)
    console = terminal.Screen(stderr=given.json)
    default = given.problems is None
    with asking_for(exam.problems, default), terminal.watching(console) as screen:
        scored = measure(given.model, exam, generator, screen)
    if given.json:
        print(json.dumps(figures(given.model, exam, scored)))
    else:
        terminal.print_accuracy(console, scored, given.show, exam.how.pass_at)
    if cause := not_judged(scored):
        raise VoidResult(f"the verifier failed on every answer: {cause}")


def chat(given: argparse.Namespace) -> None:
    """Answer each line of the terminal or of standard input, remembering the conversation."""
    from msgspec.structs import replace

    from interlock.models.fetch import find_model
    from interlock.workers.generator import open_generator

    sampling = parse_sampling(given.temperature, given.max_tokens, [])
    model = find_model(given.model, lambda note: print(note, file=sys.stderr))
    settings = GeneratorSettings(device=given.device, slots=1)
    generator = open_generator(settings, model, chat_template=None, name="chat")
    messages = [{"role": "system", "content": given.system}] if given.system else []
    prompt, turn = "> " if sys.stdin.isatty() else "", 0
    if prompt:
        print("Ctrl-D ends the conversation.", file=sys.stderr)
    while True:
        try:
            question = input(prompt)
        except EOFError:
            break
        if not question.strip():
            continue
        turn += 1
        messages.append({"role": "user", "content": question})
        try:
            recent, most = generator.recent(messages, sampling.max_tokens)
        except ConfigError as error:
            print(f"interlock: {error}", file=sys.stderr)
            messages.pop()
            continue
        if dropped := len(messages) - len(recent):
            note = f"({dropped} old turns left out: the model's context is full)"
            print(note, file=sys.stderr)
        messages = recent
        answer = generator.reply(
            messages,
            replace(sampling, max_tokens=most),
            given.seed + turn,  # another noise for every turn
            lambda text: print(visible(text), end="", flush=True),
        )
        print()
        messages.append({"role": "assistant", "content": answer})


def export(given: argparse.Namespace) -> None:
    """Write a model for other software, and say where it is."""
    from interlock.export.command import export as write

    written = write(
        given.model,
        given.to,
        given.out,
        given.dtype,
        given.type,
        given.push,
        lambda note: print(note, file=sys.stderr),
    )
    print(written)


def report(given: argparse.Namespace) -> None:
    """Write the report of a run, finished or not."""
    from interlock.report import write_report

    print(write_report(given.run, given.out))


def _free_directory(name: str) -> Path:
    """runs/NAME, or the first of runs/NAME-2, -3, … that does not exist."""
    number = 1
    while (path := Path("runs") / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return path
