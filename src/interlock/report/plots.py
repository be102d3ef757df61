"""Which plots a run's page has. A quantity that no step logged has none.

step metrics, evaluations ──> [Plot]; drawing.py draws them
"""

from collections.abc import Sequence

from interlock.records.metrics import StepMetrics
from interlock.report.drawing import (
    BLUE,
    FROM_ZERO,
    GREEN,
    GREY,
    HUES,
    ORANGE,
    PERCENT,
    ROSE,
    SMALL,
    TEAL,
    VIOLET,
    Drawing,
    Panel,
    Plot,
    Timeline,
    Trace,
    shown,
)
from interlock.report.summary import Evaluation, Metrics
from interlock.text import label


def plots(metrics: Metrics, evaluations: Sequence[Evaluation], timeline: Timeline) -> list[Plot]:
    """Every plot the run has numbers for, in the order of the page."""
    draw = Drawing(metrics, timeline)
    candidates = [
        Plot(
            "accuracy",
            "Held-out accuracy",
            "Answers to problems never trained on; bars are 95 % Wilson intervals.",
            [Panel("accuracy", _accuracy(evaluations, timeline), PERCENT | {"range": [0, 1]})],
        ),
        Plot(
            "tasks",
            "Held-out accuracy by task",
            "Answers to problems never trained on, of stages that have several tasks.",
            [Panel("accuracy", _by_task(evaluations, timeline), PERCENT | {"range": [0, 1]})],
        ),
        *_learning(draw),
        *_policy(draw),
        *_cost(draw),
    ]
    return shown(candidates)


def _learning(draw: Drawing) -> list[Plot]:
    loss = draw.line("loss", VIOLET, lambda m: m.update.loss)
    norm = draw.line("gradient norm", VIOLET, lambda m: m.update.grad_norm)
    rate = draw.line("learning rate", GREY, lambda m: m.update.lr)
    return [
        Plot(
            "reward",
            "Reward and right answers",
            "Over all completions sampled in a step. A reward may be any number; what is right the "
            "verifier says.",
            [
                Panel("mean reward", draw.smoothed(lambda m: m.rollout.reward, BLUE), {}),
                Panel("right", draw.line("right", GREEN, lambda m: m.rollout.correct), PERCENT),
            ],
        ),
        Plot(
            "loss",
            "Loss",
            "Of a GRPO step only the gradient matters, not the level. Held out: of texts that a "
            "pretrain stage does not learn.",
            [
                Panel(
                    "loss",
                    [*loss, *draw.points("held out", GREEN, lambda m: m.held_out_loss)],
                    {"exponentformat": "e"},  # of GRPO a few 1e-8, which else are "50n"
                )
            ],
        ),
        Plot(
            "gradient",
            "Gradient norm and learning rate",
            "The norm is the one before clipping.",
            [Panel("norm", norm, FROM_ZERO), Panel("learning rate", rate, SMALL)],
        ),
    ]


def _policy(draw: Drawing) -> list[Plot]:
    length = [*draw.line("length", BLUE, lambda m: m.rollout.length), *_apart(draw)]
    cut = [
        *draw.line("share cut", ORANGE, lambda m: m.rollout.truncated),
        *draw.line("thinking ended by its budget", VIOLET, _over_budget),
    ]
    entropy = draw.line("entropy", GREEN, lambda m: m.update.entropy)
    return [
        Plot(
            "length",
            "Completion length",
            "Mean length, of models that think also what thinks and what answers; and the share of "
            "completions cut at max_tokens, or whose thinking had used its budget.",
            [Panel("tokens", length, FROM_ZERO), Panel("share cut", cut, PERCENT)],
        ),
        Plot(
            "entropy",
            "Entropy",
            "Of the policy's next token, mean; a fall to zero ends exploration.",
            [Panel("nats per token", entropy, FROM_ZERO)],
        ),
        Plot(
            "mismatch",
            "Mismatch of learner and sampler",
            "Same tokens, same weights: k3 estimate of the KL, and the share of ratios above 2.",
            [
                Panel("k3, nats", draw.line("k3", ORANGE, _k3), SMALL),
                Panel("ratio > 2", draw.line("ratio > 2", GREY, _share_above_2), PERCENT),
            ],
        ),
    ]


def _over_budget(metrics: StepMetrics) -> float | None:
    cut, answers = metrics.rollout.thinking_cut, metrics.rollout.completions
    return None if cut is None or not answers else cut / answers


def _apart(draw: Drawing) -> list[Trace]:
    """Thinking and answer; nothing where nobody ever thought."""
    thinking = draw.line("thinking", VIOLET, lambda m: m.rollout.thinking_length)
    answer = draw.line("answer", TEAL, lambda m: m.rollout.answer_length)
    thought = any(y for trace in thinking for y in trace["y"])
    return [*thinking, *answer] if thought else []


def _cost(draw: Drawing) -> list[Plot]:
    generation = draw.line("generation", BLUE, _generation_rate)
    update = draw.line("update", ORANGE, _update_rate)
    return [
        Plot(
            "time",
            "Time per step",
            "Stacked by what it went to.",
            [Panel("seconds", _time_split(draw), FROM_ZERO)],
        ),
        Plot(
            "speed",
            "Tokens per second",
            "Sampled per second of generation, trained per second of update.",
            [Panel("tokens / s", [*generation, *update], FROM_ZERO)],
        ),
    ]


def _time_split(draw: Drawing) -> list[Trace]:
    traces = [
        *draw.line("generation", BLUE, lambda m: m.seconds.generate),
        *draw.line("waiting for groups", TEAL, lambda m: m.seconds.wait),
        *draw.line("verification", GREEN, lambda m: m.seconds.verify),
        *draw.line("update", ORANGE, lambda m: m.seconds.update),
        *draw.line("publishing", ROSE, lambda m: m.seconds.publish),
        *draw.line("other", GREY, _other_seconds),
    ]
    return draw.bars(traces)


def _accuracy(evaluations: Sequence[Evaluation], timeline: Timeline) -> list[Trace]:
    """One trace per stage: two stages may be measured on different problems."""
    traces = []
    for stage in dict.fromkeys(evaluation.stage for evaluation in evaluations):
        own = [evaluation for evaluation in evaluations if evaluation.stage == stage]
        ends = [point.interval or (point.accuracy, point.accuracy) for point in own]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": "accuracy",
                "showlegend": False,
                "x": [timeline.x(point.stage, point.step) for point in own],
                "y": [point.accuracy for point in own],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [high - p.accuracy for p, (_, high) in zip(own, ends, strict=True)],
                    "arrayminus": [p.accuracy - low for p, (low, _) in zip(own, ends, strict=True)],
                    "color": GREY,
                    "thickness": 1.2,
                    "width": 4,
                },
                "line": {"color": GREEN, "width": 2.5},
                "marker": {"size": 8},
            }
        )
    return traces


def _by_task(evaluations: Sequence[Evaluation], timeline: Timeline) -> list[Trace]:
    """One trace per task and stage, all of a task in one colour."""
    names = list(dict.fromkeys(name for each in evaluations for name in each.tasks))
    traces = []
    for place, name in enumerate(names):
        of_task = [each for each in evaluations if name in each.tasks]
        for stage in dict.fromkeys(each.stage for each in of_task):
            own = [each for each in of_task if each.stage == stage]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": label(name),
                    "legendgroup": label(name),
                    "showlegend": stage == of_task[0].stage,
                    "x": [timeline.x(each.stage, each.step) for each in own],
                    "y": [each.tasks[name].mean for each in own],
                    "line": {"color": HUES[place % len(HUES)], "width": 2},
                }
            )
    return traces


def _k3(step: StepMetrics) -> float | None:
    return step.update.mismatch.k3 if step.update.mismatch else None


def _share_above_2(step: StepMetrics) -> float | None:
    return step.update.mismatch.share_above_2 if step.update.mismatch else None


def _other_seconds(step: StepMetrics) -> float | None:
    spent = step.seconds
    parts = (spent.generate, spent.wait, spent.verify, spent.update, spent.publish)
    known = [part for part in parts if part is not None]
    return max(0.0, spent.step - sum(known)) if known and spent.step is not None else None


def _generation_rate(step: StepMetrics) -> float | None:
    return _rate(step.rollout.tokens, step.seconds.generate)


def _update_rate(step: StepMetrics) -> float | None:
    return _rate(step.update.tokens, step.seconds.update)


def _rate(tokens: float | None, seconds: float | None) -> float | None:
    return tokens / seconds if tokens is not None and seconds else None
