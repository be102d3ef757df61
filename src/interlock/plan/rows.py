"""Published runs, recomputed: a row of data/rl_runs.csv becomes what the formulas are asked.

    rl_runs.csv ──of_runs──┬─> PublishedFigure: what was published, and a function of Rates
                           └─> Excluded: rows that cannot be recomputed, with the reason

A row tells chips, model, sequences and lengths; what it does not tell is assumed, and the row says
so. A table in the same columns may be given from elsewhere: `interlock plan --validate FILE`.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from interlock.errors import ConfigError
from interlock.plan.chips import ChipSpec, find
from interlock.plan.constants import Rates, values
from interlock.plan.lengths import AnswerLengths
from interlock.plan.memory import generator_chips, room_for
from interlock.plan.row_notes import told
from interlock.plan.seconds import (
    GeneratorReplica,
    Learners,
    StepLoad,
    forward_s,
    generation_s,
    refilled_s,
    update_s,
)
from interlock.plan.shapes import ModelShape, named, of_counts
from interlock.plan.sharding import learner_layout, must_recompute
from interlock.plan.typical import typical_lengths

Row = dict[str, str]
_PROMPT = 115.0  # tokens, as most rows of NeMo-RL have (the identity below); assumed elsewhere
_GROUP = 16  # completions of a problem where the row does not tell; assumed
_BUCKET = 512.0  # sequences per optimizer step where the row does not tell; assumed
_ROLLOUTS = 16  # R1-Zero's steps per rollout of 8,192 completions (Nature 2025, supplement)
_ADAPTER_SHARE = 0.01  # of the weights, that an adapter has; assumed
_TIMES = ("step_s", "gen_s", "update_s")
_DYNAMIC = 2.0  # batches drawn per step with DAPO's dynamic sampling; assumed


class PublishedFigure(NamedTuple):
    """One figure that somebody published, and how it is recomputed."""

    run: str
    family: str  # framework, mode and chip: what a fit leaves out as one
    part: str  # "step", "generation", "log-probabilities", "update", "decode"
    unit: str
    seconds: float  # as published
    predict: Callable[[Rates], float]
    assumed: tuple[str, ...]  # inputs that the row does not give
    chip: ChipSpec


class Excluded(NamedTuple):
    run: str
    why: str
    timed: bool  # whether it states a time that would have to be met


def number(row: Row, name: str) -> float | None:
    """A figure of a row, above 0; None where it has none, or a text."""
    try:
        found = float(row.get(name) or "")
    except ValueError:
        return None
    return found if 0 < found < 1e15 else None


class _RowInputs(NamedTuple):
    """What all of a row's figures are computed from."""

    named: str  # run and model: whether it thinks
    shape: ModelShape
    chip: ChipSpec
    chips: float
    asynchronous: bool
    generating: float  # chips; all of them where roles take turns
    learning: float
    completions: float
    group: float
    prompt: float
    longest: float
    mean: float | None
    tensor: int  # chips of a generator's replica
    layout: tuple[int, int, int, int]  # tensor, context, expert, stages of the learner
    weight_bytes: float
    recompute: bool
    scored: float  # passes for log-probabilities: old ones, a reference's
    drawn: float  # batches that are generated for one that is learned from
    steps_per_rollout: float
    bucket: float  # sequences per optimizer step
    ahead: float  # steps whose completions are under way at the same time

    def lengths(self, rates: Rates) -> AnswerLengths:
        if self.mean is not None:
            mean = min(self.mean, self.longest)
            return AnswerLengths(mean, self.longest, rates.spread, rates.endless)
        return typical_lengths(self.named, self.longest, rates.spread, rates.endless)

    def load(self, rates: Rates) -> StepLoad:
        return StepLoad(
            self.completions / self.group, self.completions, self.prompt, self.lengths(rates)
        )

    def learners(self) -> Learners:
        tensor, context, expert, stages = self.layout
        return Learners(
            self.shape,
            self.chip,
            int(self.learning),
            tensor,
            stages,
            expert,
            context,
            self.weight_bytes,
            self.recompute,
            bucket=min(self.bucket, self.completions),
        )

    def generation(self, rates: Rates) -> float:
        load = self.load(rates)
        more = self.steps_per_rollout * self.drawn * self.ahead
        load = load._replace(prompts=load.prompts * more, completions=load.completions * more)
        replicas = max(1.0, self.generating / self.tensor)
        chips = min(self.tensor, int(self.generating))
        slots = room_for(
            self.shape, self.chip, chips, self.weight_bytes, load.prompt_tokens + load.lengths.mean
        )
        of = GeneratorReplica(self.shape, self.chip, chips, slots, self.weight_bytes)
        whole = (refilled_s if self.asynchronous else generation_s)(of, replicas, load, rates)
        return whole / (self.steps_per_rollout * self.ahead)

    def log_probabilities(self, rates: Rates) -> float:
        return forward_s(self.learners(), self.load(rates), rates)

    def update(self, rates: Rates) -> float:
        updates = max(1.0, self.completions / self.bucket)
        return update_s(self.learners(), self.load(rates), updates, rates)

    def overhead(self, rates: Rates) -> float:
        """Weights handed to the engine, and memory given from role to role."""
        handed = rates.step_s + rates.step_s_per_gb * self.shape.params * 2.0 / 1e9
        return handed * (rates.apart if self.asynchronous else 1.0) / self.steps_per_rollout

    def step(self, rates: Rates) -> float:
        passes = self.scored * self.log_probabilities(rates)
        learned = passes + self.update(rates) + self.overhead(rates)
        generated = self.generation(rates)
        return max(generated, learned) if self.asynchronous else generated + learned


def of_runs(rows: Iterable[Row]) -> tuple[list[PublishedFigure], list[Excluded]]:
    """Every row that states a time, recomputed or named with the reason why not."""
    found: list[PublishedFigure] = []
    left: list[Excluded] = []
    for row in rows:
        name = row.get("run", "")
        if not any(number(row, each) for each in (*_TIMES, "tokens_s_per_chip")):
            left.append(Excluded(name, "states no time of a step", False))
        elif (why := _unfit(row)) is not None:
            left.append(Excluded(name, why, True))
        else:
            found += _published(row)
    return found, left


def _unfit(row: Row) -> str | None:
    text = " ".join(row.values()).lower()
    if "agentic" in text or "swe" in row["run"].lower():
        return "agentic: its environments set the time, and the row says nothing of them"
    if chip_name(row) == "cpu":
        return "a CPU: planned from a profile of the machine, not from a catalogue"
    chips = row.get("n_chips", "")
    if not chips.isdecimal() or not 0 < int(chips) <= 10**6:
        return f"chips: {row.get('n_chips') or 'not stated'}"
    try:
        find(chip_name(row))
    except ConfigError:
        return f"chip {row['chip'] or 'not stated'!r} is not in the catalogue"
    if not (number(row, "params_total_b") or named(row["model"])):
        return f"model {row['model']!r} is unknown"
    if "update only" in row["algorithm"]:
        return None if number(row, "max_seq_tokens") else "states no length"
    if number(row, "max_seq_tokens") is None:
        return "states no longest completion"
    return None


def chip_name(row: Row) -> str:
    """The chip of a row, in the words of the catalogue."""
    plain = row["chip"].split(" (")[0]
    if "xeon" in plain.lower() or "cpu" in plain.lower():
        return "cpu"
    return re.sub(r" ?(80GB|HBM3e?|141GB|SXM5?|NVL\d+|96GB)", "", plain).strip()


def shape_of(row: Row) -> ModelShape:
    found = named(row["model"])
    total = number(row, "params_total_b")
    if found is not None and (total is None or 0.6 < found.params / (total * 1e9) < 1.7):
        return found
    assert total is not None
    active = number(row, "params_active_b") or total
    return of_counts(row["model"], total * 1e9, active * 1e9)


def _published(row: Row) -> list[PublishedFigure]:
    if "update only" in row["algorithm"]:
        return [_update_alone(row)]
    run, assumed = _run(row)
    family = family_of(row)
    parts = (
        ("step", "step_s", run.step),
        ("generation", "gen_s", run.generation),
        ("log-probabilities", "logprob_s", run.log_probabilities),
        ("update", "update_s", run.update),
    )
    stated = {part: number(row, column) for part, column, _ in parts}
    if run.asynchronous:
        del stated["generation"]  # it is what is left to wait for
    if not any(number(row, each) for each in _TIMES):
        assumed.append("seconds, from tokens a second")
        rate = float(row["tokens_s_per_chip"]) * run.chips
        stated["step"] = run.load(values()).tokens / rate
    return [
        PublishedFigure(row["run"], family, part, "s", seconds, predict, tuple(assumed), run.chip)
        for part, _, predict in parts
        if (seconds := stated.get(part))
    ]


def _runs_ahead(mode: str) -> bool:
    return ("off" in mode and "on policy" not in mode) or "async" in mode


def family_of(row: Row) -> str:
    """Framework, mode and chip."""
    mode = row["mode"].lower()
    if "update only" in row["algorithm"]:
        learner = "LoRA" if "lora" in mode else "SFT" if "sft" in mode else "full"
        kind = f"learner, {learner}"
    elif not _runs_ahead(mode):
        kind = "synchronous"
    else:
        one = "off" in mode and told(row["notes"], mode).ahead == 1.0
        kind = "one step off" if one else "asynchronous"
    first = row["run"].split(" ")[0]
    framework = {"DeepSeek-R1-Zero": "DeepSeek", "Interlock": "own CPU", "TRL": "own CPU"}
    return f"{framework.get(first, first)} {kind}, {chip_name(row)}"


def _update_alone(row: Row) -> PublishedFigure:
    shape, chip, chips = shape_of(row), find(chip_name(row)), int(row["n_chips"])
    longest = number(row, "max_seq_tokens")
    assert longest is not None
    together = re.search(r"-cp(\d+)\b", row["source"])
    shared = int(together[1]) if together else 1

    def predict(rates: Rates) -> float:
        # With context parallelism several chips share a sequence.
        load = StepLoad(
            2 * chips / shared,
            2 * chips / shared,
            1.0,
            AnswerLengths(longest - 1, longest - 1, rates.spread),
        )
        adapter = _ADAPTER_SHARE * shape.params if "lora" in row["mode"].lower() else 0.0
        return update_s(Learners(shape, chip, chips, adapter=adapter), load, 1.0, rates)

    published = number(row, "update_s") or number(row, "step_s")
    assert published is not None
    assumed = ("two sequences a chip and step, as tokens/s times seconds says",)
    family = family_of(row)
    return PublishedFigure(row["run"], family, "update", "s", published, predict, assumed, chip)


def _run(row: Row) -> tuple[_RowInputs, list[str]]:
    """A row's inputs, and what it does not tell."""
    assumed: list[str] = []
    notes, mode = row["notes"], row["mode"].lower()
    stated = told(notes, mode)
    asynchronous = _runs_ahead(mode)
    shape, chip, chips = shape_of(row), find(chip_name(row)), _chips(row, assumed)
    generating, learning = _split(row, chips, asynchronous, assumed)
    # DeepSeek-V3 is trained and served in fp8 by those who made it (arXiv:2412.19437).
    weight_bytes = 1.0 if "FP8 train" in notes or row.get("org") == "DeepSeek" else 2.0
    completions, group = _completions(row, assumed)
    longest = _longest(row)
    if number(row, "mean_seq_tokens") is None:
        assumed.append("mean length")
    if stated.tensor is None:
        assumed.append("parallelism")
    tensor = stated.tensor or generator_chips(shape, chip, weight_bytes)
    layout = stated.layout or learner_layout(shape, chip, int(learning))
    split = layout[0] * layout[1] * layout[3]
    # NeMo-RL's recipes keep activations where they fit; the others recompute them always.
    kept = "NeMo" in row["run"] and not must_recompute(shape, chip, int(learning), longest, split)
    recompute = not kept if stated.recompute is None else stated.recompute
    return _RowInputs(
        named=f"{row['run']} {row['model']}",
        shape=shape,
        chip=chip,
        chips=chips,
        asynchronous=asynchronous,
        generating=generating,
        learning=learning,
        completions=completions,
        group=group,
        prompt=_prompt(row),
        longest=longest,
        mean=number(row, "mean_seq_tokens"),
        tensor=tensor,
        layout=layout,
        weight_bytes=weight_bytes,
        recompute=recompute,
        scored=_scored(row) if stated.scored is None else stated.scored,
        drawn=_DYNAMIC if "DAPO" in row["algorithm"] and "NeMo" in row["run"] else 1.0,
        steps_per_rollout=_ROLLOUTS if "R1-Zero" in row["run"] else 1.0,
        bucket=stated.bucket or _BUCKET,
        ahead=stated.ahead if asynchronous else 1.0,
    ), assumed


def _scored(row: Row) -> float:
    """NeMo-RL and R1 have a reference; an update stated alone has no such passes."""
    if number(row, "update_s") and not number(row, "logprob_s"):
        return 0.0
    return 2.0 if "NeMo" in row["run"] or "DeepSeek" in row["run"] else 1.0


def _chips(row: Row, assumed: list[str]) -> float:
    """A row whose notes call its chips ambiguous has as many as its name says."""
    stated = float(row["n_chips"])
    match = re.search(r"x(\d+)\b", row["run"])
    if "ambiguous" not in row["notes"] or match is None or float(match[1]) == stated:
        return stated
    assumed.append(f"{match[1]} chips, as its name says, not {stated:g}")
    return float(match[1])


def _longest(row: Row) -> float:
    """Where it grew within the run, what most steps had."""
    grew = re.search(r"([\d,]+) then [\d,]+ max length", row["notes"])
    stated = number(row, "max_seq_tokens")
    assert stated is not None
    return float(grew[1].replace(",", "")) if grew else stated


def _split(row: Row, chips: float, asynchronous: bool, assumed: list[str]) -> tuple[float, float]:
    """Chips that generate and chips that learn; roles that take turns have all of them."""
    if not asynchronous:
        return chips, chips
    match = re.match(r"(\d+):(\d+)", row.get("split_gen_train") or "")
    if match:
        share = float(match[1]) / (float(match[1]) + float(match[2]))
        return chips * share, chips * (1 - share)
    assumed.append("half of the chips for each role")
    return chips / 2, chips / 2


def _completions(row: Row, assumed: list[str]) -> tuple[float, float]:
    match = re.fullmatch(r"(\d+)x(\d+)", row.get("prompts_x_group") or "")
    stated = number(row, "sequences_per_step")
    if match:
        return stated or float(match[1]) * float(match[2]), float(match[2])
    if stated is None:
        assumed.append("512 problems x 16")
        return 512.0 * _GROUP, _GROUP
    return stated, _GROUP if stated <= _BUCKET else 2 * _GROUP


def _prompt(row: Row) -> float:
    """Prompt tokens by the identity, or by the tokens of a step, where they are plausible."""
    found = identity(row)
    sequences, mean = number(row, "sequences_per_step"), number(row, "mean_seq_tokens")
    if found is None and sequences and mean and (tokens := number(row, "tokens_per_step")):
        found = tokens / sequences - mean
    return found if found is not None and 50 <= found <= 200 else _PROMPT


def identity(row: Row) -> float | None:
    """Tokens per second and chip times step times chips, per sequence, less the mean length: what
    is left are the prompt's tokens. None where the row does not state all of them."""
    rate, step, chips, sequences, mean = (
        number(row, each)
        for each in (
            "tokens_s_per_chip",
            "step_s",
            "n_chips",
            "sequences_per_step",
            "mean_seq_tokens",
        )
    )
    if not (rate and step and chips and sequences and mean):
        return None
    return rate * step * chips / sequences - mean
