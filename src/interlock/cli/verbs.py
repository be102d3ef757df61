"""The verbs, one function each.

What a verb needs is imported inside it, so that help is instant.
"""

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from interlock.config.reading import load_recipe, parse_sampling, parse_task, to_tree
from interlock.config.schema import GeneratorSettings
from interlock.config.secrets import shown_override
from interlock.errors import ConfigError, RunError, VoidResult
from interlock.records.rl import Score
from interlock.records.trust import Trust
from interlock.rundir import RunDir
from interlock.text import one_line, visible

if TYPE_CHECKING:
    from interlock.qualify.check import Level
    from interlock.recipes.evaluate import Exam

_REMOTE_SHELL = "ssh -o BatchMode=yes -o ConnectTimeout=20"
_NODE_S = 3600.0  # for the devices of a node


def demo(given: argparse.Namespace) -> None:
    """The shipped demo recipe, then what it changed."""
    from interlock.recipes.shipped import DEMO

    given.recipe, given.resume = str(DEMO), False
    train(given)


def train(given: argparse.Namespace) -> None:
    """Run a recipe with a live display; then the figures and the report."""
    if given.unqualified:
        given.settings.append("unqualified=true")
    # Before torch is imported, which takes seconds: a slip is told at once.
    recipe = load_recipe(Path(given.recipe), given.settings)
    if given.resume and given.run is None:
        raise ConfigError("--resume needs --run DIR, the run to go on with")

    from interlock import terminal
    from interlock.recipes.train import train as run_recipe
    from interlock.report import summary
    from interlock.report.page import write_report  # now: a missing plotly must not cost a run

    directory = given.run or _free_directory(recipe.name)
    if int(os.environ.get("RANK", "0")) > 0:  # torchrun's: it only helps the learner of rank 0
        run_recipe(recipe, directory, resume=given.resume)
        return
    console = terminal.Screen()
    console.print(f"run directory: {directory}", soft_wrap=True)
    try:
        with terminal.watching(console) as screen:
            run_recipe(recipe, directory, resume=given.resume, sinks=[screen])
    except KeyboardInterrupt:
        if not (directory / "manifest.json").exists():
            raise
        command = shlex.join(
            ["interlock", "train", given.recipe, *map(shown_override, given.settings)]
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
    """Greedy accuracy on held-out problems, with its 95 % interval."""
    from interlock import terminal
    from interlock.recipes.evaluate import measure
    from interlock.report.summary import not_judged, wilson

    exam = _what_to_measure(given)
    generator = GeneratorSettings(device=given.device)
    console = terminal.Screen(stderr=given.json)
    with terminal.watching(console) as screen:
        scored = measure(given.model, exam, generator, screen)
    if given.json:
        worth = Score.of(scored)
        low, high = wilson(worth.accuracy, worth.completions)
        figures = {"accuracy": worth.accuracy, "low": low, "high": high, "reward": worth.reward}
        of = {"problems": worth.completions, "model": given.model, "task": to_tree(exam.task)}
        print(json.dumps(figures | of))
    else:
        terminal.print_accuracy(console, scored, given.show)
    if cause := not_judged(scored):
        raise VoidResult(f"the verifier failed on every answer: {cause}")


def _what_to_measure(given: argparse.Namespace) -> "Exam":
    """What the command line says, or the run's own."""
    from interlock.recipes.evaluate import Exam, practised

    if given.task:
        limit, count = given.max_tokens or 256, given.problems or 128
        task = parse_task(given.task, count, given.settings)
        return Exam(task, count, parse_sampling(0.0, limit, given.stop or []), limit)
    if not (Path(given.model) / "manifest.json").is_file():
        name = one_line(repr(given.model), 80)
        known = f"{name} is no run" if Path(given.model).is_dir() else f"there is no run at {name}"
        raise ConfigError(
            f"{known}, which would know its task; give a run's directory, or for a model say "
            "--task arithmetic, gsm8k, jsonl or reasoning-gym/NAME"
        )
    if given.settings:
        raise ConfigError(f"{given.settings[0]} would change the run's own task; give --task too")
    own = practised(Path(given.model))
    count = given.problems or own.problems
    if count > own.task.held_out:
        raise ConfigError(
            f"--problems {count}: the run held out {own.task.held_out}; choose from those"
        )
    limit = given.max_tokens or own.sampling.max_tokens
    sampling = parse_sampling(0.0, limit, given.stop or own.sampling.stop)
    return own._replace(problems=count, sampling=sampling)


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


def doctor(given: argparse.Namespace) -> None:
    """What this machine has and lacks; torch is not imported here, and need not be installed."""
    import msgspec
    from rich.console import Console

    from interlock.chips import vendors
    from interlock.doctor.diagnosis import diagnose
    from interlock.doctor.finding import State
    from interlock.doctor.sheet import sheet
    from interlock.doctor.survey import survey

    if given.device is not None and vendors.kind_of(given.device) not in vendors.KINDS:
        name = one_line(repr(given.device), 60)
        raise ConfigError(f"--device {name} is of no known kind; choose {', '.join(vendors.KINDS)}")
    lines = diagnose(survey(given.device), given.device)
    if given.json:
        print(msgspec.json.encode({"device": given.device, "lines": lines}).decode())
    else:
        console = Console(highlight=False)
        with console.capture() as shown:
            console.print(sheet(lines), soft_wrap=True)
        print(shown.get(), end="")
    sys.exit(1 if any(line.state is State.WRONG for line in lines) else 0)


def qualify(given: argparse.Namespace) -> None:
    """Run the checks, file the certificate where `train` looks for it, and write the report."""
    from interlock import terminal
    from interlock.chips import certificates, device
    from interlock.qualify import runner
    from interlock.qualify.check import Level

    console = terminal.Screen(stderr=given.json)
    checks = runner.chosen([name for name in (given.only or "").split(",") if name])
    if given.list:
        terminal.print_checks(console, checks)
        return
    if given.soak is not None and not 0 < given.soak < 1e6:
        raise ConfigError(f"--soak {given.soak:g}: give a number of minutes above 0")
    if not 0 <= given.seed < 2**31:
        raise ConfigError(f"--seed {given.seed}: give a number from 0 to {2**31 - 1}")
    quick = given.quick or (given.fleet is not None and not given.full)
    level = Level.SOAK if given.soak is not None else Level.QUICK if quick else Level.DEFAULT
    if given.fleet is not None:
        if given.model:
            raise ConfigError("--model is of one device; leave it or --fleet out")
        _qualify_fleet(given, level)
        return
    for option in ("devices", "remote_shell", "remote_python", "timeout"):
        if getattr(given, option) is not None:
            raise ConfigError(f"--{option.replace('_', '-')} is of a fleet; give --fleet too")
    model = None
    if given.model:
        from interlock.models.catalogue import sizes_of
        from interlock.models.fetch import find_model
        from interlock.models.huggingface import read_architecture

        found_model = find_model(given.model, lambda line: console.print(line, soft_wrap=True))
        model = Path(given.model).name, sizes_of(read_architecture(found_model))
    name = given.device or device.available()[0]
    path = given.out or Path("certificates") / re.sub(r"[^A-Za-z0-9.-]+", "-", name)
    with _folder(path) as out, terminal.QualifyWatch(console, len(checks)) as watch:
        found = runner.qualify(
            name,
            level,
            checks=checks,
            minutes=given.soak or 0.0,
            seed=given.seed,
            fail_fast=given.fail_fast,
            model=model,
            watch=watch,
        )
    certificates.save(found, out / "certificate.json")
    filed = certificates.keep(found)
    try:
        from interlock.qualify.page import write_page

        report = f"report: {write_page(found, out / 'report.html').resolve()}"
    except ModuleNotFoundError as error:  # in the environment of a generator; the verdict stands
        report = f"no report: it needs {error.name!r}; pip install 'interlock[report]'"
    terminal.print_certificate(console, found)
    console.print(report, soft_wrap=True)
    console.print(f"filed: {filed}" if filed else "not filed: the one that is proves more")
    if given.json:
        print((out / "certificate.json").read_text(encoding="utf-8"))
    sys.exit(0 if found.trust in (Trust.TRAIN, Trust.GENERATE) else 1)


def _qualify_fleet(given: argparse.Namespace, level: "Level") -> None:
    """Qualify all devices of all nodes and the links between them; write the page."""
    from interlock import terminal
    from interlock.qualify.fleet import head, nodes, page

    if given.device is not None:
        raise ConfigError(f"--device {given.device} is of one machine; of a fleet, give --devices")
    console = terminal.Screen(stderr=given.json)

    def note(line: str) -> None:
        console.print(visible(line), soft_wrap=True)

    with _folder(given.out or Path("certificates") / "fleet") as out:
        fleet, places = nodes.places(
            given.fleet,
            out / "nodes",
            remote_shell=given.remote_shell or _REMOTE_SHELL,
            python=given.remote_python,
            devices=given.devices or [],
        )
        settings = head.Settings(
            level=level,
            checks=[name for name in (given.only or "").split(",") if name],
            minutes=given.soak or 0.0,
            seed=given.seed,
            fail_fast=given.fail_fast,
            timeout_s=given.timeout or _NODE_S,
        )
        with closing(fleet):
            asked = head.Head(fleet, places, settings, out, note)
            found = asked.run(given.fleet)
    written = page.write(found, out)
    note(f"\n{page.headline(found)}")
    for trouble in found.troubles:
        note(f"- {trouble.name}: {trouble.line}")
    note(f"report: {written.resolve()}")
    if given.json:
        print((out / "fleet.json").read_text(encoding="utf-8"))
    sys.exit(0 if found.fit else 1)


def bench(given: argparse.Namespace) -> None:
    """What there is to choose from on a device, measured now, and what is chosen."""
    import msgspec
    import torch

    from interlock import terminal
    from interlock.chips import device, probe

    if given.threads is not None:
        torch.set_num_threads(given.threads)
    found = probe.measure(device.claim(given.device))
    taken = probe.choose(found)
    if given.json:
        tree = {"measured": msgspec.to_builtins(found), "taken": msgspec.to_builtins(taken)}
        print(json.dumps(tree, indent=2))
        return
    terminal.print_speeds(terminal.Screen(), found, taken)


def parity(given: argparse.Namespace) -> None:
    """Compare two sides; write the figures and the page."""
    from interlock import terminal
    from interlock.models.fetch import find_model
    from interlock.parity import outcome, page
    from interlock.parity.compare import Question, compare
    from interlock.parity.sides import parse

    if given.settings and not given.task:
        raise ConfigError(f"{given.settings[0]} is a setting of a task; name it with --task")
    console = terminal.Screen(stderr=True)

    def note(line: str) -> None:
        console.print(line, soft_wrap=True)

    a = parse("a", given.a, given.a_dtype, given.a_python)
    b = parse("b", given.b, given.b_dtype, given.b_python)
    question = Question(
        model=find_model(given.model, note),
        a=a,
        b=b,
        b_model=find_model(given.b_model, note) if given.b_model else None,
        task=parse_task(given.task, given.problems, given.settings) if given.task else None,
        problems=given.problems,
        samples=given.samples,
        sampling=parse_sampling(0.0, given.max_tokens, given.stop or []),
        band=outcome.band(given.band),
        bisect=given.bisect,
        answer_s=given.timeout,
    )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(given.model).name)
    with _folder(given.out or Path("parity") / name) as out:
        found = compare(question, out, note)
    written = page.write(found, out)
    if given.json:
        print((out / "parity.json").read_text(encoding="utf-8"))
    else:
        print(f"{found.verdict.upper()}: {found.headline}", *found.reasons, sep="\n")
    note(f"report: {written.resolve()}")
    if found.verdict is outcome.Agreement.DIFFERENT:
        sys.exit(1)
    if found.task is not None and found.task.not_judged is not None:
        raise VoidResult(f"the verifier failed on every answer: {found.task.not_judged}")


def preflight(given: argparse.Namespace) -> None:
    """Run the sections on a device, and leave one folder with what they found."""
    from interlock.preflight import sections

    # Before torch is imported, which takes seconds: a slip is told at once.
    chosen = sections.chosen(given.only, given.skip)
    if not 0 < given.minutes < 1e6:
        raise ConfigError(f"--minutes {given.minutes:g}: give a number of minutes above 0")
    model = sections.checked_model(given.model)

    from interlock import terminal
    from interlock.preflight import runner
    from interlock.preflight.folder import Status
    from interlock.processes.scratch import Scratch

    sections.check_shapes(given.shapes)
    console = terminal.Screen()
    out = given.out or Path("preflight") / re.sub(r"[^A-Za-z0-9.-]+", "-", given.device)
    with _folder(out), Scratch("interlock-preflight-") as scratch:
        identity = runner.identify(given.device)
        setting = sections.PreflightSetting(
            given.device,
            model or sections.random_model(chosen, scratch / "model"),
            model is not None,
            given.shapes,
            sections.checkout(),
        )
        watch = terminal.PreflightWatch(console)
        found = runner.run(setting, identity, chosen, given.minutes, out, watch.ended)
    terminal.print_preflight(console, found)
    console.print(f"results: {out}", soft_wrap=True)
    ran = {record.status for record in found.sections}
    sys.exit(0 if Status.DONE in ran and Status.FAILED not in ran else 1)


def report(given: argparse.Namespace) -> None:
    """Write the report of a run, finished or not."""
    from interlock.report import write_report

    print(write_report(given.run, given.out))


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """A folder for results, made before they cost anything; gone again when there are none.

    Raises RunError.
    """
    made = [each for each in (path, *path.parents) if not each.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {path} ({error.strerror}); choose another --out") from None
    try:
        yield path
    except BaseException:
        for each in made:
            with suppress(OSError):  # something is in it
                each.rmdir()
        raise


def _free_directory(name: str) -> Path:
    """runs/NAME, or the first of runs/NAME-2, -3, … that does not exist."""
    number = 1
    while (path := Path("runs") / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return path
