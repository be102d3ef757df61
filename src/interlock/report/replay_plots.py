"""What repeating the sampler's kept sets changes: step metrics ──> Plot; without them, none."""

from interlock.records.metrics import StepMetrics
from interlock.report.drawing import BLUE, GREY, ORANGE, Drawing, Panel, Plot, Timeline, shown
from interlock.report.summary import Metrics


def replay_plots(metrics: Metrics, timeline: Timeline) -> list[Plot]:
    draw = Drawing(metrics, timeline)
    k3 = draw.line("over the sets", ORANGE, _over_sets)
    k3 += draw.line("over the vocabulary", GREY, _over_vocabulary)
    shares = draw.line("far, sets", ORANGE, lambda m: m.update.replay.far_share)
    shares += draw.line("far, vocabulary", GREY, lambda m: m.update.replay.whole_far_share)
    shares += draw.line("kept mass", BLUE, lambda m: m.update.replay.kept_mass)
    note = (
        "Tokens drawn from what top-p, top-k or min-p left: the learner's k3 against the sampler, "
        "and the share of ratios outside 0.9 to 1.1 (far), over those sets and over the whole "
        "vocabulary; and what the learner gives the sets (kept mass)."
    )
    rows = [
        Panel("k3, nats", k3, {"rangemode": "tozero", "exponentformat": "e"}),
        Panel("shares", shares, {"rangemode": "tozero", "tickformat": "~%"}),
    ]
    return shown([Plot("replay", "Kept sets", note, rows)])


def _over_sets(step: StepMetrics) -> float | None:
    return step.update.mismatch.k3 if step.update.mismatch and step.update.replay.whole else None


def _over_vocabulary(step: StepMetrics) -> float | None:
    return step.update.replay.whole.k3 if step.update.replay.whole else None
