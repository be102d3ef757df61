"""`[[stage]]`: the settings of every kind of stage, and what may not stand together in one."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal, Union

import msgspec
from msgspec import Meta

from interlock.config import replaying
from interlock.config.distilling import (
    Alternatives,
    DistillLoss,
    TeacherSettings,
    teacher_conflicts,
)
from interlock.config.fields import (
    Concurrent,
    Decay,
    NonNegative,
    Overlong,
    Positive,
    Rate,
    Said,
    SettingsTable,
    Share,
    ThinkingSwitch,
    Weight,
)
from interlock.config.losses import LossSettings
from interlock.config.origins import of_stage
from interlock.config.rewards import OverlongReward
from interlock.config.sampling_data import MixSettings, ReadableSettings, mix_conflicts
from interlock.config.tasks import EvaluationSettings, TaskSettings, room_for_tasks, task_conflicts
from interlock.records.rl import Sampling

# An adapter learns best at about ten times the rate of full training, whatever its rank (Thinking
# Machines, "LoRA Without Regret", 2025-09-29).
LORA_FACTOR = 10


class OptimizerSettings(SettingsTable, frozen=True):
    """`[stage.optimizer]`: AdamW on fp32 masters; linear warm-up to `lr`, then `schedule`."""

    lr: Rate = 1e-5  # the peak; not said, with learner.lora: LORA_FACTOR times that
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    eps: Rate = 1e-8
    weight_decay: Weight = 0.0
    warmup_steps: NonNegative = 0  # optimizer steps
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_lr: Share = 0.1  # share of lr left at the last step of a linear or cosine schedule
    clip_norm: Rate = 1.0  # of the whole gradient; a longer one is scaled down to it


class StageSettings(SettingsTable, frozen=True, kw_only=True, tag_field="kind"):
    """What every stage has; `kind` in the TOML tells which it is.

    A new kind is a class here, its place in STAGES, and recipes/<kind>.py (docs/recipes.md). What
    the rest of the house asks a stage is asked by the properties below, never by its class.
    """

    steps: Positive
    name: str = ""  # for --stage, `from` and reports
    # `from`: the weights that it starts with. None: what the stage before it leaves; "model": those
    # of [model]; "stage:NAME": what an earlier one left; or a run's directory, or as [model] path.
    origin: str | None = msgspec.field(name="from", default=None)
    # Of these it begins with layers 0, every_layer, 2 * every_layer, … alone: a smaller model,
    # which the stages after it go on with.
    every_layer: Annotated[int, Meta(ge=1, le=64)] = 1
    # When there is one, held-out accuracy is measured before and after. `[stage.task]` is one of
    # them, `[[stage.task]]` are several.
    task: list[TaskSettings] = []
    sampling: Sampling = Sampling(temperature=0.0)  # an evaluation takes only its limits
    eval: EvaluationSettings = EvaluationSettings()

    @property
    def kind(self) -> str:
        return str(self.__struct_config__.tag)

    @property
    def length(self) -> int:
        """Steps of the whole stage as they are counted and logged."""
        return self.steps

    @property
    def refers_to(self) -> list[str]:
        """The names of earlier stages whose weights it asks for."""
        named = None if self.origin is None else of_stage(self.origin)
        return [] if named is None else [named]

    @property
    def generates(self) -> bool:
        """Whether it needs generators, be it for an evaluation only."""
        return bool(self.task)

    @property
    def staleness(self) -> int | None:
        """Weight versions that what it samples may be behind; None: as the fleet allows."""
        return 0

    @property
    def optimizer(self) -> OptimizerSettings | None:
        """None: it learns nothing."""
        return None

    @property
    def updates(self) -> int:
        """Optimizer steps of the whole stage."""
        return 0 if self.optimizer is None else self.steps

    @property
    def keeps_reference(self) -> bool:
        """Whether the loss needs the weights that the stage began with."""
        return False

    @property
    def learns_alone(self) -> bool:
        """Whether its learner must be one process."""
        return self.every_layer > 1

    @property
    def draws_by_rate(self) -> bool:
        """Whether its steps may draw problems by what earlier ones made of them."""
        return False

    @property
    def rows_of(self) -> str | None:
        """The earlier stage whose rows it learns from, by its name; None: of none."""
        return None

    @property
    def makes_rows(self) -> bool:
        """Whether it leaves rows that a later stage may learn from."""
        return False

    def conflicts(self) -> Iterator[str]:
        """Why its settings, each right, do not go together: what follows "stage.0." in a message.

        A kind with rules of its own yields these after those of `super().conflicts()`.
        """
        if self.optimizer is not None and self.optimizer.warmup_steps >= self.updates:
            yield (
                f"optimizer.warmup_steps = {self.optimizer.warmup_steps} leaves none of the "
                f"{self.updates} optimizer steps for training; lower it"
            )
        if self.optimizer is not None and self.optimizer.lr * self.optimizer.weight_decay >= 1:
            yield (
                f"optimizer.weight_decay = {self.optimizer.weight_decay} times lr = "
                f"{self.optimizer.lr} takes all of every weight away at a step; lower one of them"
            )
        yield from task_conflicts(self.task, self.draws_by_rate)
        yield from replaying.thinking_conflicts(self.sampling)
        yield from self.eval.conflicts()
        if self.origin == "":
            yield 'from = "" names nothing; remove it, or give a run, a model or "stage:NAME"'
        yield from room_for_tasks(self.task, self.sampling.max_tokens, self.eval.problems)


class Sampled(StageSettings, frozen=True, kw_only=True):
    """A stage whose every step samples groups of completions on problems of its tasks."""

    task: Annotated[list[TaskSettings], Meta(min_length=1)]
    problems_per_step: Positive = 8
    completions: Concurrent = 8  # G, per problem
    # Weight versions a group may be behind when it is used; older ones are dropped and made again.
    # 0: generation waits for every update, and runs are exact. None: see Recipe.staleness.
    staleness: NonNegative | None = None
    sampling: Sampling = Sampling()

    @property
    def sampled_steps(self) -> int:
        """The steps that sample."""
        return self.steps

    @property
    def replays(self) -> frozenset[replaying.Replayed]:
        """What its learner repeats of how tokens were drawn."""
        return frozenset()


class Grpo(Sampled, frozen=True, kw_only=True, tag="grpo"):
    # The group inside which rewards are compared.
    completions: Annotated[int, Meta(ge=2, le=2**16)] = 8
    updates_per_step: Positive = 1  # optimizer steps on one batch of groups
    # Groups that a step may make in place of those that teach nothing (DAPO's dynamic sampling).
    extra_groups: NonNegative = 0
    # What the learner repeats of how tokens were drawn (records/replay.py). "kept": the sets that
    # top-p, top-k or min-p left, over which it normalises; "routes": the experts that tokens
    # passed, of a mixture. None: the kept sets, where any are left out.
    replay: list[replaying.Replayed] | None = None
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()

    @property
    def updates(self) -> int:
        return self.steps * self.updates_per_step

    @property
    def keeps_reference(self) -> bool:
        return self.loss.kl_beta > 0

    @property
    def draws_by_rate(self) -> bool:
        return True

    @property
    def replays(self) -> frozenset[replaying.Replayed]:
        return replaying.replayed(self.sampling, self.replay)

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        yield from replaying.replay_conflicts(self.sampling, self.replay)
        yield from (f"loss.{each}" for each in self.loss.conflicts())
        if self.loss.overlong_zone > self.sampling.max_tokens:
            yield (
                f"loss.overlong_zone = {self.loss.overlong_zone} is more than sampling.max_tokens "
                f"= {self.sampling.max_tokens}; lower it"
            )
        rewards = [reward for task in self.task for reward in task.reward]
        if self.loss.overlong_zone and any(isinstance(r, OverlongReward) for r in rewards):
            yield (
                f"loss.overlong_zone = {self.loss.overlong_zone} and a task.reward of kind "
                "'overlong' both take from long answers; remove one"
            )
        if self.sampling.temperature == 0:
            yield (
                "sampling.temperature = 0 makes all completions of a group equal; GRPO needs a "
                "temperature above 0"
            )
        if self.updates_per_step > self.problems_per_step:
            yield (
                f"updates_per_step = {self.updates_per_step} is more than problems_per_step = "
                f"{self.problems_per_step}; an update needs a group"
            )


class Distill(Sampled, frozen=True, kw_only=True, tag="distill"):
    """On-policy distillation: the student samples, its teachers score (learner/distillation.py)."""

    teacher: Annotated[list[TeacherSettings], Meta(min_length=1)]
    completions: Concurrent = 1  # per problem
    # "jsd": over the whole vocabulary; "topk": over the teacher's top_k tokens, and the rest as
    # one; "policy_gradient": on the sampled tokens alone.
    loss: DistillLoss = "jsd"
    # Of "jsd" and "topk": 0 the forward KL (student covers teacher), 1 the reverse (student keeps
    # to teacher), between them the generalised Jensen-Shannon divergence (arXiv 2306.13649).
    beta: Share = 1.0
    top_k: Alternatives = 16  # also of the sets whose overlap is measured
    # Of "policy_gradient", for the sampler's probability; as in [stage.loss] of grpo.
    correction: Literal["truncated", "masked", "off"] = "truncated"
    optimizer: OptimizerSettings = OptimizerSettings()

    @property
    def learns_alone(self) -> bool:
        return True

    @property
    def replays(self) -> frozenset[replaying.Replayed]:
        """The losses but one compare whole distributions."""
        return replaying.replayed(self.sampling, None if self.loss == "policy_gradient" else [])

    @property
    def refers_to(self) -> list[str]:
        named = [of_stage(each.model) for each in self.teacher if each.model is not None]
        return [*super().refers_to, *(name for name in named if name is not None)]

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.sampling.temperature == 0:
            yield "sampling.temperature = 0 is no distribution to compare; set one above 0"
        if self.replays:
            yield from replaying.kept_conflicts(self.sampling)
        tasks = [task.called for task in self.task]
        yield from teacher_conflicts(self.teacher, tasks, self.loss, self.sampling.temperature)
        defaults = {field.name: field.default for field in msgspec.structs.fields(Distill)}
        name = "beta" if self.loss == "policy_gradient" else "correction"
        if getattr(self, name) != defaults[name]:
            yield f"{name} is not for loss = {self.loss!r}; remove it"


class Sft(StageSettings, frozen=True, kw_only=True, tag="sft"):
    """Supervised fine-tuning on `data`: JSONL, Parquet or a saved data set (tasks/data.py), or
    "stage:NAME", the rows that an earlier reject-sft stage made.

    A row is {"messages": […]} (loss on the assistant's tokens), {"text": …} (on all of them) or
    {"prompt": …, "completion": …} (on the completion's): tasks/columns.py.
    """

    data: str = ""
    # In place of `data`: so many problems of the stage's task, with solutions (tasks/worked.py).
    worked: NonNegative = 0
    batch_size: Positive = 16  # rows per optimizer step
    max_tokens: Positive = 1024  # of a row, and no more than the model's context
    overlong: Overlong = "refuse"  # a longer row
    # How rows with `thinking` tell the model: by the template's enable_thinking, or /no_think.
    thinking_switch: ThinkingSwitch = "template"
    # Of the rows with thoughts, those that keep them; the others, and all without, teach an empty
    # block. What a row says itself (`thinking`) goes before. None: rows are as they are.
    thinking_share: Share | None = None
    optimizer: OptimizerSettings = OptimizerSettings()

    @property
    def rows_of(self) -> str | None:
        return of_stage(self.data)

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        yield from without_task(self)
        if bool(self.data) == bool(self.worked):
            yield "give either data, or worked and a [stage.task] that has worked solutions"
        elif self.worked and not self.task:
            yield f"worked = {self.worked} is of a task's problems; add a [stage.task]"
        usual = {field.name: field.default for field in msgspec.structs.fields(Sft)}
        if self.worked and self.thinking_share != usual["thinking_share"]:
            yield "thinking_share is of rows with thoughts and without; worked ones are alike"


class RejectSft(Sampled, frozen=True, kw_only=True, tag="reject-sft"):
    """Rejection sampling: `rounds` steps that sample, then `steps` that learn from the right
    answers, which are kept as JSONL in data/ of the run directory.

    Steps are counted through: those that sample come first.
    """

    rounds: Positive  # of `problems_per_step` problems each
    keep: Positive = 1  # answers of a problem, at most; different ones, in the order drawn
    readable: ReadableSettings = ReadableSettings()
    mix: list[MixSettings] = []
    batch_size: Positive = 16  # rows per optimizer step
    max_tokens: Positive = 1024  # of a row, and no more than the model's context
    overlong: Overlong = "refuse"  # a longer row of what is mixed in; a sampled one is left out
    optimizer: OptimizerSettings = OptimizerSettings()

    @property
    def makes_rows(self) -> bool:
        return True

    @property
    def length(self) -> int:
        return self.rounds + self.steps

    @property
    def sampled_steps(self) -> int:
        return self.rounds

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        yield from mix_conflicts(self.mix)
        if self.sampling.temperature == 0 and self.completions > 1:
            yield (
                f"sampling.temperature = 0 makes all {self.completions} completions equal; raise "
                "it, or set completions = 1"
            )
        if self.keep > self.completions * self.rounds:
            yield f"keep = {self.keep} is more than is drawn; lower it, or raise completions"
        if self.readable.min_chars > self.readable.max_chars:
            yield "readable.min_chars is above readable.max_chars; lower it"


class Pretrain(StageSettings, frozen=True, kw_only=True, tag="pretrain"):
    """Next-token training on plain text, `{"text": …}` a line, in rows that are all of one length.

    Texts follow one another, each new epoch in another order, and are cut where a row is full.
    """

    data: Said
    batch_size: Positive = 8  # rows per optimizer step
    row_tokens: NonNegative = 0  # 0: the model's context
    held_out: NonNegative = 0  # texts, the last of the file, that are measured and not learned
    optimizer: OptimizerSettings = OptimizerSettings()

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        yield from without_task(self)
        if self.row_tokens == 1:
            yield "row_tokens = 1 leaves nothing to predict; set 2 or more"


def without_task(stage: StageSettings) -> Iterator[str]:
    """What says how to evaluate, where there is nothing to evaluate on."""
    measures = isinstance(stage, Pretrain) and stage.held_out > 0
    usual = {field.name: field.default for field in msgspec.structs.fields(StageSettings)}
    for name in ("eval", "sampling"):
        found = getattr(stage, name)
        if name == "eval" and measures:
            found = msgspec.structs.replace(found, every=usual["eval"].every)
        if not stage.task and found != usual[name]:
            texts = ", set held_out" if name == "eval" and isinstance(stage, Pretrain) else ""
            yield (
                f"{name} says how to evaluate, but on what: add a [stage.task]{texts}, or remove it"
            )


# Every kind of stage. The recipe of "sft" is recipes/sft.py; of "a-b", recipes/a_b.py.
STAGES: tuple[type[StageSettings], ...] = (Grpo, Sft, Distill, Pretrain, RejectSft)
if TYPE_CHECKING:
    AnyStage = StageSettings
else:
    AnyStage = Union[STAGES]  # noqa: UP007  what msgspec tells apart by `kind`
