"""A run as seen in a terminal: a live display on a screen, plain lines anywhere else."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

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

from interlock.recipes.sinks import Sink
from interlock.records.metrics import Event, StepMetrics, WorkerMetrics, WorkerState
from interlock.records.passes import Share, accuracy, passes
from interlock.records.rl import Score, ScoredGroup, of_tasks
from interlock.report import cost, summary
from interlock.rundir import RunView
from interlock.text import visible

_BARS = "▁▂▃▄▅▆▇█"
_ROWS = 8  # steps shown in the live table
_WORKERS = 8  # generators shown in the live table; the rest are counted
_OUT = frozenset({WorkerState.QUARANTINED, WorkerState.RETIRED})
# What one step is worth saying, in the order of interest: heading, format, figure.
_FIGURES: tuple[tuple[str, str, Callable[[StepMetrics], float | None]], ...] = (
    ("loss", "{:.3f}", lambda m: m.update.loss if m.rollout.reward is None else None),
    ("held out", "{:.3f}", lambda m: m.held_out_loss),
    ("reward", "{:.3g}", lambda m: m.rollout.reward),
    ("right", "{:.1%}", lambda m: m.rollout.correct),
    ("length", "{:.0f}", lambda m: m.rollout.length),
    ("thinking", "{:.0f}", lambda m: m.rollout.thinking_length or None),
    ("entropy", "{:.2f}", lambda m: m.update.entropy),
    ("gradient", "{:.2f}", lambda m: m.update.grad_norm),
    ("mismatch", "{:.1e}", lambda m: m.update.mismatch.k3 if m.update.mismatch else None),
    ("tokens/s", "{:.0f}", lambda m: m.update.tokens_per_s),
    ("staleness", "{:.1f}", lambda m: m.rollout.staleness_mean),
    ("skipped", "{}", lambda m: m.rollout.groups_skipped),
    ("stale", "{}", lambda m: m.rollout.groups_stale or None),
    ("generate", "{:.1f}s", lambda m: m.seconds.generate),
    ("wait", "{:.1f}s", lambda m: m.seconds.wait),
    ("update", "{:.1f}s", lambda m: m.seconds.update),
    ("total", "{:.1f}s", lambda m: m.seconds.step),
)


class Screen(Console):
    """Prints text as it is. Once its reader has gone it falls silent, and what runs goes on."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(highlight=False, markup=False, stderr=stderr)

    def on_broken_pipe(self) -> None:
        """Called by rich, which would end the process."""
        self.quiet = True


@contextmanager
def watching(console: Console) -> Iterator[Sink]:
    """The sink that fits `console`; a live display is taken down when the block ends."""
    if not console.is_terminal:
        yield PlainWatch(console)
        return
    watch = LiveWatch(console)
    with Live(get_renderable=watch.render, console=console, refresh_per_second=4):
        yield watch


class PlainWatch(Sink):
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

    def evaluated(self, step: int, score: Score) -> None:
        worth = f"accuracy {score.accuracy:.1%}, mean reward {score.reward:.4g}"
        asked = f"{score.completions} held-out problems"
        if score.problems is not None:
            asked = f"{score.completions} answers to {score.problems} held-out problems"
        passed = "".join(f", pass@{k} {share:.1%}" for k, share in score.pass_at.items())
        self._print(f"step {step}: {worth}{passed} on {asked}")
        for name, own in score.tasks.items():
            self._print(f"    {visible(name)}: accuracy {own.accuracy:.1%} on {own.completions}")

    def step(self, metrics: StepMetrics) -> None:
        if metrics.step or metrics.held_out_loss is not None:
            facts = "  ".join(f"{name} {text}" for name, text in _facts(metrics).items())
            self._print(f"step {metrics.step}/{self._steps}: {facts}")

    def event(self, event: Event) -> None:
        self.note(event.message)

    def note(self, message: str) -> None:
        self._print(visible(message))


class LiveWatch(Sink):
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
        self._steps: list[StepMetrics] = []
        self._accuracy: list[tuple[int, float]] = []
        self._workers: dict[str, WorkerMetrics] = {}
        self._k3: dict[str, float] = {}  # the last of each worker: not every step measures one

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

    def evaluated(self, step: int, score: Score) -> None:
        self._accuracy.append((step, score.accuracy))

    def step(self, metrics: StepMetrics) -> None:
        for name, facts in metrics.workers.items():
            if facts.mismatch:
                self._k3[name] = facts.mismatch[min(facts.mismatch)].k3
        if metrics.step:
            self._steps.append(metrics)
        for task in self._stage.task_ids:
            self._stage.update(task, completed=metrics.step)

    def workers(self, facts: Mapping[str, WorkerMetrics]) -> None:
        self._workers = dict(facts)

    def event(self, event: Event) -> None:
        self.note(event.message)

    def note(self, message: str) -> None:
        self._console.print(Text(visible(message), style="dim"), soft_wrap=True)

    def render(self) -> RenderableType:
        parts: list[RenderableType] = [self._stage]
        rewards = [m.rollout.reward for m in self._steps if m.rollout.reward is not None]
        if rewards:
            parts.append(Text(f"reward    {sparkline(rewards)}  {rewards[-1]:.3g}", style="green"))
        if self._accuracy:
            points = "  ".join(f"{value:.1%} @{step}" for step, value in self._accuracy[-6:])
            parts.append(Text(f"held out  {points}", style="cyan"))
        if self._steps and (used := _used(self._steps[-1])):
            parts.append(Text(f"used      {used}", style="magenta"))
        if self._steps:
            parts.append(_step_table(self._steps[-_ROWS:]))
        if self._workers:
            parts.append(_worker_table(self._workers, self._k3))
        parts += [self._phase, self._waiting]
        return Group(*parts)


def _used(step: StepMetrics) -> str:
    """By the run until now."""
    spent = step.cost
    if spent.hours is None or spent.chip_hours is None:
        return ""
    parts = [f"{cost.figure(spent.hours)} h", f"{cost.figure(spent.chip_hours)} chip-hours"]
    parts += [f"{cost.figure(amount)} {currency}" for currency, amount in spent.money.items()]
    return " · ".join(parts + ([] if spent.kwh is None else [f"{cost.figure(spent.kwh)} kWh"]))


def sparkline(values: list[float], width: int = 60) -> str:
    """A one-line curve of the last `width` values, from 0 to 1 or as far as they go beyond."""
    low, high = min(0.0, *values, 0.0), max(1.0, *values, 1.0)
    middle, half = low / 2 + high / 2, high / 2 - low / 2  # high - low may be no float
    top = len(_BARS) - 1
    places = (((value - middle) / half + 1) / 2 for value in values[-width:])
    return "".join(_BARS[round(place * top)] for place in places)


def _facts(metrics: StepMetrics) -> dict[str, str]:
    """What one step has to say, by heading."""
    told = [(name, form, figure(metrics)) for name, form, figure in _FIGURES]
    return {name: form.format(value) for name, form, value in told if value is not None}


def _step_table(steps: list[StepMetrics]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("step", justify="right")
    told = [_facts(metrics) for metrics in steps]
    names = list(dict.fromkeys(name for facts in told for name in facts))
    for name in names:
        table.add_column(name, justify="right")
    for metrics, facts in zip(steps, told, strict=True):
        table.add_row(str(metrics.step), *(facts.get(name, "–") for name in names))
    return table


def _worker_table(workers: Mapping[str, WorkerMetrics], k3: Mapping[str, float]) -> Table:
    """Those that are not at work come first: they are why one looks."""
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for heading in ("worker", "state", "version", "tokens/s", "k3", "groups", "restarts"):
        table.add_column(heading, justify="left" if heading in ("worker", "state") else "right")
    order = sorted(workers, key=lambda name: workers[name].state.at_work)
    for name in order[:_WORKERS]:
        facts = workers[name]
        style = "green" if facts.state.at_work else "red" if facts.state in _OUT else "yellow"
        seconds = facts.seconds_generating
        table.add_row(
            Text(visible(name)),
            Text(facts.state, style=style),
            _figure("{}", facts.weight_version),
            _figure("{:.0f}", facts.tokens / seconds if seconds else None),
            _figure("{:.1e}", k3.get(name)),
            _figure("{}", facts.groups),
            _figure("{}", facts.restarts),
        )
    if len(order) > _WORKERS:
        states = Counter(str(workers[name].state) for name in order[_WORKERS:])
        rest = ", ".join(f"{count} {state}" for state, count in states.most_common())
        table.caption = Text(f"and {rest}", style="dim")
        table.caption_justify = "left"
    return table


def _figure(form: str, value: float | None) -> str:
    return "–" if value is None else form.format(value)


def print_outcome(console: Console, run: RunView) -> None:
    """Accuracy before and after, what it cost, and sample answers before and after."""
    metrics = run.metrics()
    pair = summary.before_after(run, summary.evaluations(run, metrics))
    _print_accuracies(console, run, metrics, pair)
    if line := cost.closing_line(run.cost(), pair):
        console.print(Text(visible(line)), soft_wrap=True)


def _print_accuracies(
    console: Console,
    run: RunView,
    metrics: Sequence[StepMetrics],
    pair: summary.BeforeAfter | None,
) -> None:
    losses = _held_out_losses(metrics)
    for line in losses:
        console.print(line)
    if pair is None:
        steps = sum(line.step > 0 for line in metrics)
        if not losses:
            console.print(f"{steps} steps done; there was no task to measure accuracy on")
        return
    table = Table(title="Held-out problems", title_justify="left")
    for heading in ("", "step", "accuracy", "95 % interval", "problems", "mean reward"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, evaluation in (("before", pair.before), ("after", pair.after)):
        if evaluation is not None:
            table.add_row(name, str(evaluation.step), *_accuracy_cells(evaluation))
    console.print(table)
    if comparisons := summary.comparisons(run, pair, count=3):
        console.print(_comparison_table(comparisons))


def _held_out_losses(metrics: Sequence[StepMetrics]) -> list[str]:
    """One line for every stage that measures one, with its first and its last."""
    found: dict[int, list[StepMetrics]] = {}
    for line in metrics:
        if line.held_out_loss is not None:
            found.setdefault(line.stage, []).append(line)
    return [
        f"stage {stage}: held-out loss {lines[0].held_out_loss:.3f} nats per token after step "
        f"{lines[0].step}, {lines[-1].held_out_loss:.3f} after step {lines[-1].step}"
        for stage, lines in found.items()
    ]


def _accuracy_cells(evaluation: summary.Evaluation) -> list[str]:
    interval = "–"
    if evaluation.interval:
        interval = "{:.1%} – {:.1%}".format(*evaluation.interval)
    problems, reward = _figure("{}", evaluation.problems), _figure("{:.4g}", evaluation.reward)
    return [f"{evaluation.accuracy:.1%}", interval, problems, reward]


def _share(name: str, share: Share) -> str:
    return f"{name} {share.mean:.1%} (95 % {share.low:.1%} – {share.high:.1%})"


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


def _answer(answer: summary.ShownAnswer) -> Text:
    mark, style = ("✓", "green") if answer.right else ("✗", "red")
    text = visible(answer.text).strip() + (" …" if answer.cut else "")
    return Text.assemble((f"{mark} ", style), text)


def print_accuracy(
    console: Console, scored: Sequence[ScoredGroup], show: int, ks: Sequence[int] = ()
) -> None:
    """Accuracy, mean reward and pass@k of one evaluation, of all and of each of several tasks; and
    its first `show` answers.
    """
    tasks = of_tasks(scored)
    of_each = [(f"{visible(name)}: ", own) for name, own in tasks.items()] if len(tasks) > 1 else []
    for name, own in [("", scored), *of_each]:
        share, reward = accuracy(own), Score.of(own).reward
        worth = f"{_share('accuracy', share)}, mean reward {reward:.4g}"
        console.print(f"{name}{worth} on {share.problems} problems")
        for k, passed in passes(own, ks).items():
            console.print(f"{name}{_share(f'pass@{k}', passed)}")
    for group in scored[:show]:
        question = group.group.problem.messages[-1]["content"]
        console.print(Text(f"\n{visible(question)}", style="bold"), soft_wrap=True)
        console.print(
            _answer(summary.answer(group.group.completions[0], group.verdicts[0])), soft_wrap=True
        )
