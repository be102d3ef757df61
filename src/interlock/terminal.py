"""A run as seen in a terminal: a live display on a screen, plain lines anywhere else."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from interlock.qualify import runner
from interlock.qualify.check import Check
from interlock.recipes.watch import Watch
from interlock.records.rl import FinishReason, ScoredGroup
from interlock.records.trust import Certificate, Finding, Result, Role, Trust
from interlock.report import fleet, summary
from interlock.rundir import RunView
from interlock.text import visible

_BARS = "▁▂▃▄▅▆▇█"
_ROWS = 8  # steps shown in the live table
_WORKERS = 8  # generators shown in the live table; the rest are counted
_RESULTS = {
    Result.PASS: ("✓", "green"),
    Result.FAIL: ("✗", "red"),
    Result.UNKNOWN: ("?", "yellow"),
}
VERDICTS = {
    Trust.TRAIN: "may train and generate",
    Trust.GENERATE: "may generate, not train",
    Trust.REJECT: "rejected: may neither train nor generate",
    Trust.UNKNOWN: "not decided: a check that decides did not run",
}
_STATE_STYLES = {"quarantined": "red", "retired": "red"}
_SHORT = {
    "grad_norm": "gradient",
    "mismatch_k3": "mismatch",
    "staleness_mean": "staleness",
    "groups_skipped": "skipped",
    "groups_stale": "stale",
    "seconds_generate": "generate",
    "seconds_wait": "wait",
    "seconds_update": "update",
    "seconds_step": "total",
}


@contextmanager
def watching(console: Console) -> Iterator[Watch]:
    """The watch that fits `console`; a live display is taken down when the block ends."""
    if not console.is_terminal:
        yield PlainWatch(console)
        return
    watch = LiveWatch(console)
    with Live(get_renderable=watch.render, console=console, refresh_per_second=4):
        yield watch


class PlainWatch(Watch):
    """One line per step, evaluation and note: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._steps = 0

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def stage(self, index: int, kind: str, done: int, steps: int) -> None:
        self._steps = steps
        resumed = f", resumed after step {done}" if done else ""
        self._print(f"stage {index}: {kind}, {steps} steps{resumed}")

    def evaluated(self, step: int, accuracy: float, problems: int) -> None:
        self._print(f"step {step}: accuracy {accuracy:.1%} on {problems} held-out problems")

    def step(self, metrics: dict[str, Any]) -> None:
        facts = "  ".join(f"{name} {text}" for name, text in _facts(metrics))
        self._print(f"step {metrics['step']}/{self._steps}: {facts}")

    def note(self, message: str) -> None:
        self._print(visible(message))


class LiveWatch(Watch):
    """Progress bars for the stage and its present phase, the curve so far and the last steps."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self._phase = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            console=console,
        )
        self._waiting = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console
        )
        self._steps: list[dict[str, Any]] = []
        self._accuracy: list[tuple[int, float]] = []
        self._workers: dict[str, dict[str, Any]] = {}
        self._k3: dict[str, float] = {}  # the last of each worker: most seconds measure none

    def stage(self, index: int, kind: str, done: int, steps: int) -> None:
        for task in self._stage.task_ids:
            self._stage.remove_task(task)
        self._stage.add_task(f"stage {index} · {kind}", total=steps, completed=done)
        self._steps.clear()
        self._accuracy.clear()

    def phase(self, name: str, total: int = 0) -> None:
        for progress in (self._phase, self._waiting):
            for task in progress.task_ids:
                progress.remove_task(task)
        if total:
            self._phase.add_task(name, total=total)
        else:
            self._waiting.add_task(name)

    def advance(self) -> None:
        for task in self._phase.task_ids:
            self._phase.advance(task)

    def evaluated(self, step: int, accuracy: float, problems: int) -> None:
        self._accuracy.append((step, accuracy))

    def step(self, metrics: dict[str, Any]) -> None:
        self._steps.append(metrics)
        for task in self._stage.task_ids:
            self._stage.update(task, completed=metrics["step"])

    def workers(self, facts: dict[str, dict[str, Any]]) -> None:
        self._workers = dict(facts)
        for name, own in facts.items():
            if buckets := fleet.mismatch(own):
                _, self._k3[name] = buckets[min(buckets)]

    def note(self, message: str) -> None:
        self._console.print(Text(visible(message), style="dim"))

    def render(self) -> RenderableType:
        parts: list[RenderableType] = [self._stage]
        if rewards := [m["reward"] for m in self._steps if m.get("reward") is not None]:
            parts.append(Text(f"reward    {sparkline(rewards)}  {rewards[-1]:.2f}", style="green"))
        if self._accuracy:
            points = "  ".join(f"{value:.1%} @{step}" for step, value in self._accuracy[-6:])
            parts.append(Text(f"held out  {points}", style="cyan"))
        if self._steps:
            parts.append(_step_table(self._steps[-_ROWS:]))
        if self._workers:
            parts.append(_worker_table(self._workers, self._k3))
        parts += [self._phase, self._waiting]
        return Group(*parts)


def sparkline(values: list[float], width: int = 60) -> str:
    """A one-line curve of the last `width` values of a share (0 to 1)."""
    top = len(_BARS) - 1
    return "".join(_BARS[round(min(max(value, 0.0), 1.0) * top)] for value in values[-width:])


def _facts(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """What one step is worth saying, in the order of interest."""
    formats = {
        "loss": "{:.3f}" if metrics.get("kind") == "sft" else "",
        "reward": "{:.2f}",
        "length": "{:.0f}",
        "entropy": "{:.2f}",
        "grad_norm": "{:.2f}",
        "mismatch_k3": "{:.1e}",
        "staleness_mean": "{:.1f}",
        "groups_skipped": "{}",
        "groups_stale": "{}" if metrics.get("groups_stale") else "",
        "seconds_generate": "{:.1f}s",
        "seconds_wait": "{:.1f}s",
        "seconds_update": "{:.1f}s",
        "seconds_step": "{:.1f}s",
    }
    return [
        (_SHORT.get(name, name), form.format(metrics[name]))
        for name, form in formats.items()
        if form and metrics.get(name) is not None
    ]


def _step_table(steps: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("step", justify="right")
    names = list(dict.fromkeys(name for metrics in steps for name, _ in _facts(metrics)))
    for name in names:
        table.add_column(name, justify="right")
    for metrics in steps:
        facts = dict(_facts(metrics))
        table.add_row(str(metrics["step"]), *(facts.get(name, "–") for name in names))
    return table


def _worker_table(workers: dict[str, dict[str, Any]], k3: dict[str, float]) -> Table:
    """Those that are not at work come first: they are why one looks."""
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for heading in ("worker", "state", "version", "tokens/s", "k3", "groups", "restarts"):
        table.add_column(heading, justify="left" if heading in ("worker", "state") else "right")
    order = sorted(workers, key=lambda name: workers[name].get("state") in fleet.AT_WORK)
    for name in order[:_WORKERS]:
        facts = workers[name]
        state = str(facts.get("state"))
        style = "green" if state in fleet.AT_WORK else _STATE_STYLES.get(state, "yellow")
        seconds = facts.get("seconds_generating")
        table.add_row(
            Text(visible(name)),
            Text(visible(state), style=style),
            _figure("{}", facts.get("weight_version")),
            _figure("{:.0f}", facts.get("tokens", 0) / seconds if seconds else None),
            _figure("{:.1e}", k3.get(name)),
            _figure("{}", facts.get("groups")),
            _figure("{}", facts.get("restarts")),
        )
    if len(order) > _WORKERS:
        states = Counter(visible(str(workers[name].get("state"))) for name in order[_WORKERS:])
        rest = ", ".join(f"{count} {state}" for state, count in states.most_common())
        table.caption = Text(f"and {rest}", style="dim")
        table.caption_justify = "left"
    return table


def _figure(form: str, value: float | None) -> str:
    return "–" if value is None else form.format(value)


def print_outcome(console: Console, run: RunView) -> None:
    """Accuracy before and after, and sample answers before and after."""
    metrics = run.metrics()
    pair = summary.before_after(run, summary.evaluations(run, metrics))
    if pair is None:
        steps = sum(line["step"] > 0 for line in metrics)
        console.print(f"{steps} steps done; there was no task to measure accuracy on")
        return
    table = Table(title="Held-out problems, greedy answers", title_justify="left")
    for heading in ("", "step", "accuracy", "95 % interval", "problems"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, evaluation in (("before", pair.before), ("after", pair.after)):
        if evaluation is not None:
            table.add_row(name, str(evaluation.step), *_accuracy_cells(evaluation))
    console.print(table)
    if comparisons := summary.comparisons(run, pair, count=3):
        console.print(_comparison_table(comparisons))


def _accuracy_cells(evaluation: summary.Evaluation) -> list[str]:
    low, high = evaluation.interval or (0.0, 1.0)
    problems = "–" if evaluation.problems is None else str(evaluation.problems)
    return [f"{evaluation.accuracy:.1%}", f"{low:.1%} – {high:.1%}", problems]


def _comparison_table(comparisons: Sequence[summary.Comparison]) -> Table:
    table = Table(title="The first answers", title_justify="left", show_lines=True, expand=True)
    for heading in ("question", "before", "after"):
        table.add_column(heading, ratio=1)
    for comparison in comparisons:
        table.add_row(
            Text(f"{visible(comparison.question)}\n(answer: {visible(comparison.reference)})"),
            _answer(comparison.before),
            _answer(comparison.after),
        )
    return table


def _answer(answer: summary.Answer) -> Text:
    mark = "✓" if answer.reward >= 1 else "✗"
    style = "green" if answer.reward >= 1 else "red"
    text = visible(answer.text).strip() + (" …" if answer.cut else "")
    return Text.assemble((f"{mark} ", style), text)


def print_accuracy(console: Console, scored: Sequence[ScoredGroup], show: int) -> None:
    """Accuracy of one evaluation and its first `show` answers."""
    rewards = [reward for group in scored for reward in group.rewards]
    share = sum(rewards) / len(rewards)
    low, high = summary.wilson(share, len(rewards))
    console.print(f"accuracy {share:.1%} (95 % {low:.1%} – {high:.1%}) on {len(rewards)} problems")
    for group in scored[:show]:
        completion, reward = group.group.completions[0], group.rewards[0]
        question = group.group.problem.messages[-1]["content"]
        cut = completion.finish == FinishReason.LENGTH
        console.print(Text(f"\n{visible(question)}", style="bold"), soft_wrap=True)
        console.print(_answer(summary.Answer(completion.text, reward, None, cut)), soft_wrap=True)


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


def print_certificate(console: Console, certificate: Certificate) -> None:
    """The verdict, why, and what it is of."""
    stack = certificate.stack
    software = [stack.driver, stack.runtime, f"torch {stack.torch}", stack.plugin]
    of = ", ".join(filter(None, [stack.chip, *software]))
    console.print(Text(f"\n{certificate.device}: {VERDICTS[certificate.trust]}", style="bold"))
    console.print(Text(visible(of), style="dim"), soft_wrap=True)
    for reason in certificate.reasons:
        console.print(Text(f"- {visible(reason)}"), soft_wrap=True)


def print_checks(console: Console, checks: Iterable[Check]) -> None:
    """What each check proves, and for which role it is needed."""
    console.print(Text(f"{'check':<20}{'needed to':<17}{'class':<7}proves that", style="dim"))
    for check in checks:
        roles = ", ".join(role for role in Role if role in check.needed)
        classes = ", ".join(map(str, check.classes))
        line = f"{check.id:<20}{roles:<17}{classes:<7}{check.proves}"
        console.print(Text(line), soft_wrap=True)
