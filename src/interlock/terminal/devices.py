"""What is shown of devices: speeds, checks and certificates, a preflight."""

from collections.abc import Iterable
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from interlock.chips import probe, speeds
from interlock.preflight.folder import Preflight, SectionRecord, Status
from interlock.qualify import runner
from interlock.qualify.check import Check
from interlock.records.trust import Certificate, Finding, Result, Role, Trust
from interlock.text import visible

_RESULTS = {
    Result.PASS: ("✓", "green"),
    Result.FAIL: ("✗", "red"),
    Result.UNKNOWN: ("?", "yellow"),
}
_STATUSES = {
    Status.DONE: ("✓", "green"),
    Status.FAILED: ("✗", "red"),
    Status.NOT_RUN: ("–", "yellow"),
}
VERDICTS = {
    Trust.TRAIN: "may train and generate",
    Trust.GENERATE: "may generate, not train",
    Trust.REJECT: "rejected: may neither train nor generate",
    Trust.UNKNOWN: "not decided: a check that decides did not run",
}


class QualifyWatch(runner.Watch):
    """A line for every check that has ended; on a screen also which one is at work."""

    def __init__(self, console: Console, checks: int) -> None:
        self._console = console
        self._working = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._all = self._working.add_task("", total=checks)

    def __enter__(self) -> Self:
        self._working.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._working.stop()

    def begins(self, check: Check) -> None:
        self._working.update(self._all, description=f"{check.id}: {check.proves}")

    def ended(self, finding: Finding) -> None:
        mark, style = _RESULTS[finding.result]
        text = Text.assemble(
            (f"{mark} {finding.result:<8}", style),
            f"{finding.check:<19}{finding.seconds:6.1f} s  ",
            (visible(finding.summary), "" if finding.result is not Result.PASS else "dim"),
        )
        self._console.print(text, soft_wrap=True)
        self._working.advance(self._all)


def print_speeds(console: Console, found: speeds.Table, taken: probe.Choice) -> None:
    """Every way to multiply with its figures, and what is taken of them."""
    rows = Table(title=f"{found.chip}, {found.threads} threads", title_justify="left")
    for title in ("dtype", "kernel", "decode", "learn", "error", "taken to"):
        rows.add_column(title, justify="right" if title in ("decode", "learn", "error") else "left")
    kernels = {"generate": taken.generator, "learn": taken.learner}
    for each in found.speeds:
        rates = [
            f"{rate:.0f} GFLOP/s" if rate else "hopeless" for rate in (each.decode, each.learn)
        ]
        ours = [role for role, kernel in kernels.items() if kernel == each.kernel]
        roles = ", ".join(ours) if each.dtype == taken.dtype else ""
        error = f"{each.error:.1e}" if each.decode else ""
        rows.add_row(each.dtype, each.kernel, *rates, error, roles)
    console.print(rows)
    for keys, (plain, fused) in sorted(found.attention.items()):
        told = f"{plain * 1e3:.1f} ms by plain products, {fused * 1e3:.1f} ms fused"
        console.print(f"attention of {keys} keys, there and back: {told}")
    for tokens, seconds in sorted(found.micro_batch.items()):
        console.print(f"micro-batch of {tokens} tokens: {seconds * 1e3:.1f} ms per thousand")
    for name, step in sorted(found.steps.items()):
        told = f"{step.eager * 1e3:.2f} ms, recorded {step.recorded * 1e3:.2f} ms"
        console.print(f"decoding step of {speeds.STEP_LAYERS} layers in {name}: {told}")
    switch = f"fused attention above {taken.fused_above} keys" if found.attention else ""
    rest = [switch, f"micro-batches of {taken.micro_batch} tokens"] if switch else []
    if found.steps:
        rest.append("recorded steps" if taken.graphs else "no recorded steps")
    console.print(", ".join([f"taken: {taken.dtype}", *rest]), soft_wrap=True)
    if found.waited > probe.BUSY:
        console.print(
            f"{found.waited:.0%} of the time others had the processors: run it again on a quiet "
            "machine; a run measures again after an hour",
            soft_wrap=True,
        )


def print_certificate(console: Console, certificate: Certificate) -> None:
    """The verdict, why, and what it is of."""
    stack = certificate.stack
    software = [stack.driver, stack.runtime, f"torch {stack.torch}", stack.plugin]
    of = ", ".join(filter(None, [stack.chip, *software]))
    console.print(Text(f"\n{certificate.device}: {VERDICTS[certificate.trust]}", style="bold"))
    console.print(Text(visible(of), style="dim"), soft_wrap=True)
    for reason in certificate.reasons:
        console.print(Text(f"- {visible(reason)}"), soft_wrap=True)
    if certificate.models:
        models = visible(", ".join(certificate.models))
        console.print(
            Text(f"sizes tried, one by one, cover: {models}", style="dim"), soft_wrap=True
        )


def print_checks(console: Console, checks: Iterable[Check]) -> None:
    """What each check proves, and for which role it is needed."""
    console.print(Text(f"{'check':<20}{'needed to':<17}{'class':<7}proves that", style="dim"))
    for check in checks:
        roles = ", ".join(role for role in Role if role in check.needed)
        classes = ", ".join(map(str, check.classes))
        line = f"{check.id:<20}{roles:<17}{classes:<7}{check.proves}"
        console.print(Text(line), soft_wrap=True)


class PreflightWatch:
    """A line for every section that has ended."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def ended(self, record: SectionRecord, before: bool) -> None:
        mark, style = _STATUSES[record.status]
        how = "done before" if before else f"{record.seconds:.0f} s"
        text = Text.assemble(
            (f"{mark} {record.status:<8}", style),
            f"{record.name:<9}{how:>12}  ",
            visible(record.headline),
        )
        self._console.print(text, soft_wrap=True)


def print_preflight(console: Console, found: Preflight) -> None:
    """The closing table: every section in the folder."""
    table = Table(title=f"Preflight of {visible(found.device)}", title_justify="left")
    for heading in ("section", "status", "seconds", "found"):
        table.add_column(heading, justify="right" if heading == "seconds" else "left")
    for record in found.sections:
        mark, style = _STATUSES[record.status]
        told = "; ".join(filter(None, [record.headline, record.shortened]))
        seconds = f"{record.seconds:.0f}"
        status = Text(f"{mark} {record.status}", style=style)
        table.add_row(record.name, status, seconds, Text(visible(told)))
    console.print(table)
