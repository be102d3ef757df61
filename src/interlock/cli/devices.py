"""The verbs that judge devices and engines, one function each.

What a verb needs is imported inside it, so that help is instant.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from interlock.config.reading import parse_sampling, parse_task
from interlock.errors import ConfigError, RunError, VoidResult
from interlock.records.sealing import SealedDocument, sealed
from interlock.records.trust import Trust
from interlock.text import one_line, visible

if TYPE_CHECKING:
    from rich.console import Console

    from interlock.qualify.check import Level
    from interlock.records.trust import Sizes

_REMOTE_SHELL = "ssh -o BatchMode=yes -o ConnectTimeout=20"
_NODE_S = 3600.0  # for the devices of a node


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
    from interlock.chips import certificates, device
    from interlock.qualify import runner
    from interlock.qualify.check import Level
    from interlock.terminal import Screen
    from interlock.terminal import devices as shown

    console = Screen(stderr=given.json)
    checks = runner.chosen([name for name in (given.only or "").split(",") if name])
    if given.list:
        shown.print_checks(console, checks)
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
    model = _sizes_of(given.model, console) if given.model else None
    name = given.device or device.available()[0]
    path = given.out or Path("certificates") / re.sub(r"[^A-Za-z0-9.-]+", "-", name)
    with _folder(path) as out, shown.QualifyWatch(console, len(checks)) as watch:
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
    shown.print_certificate(console, found)
    console.print(report, soft_wrap=True)
    console.print(f"filed: {filed}" if filed else "not filed: the one that is proves more")
    if given.json:
        print((out / "certificate.json").read_text(encoding="utf-8"))
    sys.exit(0 if found.trust in (Trust.TRAIN, Trust.GENERATE) else 1)


def _sizes_of(model: str, console: "Console") -> tuple[str, "Sizes"]:
    """The name and the sizes of a model that --model names."""
    from interlock.models.catalogue import sizes_of
    from interlock.models.fetch import find_model
    from interlock.models.huggingface import read_architecture

    directory = find_model(model, lambda line: console.print(line, soft_wrap=True))
    return Path(model).name, sizes_of(read_architecture(directory))


def _qualify_fleet(given: argparse.Namespace, level: "Level") -> None:
    """Qualify all devices of all nodes and the links between them; write the page."""
    from interlock.qualify.fleet import head, nodes, page
    from interlock.terminal import Screen

    if given.device is not None:
        raise ConfigError(f"--device {given.device} is of one machine; of a fleet, give --devices")
    console = Screen(stderr=given.json)

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
    import torch

    from interlock.chips import device, probe, speeds
    from interlock.terminal import Screen
    from interlock.terminal import devices as shown

    if given.threads is not None:
        if given.threads > (here := os.cpu_count() or 1):  # of 100,000, libgomp dies
            raise ConfigError(f"--threads {given.threads}: give at most {here}, a processor each")
        torch.set_num_threads(given.threads)
    place = device.claim(given.device)
    found = speeds.measure(place)
    taken = probe.choose(found)
    if given.json:
        tree = {"measured": found, "taken": taken, "stack": device.stack(place)}
        made = {"device": given.device, "created": time.time()}
        print(json.dumps(sealed(SealedDocument.BENCH, tree | made), indent=2))
        return
    shown.print_speeds(Screen(), found, taken)


def preflight(given: argparse.Namespace) -> None:
    """Run the sections on a device, and leave one folder with what they found."""
    from interlock.preflight import sections

    # Before torch is imported, which takes seconds: a slip is told at once.
    chosen = sections.chosen(given.only, given.skip)
    if not 0 < given.minutes < 1e6:
        raise ConfigError(f"--minutes {given.minutes:g}: give a number of minutes above 0")
    model = sections.checked_model(given.model)

    from interlock.preflight import runner
    from interlock.preflight.folder import Status
    from interlock.processes.scratch import Scratch
    from interlock.terminal import Screen
    from interlock.terminal import devices as shown

    sections.check_shapes(given.shapes)
    console = Screen()
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
        watch = shown.PreflightWatch(console)
        found = runner.run(setting, identity, chosen, given.minutes, out, watch.ended)
    shown.print_preflight(console, found)
    console.print(f"results: {out}", soft_wrap=True)
    ran = {record.status for record in found.sections}
    sys.exit(0 if Status.DONE in ran and Status.FAILED not in ran else 1)


def parity(given: argparse.Namespace) -> None:
    """Compare two sides; write the figures and the page."""
    from interlock.cli.exams import asking_for
    from interlock.models.fetch import find_model
    from interlock.parity import outcome, page
    from interlock.parity.compare import Question, compare
    from interlock.parity.sides import parse
    from interlock.terminal import Screen

    if given.settings and not given.task:
        raise ConfigError(f"{given.settings[0]} is a setting of a task; name it with --task")
    console = Screen(stderr=True)

    def note(line: str) -> None:
        console.print(line, soft_wrap=True)

    with asking_for(given.problems):
        task = parse_task(given.task, given.problems, given.settings) if given.task else None
    a = parse("a", given.a, given.a_dtype, given.a_python)
    b = parse("b", given.b, given.b_dtype, given.b_python)
    question = Question(
        model=find_model(given.model, note),
        a=a,
        b=b,
        b_model=find_model(given.b_model, note) if given.b_model else None,
        task=task,
        problems=given.problems,
        samples=given.samples,
        sampling=parse_sampling(0.0, given.max_tokens, given.stop or []),
        band=outcome.band(given.band),
        bisect=given.bisect,
        answer_s=given.timeout,
    )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(given.model).name)
    with _folder(given.out or Path("parity") / name) as out, asking_for(given.problems):
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
