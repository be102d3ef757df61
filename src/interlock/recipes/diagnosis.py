"""Why a run does not learn, said while it runs, and what to change.

    StepMetrics' rollout and update of every step ── the last WINDOW ──> causes ──> events
                                                     one line each: what is seen, what to set

Each cause is one event, and another only after it was over. The figures of earlier steps are read
from the run's own log: a resumed run goes on watching. A run that learns, or has learned, has none.
"""

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

from interlock.config.losses import LossSettings
from interlock.config.rewards import FormatReward
from interlock.config.stages import Sampled
from interlock.recipes.stage import Stage
from interlock.records.metrics import EventKind, RolloutMetrics, UpdateMetrics

WINDOW = 5  # steps that are looked at; fewer say nothing
LONG = 12  # of what is seen in the mean of many steps alone
_FORMLESS = 0.02  # share of answers that are in form, or can be read
_CUT = 0.5  # share of answers that max_tokens ended
_RIGHT, _WRONG = 0.9, 0.1  # shares of right answers that count as most, and as few
_TAUGHT = 1 / 6  # of the groups: fewer than these are too few to learn from
_SURE = 0.1  # of the early entropy
_EARLY = 3  # steps that make up the early entropy, which falls from the first on
_MOST_COMPLETIONS = 64
_MOST_TEMPERATURE = 1.0


class Seen(NamedTuple):
    """One step."""

    rollout: RolloutMetrics
    update: UpdateMetrics


class LearningWatch:
    """Watches one stage."""

    def __init__(self, stage: Stage[Sampled], loss: LossSettings) -> None:
        self._stage, self._loss = stage, loss
        self._seen = [
            Seen(line.rollout, line.update)
            for line in stage.run.metrics()
            if line.stage == stage.index and 0 < line.step <= stage.done
        ]
        self._raised = set(dict(causes(self._seen, stage.settings, loss)))

    def look(self, step: int, rollout: RolloutMetrics, update: UpdateMetrics) -> None:
        """Take in one step, and keep an event for each cause that begins with it."""
        self._seen.append(Seen(rollout, update))
        now = dict(causes(self._seen, self._stage.settings, self._loss))
        for kind, message in now.items():
            if kind not in self._raised:
                self._stage.event(kind, f"step {step}: {message}")
        self._raised = set(now)


def causes(
    seen: Sequence[Seen], settings: Sampled, loss: LossSettings
) -> Iterator[tuple[EventKind, str]]:
    """Why so little is learned in the last of these steps; nothing where much is, or was.

    "accuracy_fell": fewer than half as many answers are right as in the best steps before; what
    else is then seen follows from it.
    "answers_cut": max_tokens ends half of the answers and more, and few are right.
    "form_never_met": next to no answer can be read, or is in the form that a reward is for.
    "nothing_taught": no group's rewards differ, all being wrong, all right, or each group of a
    kind. "little_taught": few groups' do, nearly all answers being wrong.
    "entropy_collapsed": the answers to a problem are all the same, though many are wrong.
    """
    recent = seen[-WINDOW:]
    if len(recent) < WINDOW:
        return
    if fell := _fell(seen, settings, loss):
        yield "accuracy_fell", fell
        return
    if cut := _cut(recent, settings):
        yield "answers_cut", cut
    formless = _formless(recent, settings)
    if formless:
        yield "form_never_met", formless
    if collapsed := _collapsed(seen, settings, loss):
        yield "entropy_collapsed", collapsed
    elif not _taught(recent):
        # A form that is never met is why nothing is right: it has been said.
        if not formless or _mean(recent, _correct) > _WRONG:
            yield "nothing_taught", _untaught(recent, settings, loss)
    elif not formless and (little := _little(seen[-LONG:], settings)):
        yield "little_taught", little


def _fell(seen: Sequence[Seen], settings: Sampled, loss: LossSettings) -> str | None:
    recent, before = seen[-WINDOW:], seen[:-WINDOW]
    windows = [before[end - WINDOW : end] for end in range(WINDOW, len(before) + 1)]
    best = max(windows, key=lambda steps: _mean(steps, _correct), default=None)
    if best is None:
        return None
    most, now = _mean(best, _correct), _mean(recent, _correct)
    if most < _WRONG or now >= most / 2:
        return None
    said = f"{now:.1%} of the answers are right, and {most:.0%} were in the best {WINDOW} steps"
    if settings.task[0].reward and _mean(recent, _reward) >= _mean(best, _reward):
        return (
            f"{said}, while the reward rose: something else pays; lower the weight of the rewards "
            "that grew (stage.task.reward), or give them fades"
        )
    return f"{said}: {_livelier(settings, loss)}"


def _cut(recent: Sequence[Seen], settings: Sampled) -> str | None:
    share, right = _mean(recent, _truncated), _mean(recent, _correct)
    if share < _CUT or right >= 0.5:
        return None
    limit = settings.sampling.max_tokens
    stop = (
        ""
        if settings.sampling.stop
        else '; or end them sooner, by sampling.stop = ["\\n"] where an answer is a line'
    )
    return (
        f"{share:.0%} of the answers are cut off at max_tokens = {limit}, and {right:.0%} are "
        f"right: set stage.sampling.max_tokens = {2 * limit}{stop}"
    )


def _formless(recent: Sequence[Seen], settings: Sampled) -> str | None:
    rewards = [each for task in settings.task for each in task.reward]
    paid = {each.called for each in rewards if isinstance(each, FormatReward)}
    found = {name for each in recent for name in each.rollout.parts}
    for name in sorted(found):
        read = name.rpartition("/")[2] == "read"  # what verifiers say that look for one answer
        if not read and name not in paid:
            continue
        shares = [each.rollout.parts[name] for each in recent if name in each.rollout.parts]
        if len(shares) < WINDOW or fmean(shares) > _FORMLESS:
            continue
        what = "can be read" if read else f"is in the form of reward {name!r}"
        return (
            f"{fmean(shares):.1%} of the answers {what}: tell the form (stage.task.system) or show "
            "it (reasoning-gym: stage.task.options.shots = 3), or begin with an sft stage, or a "
            "longer one, on answers that are in form"
        )
    return None


def _untaught(recent: Sequence[Seen], settings: Sampled, loss: LossSettings) -> str:
    """Why no group teaches, from how many answers are right."""
    right, many = _mean(recent, _correct), len(recent)
    said = f"no group has taught anything in {many} steps"
    if right <= _WRONG and _mean(recent, _verdict) <= _WRONG:
        return f"{said}: all answers are wrong ({right:.0%} right): {_easier(settings)}"
    if right >= _RIGHT:
        return (
            f"{said}: all answers are right ({right:.0%}): nothing is left to learn; stop here, or "
            "take harder problems (stage.task.options)"
        )
    return f"{said}: all answers to a problem earn the same, {right:.0%} are right: " + _livelier(
        settings, loss
    )


def _little(recent: Sequence[Seen], settings: Sampled) -> str | None:
    right, taught = _mean(recent, _correct), _taught(recent)
    if len(recent) < LONG or right > _WRONG or taught >= _TAUGHT:
        return None
    return (
        f"{taught:.0%} of the groups of {len(recent)} steps taught anything, as {right:.1%} of the "
        f"answers are right: {_easier(settings)}"
    )


def _collapsed(seen: Sequence[Seen], settings: Sampled, loss: LossSettings) -> str | None:
    """As a learned answer is sure of itself too: only where hardly any group teaches any more, and
    many answers are wrong.
    """
    entropies = [each.update.entropy for each in seen if each.update.entropy is not None]
    if len(entropies) < _EARLY + WINDOW:
        return None
    early, late = fmean(entropies[:_EARLY]), fmean(entropies[-WINDOW:])
    recent = seen[-WINDOW:]
    right, taught = _mean(recent, _correct), _taught(recent)
    if late > _SURE * early or right >= _RIGHT or taught >= _TAUGHT:
        return None
    return (
        f"entropy fell from {early:.2g} to {late:.2g} nats per token, {taught:.0%} of the groups "
        f"teach and {right:.0%} of the answers are right: {_livelier(settings, loss)}"
    )


def _easier(settings: Sampled) -> str:
    """What lets a right answer come up."""
    more = min(_MOST_COMPLETIONS, 2 * settings.completions)
    ways = [
        "take easier problems (stage.task.options)",
        "or begin with an sft stage, or a longer one",
    ]
    if more > settings.completions:
        ways.append(f"or set stage.completions = {more}")
    return ", ".join(ways)


def _livelier(settings: Sampled, loss: LossSettings) -> str:
    """What keeps answers different."""
    ways = []
    if settings.sampling.temperature < _MOST_TEMPERATURE:
        ways.append(f"set stage.sampling.temperature = {_MOST_TEMPERATURE}")
    if settings.optimizer is not None:
        ways.append(f"begin again with stage.optimizer.lr = {settings.optimizer.lr / 2:g}")
    if loss.rule == "clip" and loss.clip_high < 0.28:
        ways.append("stage.loss.clip_high = 0.28")
    if not loss.kl_beta:
        ways.append("stage.loss.kl_beta = 0.001")
    return ", ".join(ways)


def _taught(recent: Sequence[Seen]) -> float:
    """The share of the groups whose rewards differ."""
    groups = sum(each.rollout.groups or 0 for each in recent)
    skipped = sum(each.rollout.groups_skipped or 0 for each in recent)
    return (groups - skipped) / groups if groups else 0.0


def _correct(each: Seen) -> float | None:
    return each.rollout.correct


def _reward(each: Seen) -> float | None:
    return each.rollout.reward


def _verdict(each: Seen) -> float | None:
    return each.rollout.verdict


def _truncated(each: Seen) -> float | None:
    return each.rollout.truncated


def _mean(recent: Sequence[Seen], figure: Callable[[Seen], float | None]) -> float:
    known = [value for each in recent if (value := figure(each)) is not None]
    return fmean(known) if known else 0.0
