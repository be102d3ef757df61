"""Every table of a recipe with its settings, their units, types and defaults; none is elsewhere.

Names follow the TOML: `[[generator]]` is a GeneratorSettings, `[stage.loss]` a LossSettings. Names
that end in `_s` are seconds, in `_mb` megabytes of 2^20 bytes. Reading a file is in reading.py, and
what settings may not stand together in checks.py, but for those of one stage: `conflicts`.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import msgspec
from msgspec import Meta

from interlock.records.rl import Sampling

# Every number has an end on both sides: what is larger is a slip, and no float or message takes it.
Positive = Annotated[int, Meta(gt=0, le=10**9)]
Processes = Annotated[int, Meta(gt=0, le=4096)]
NonNegative = Annotated[int, Meta(ge=0, le=10**9)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Rate = Annotated[float, Meta(gt=0, le=1e9)]
Concurrent = Annotated[int, Meta(ge=1, le=2**16)]  # of what takes memory at the same time
Weight = Annotated[float, Meta(ge=0, le=1e9)]
Share = Annotated[float, Meta(ge=0, le=1)]
Decay = Annotated[float, Meta(ge=0, lt=1)]  # of a running mean, which 1 would never move
EngineName = Literal["torch", "vllm"]  # the modules are named in workers/generator.py
# "auto", and 0 where it says so: as measured on the device (chips/probe.py); the run records it.
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Kernel = Literal["auto", "torch", "mkl", "onednn"]  # what multiplies: chips/products.py

Overlong = Literal["refuse", "leave_out"]  # what is done about data that does not fit


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every table of a recipe."""


class ModelSettings(_Section, frozen=True):
    """`[model]`: what the first stage begins with."""

    path: str  # a Hugging Face directory, "hf:org/name[@revision]", or "smollm2-135m-instruct"
    chat_template: str | None = None  # a Jinja file that replaces the model's own
    # The time that a chat template is told; None: when the run begins, which the run records.
    clock: datetime | None = None


class GeneratorSettings(_Section, frozen=True):
    """`[[generator]]`: one generation worker, or `count` of them.

    What is not inline runs in a process of its own.
    """

    name: str = ""  # of the workers, for logs and the report; "": generator-<index>
    count: Processes = 1
    engine: EngineName = "torch"
    device: str = "cpu"  # "cpu", "cuda:1", "npu", …: as chips/device.py names them
    dtype: Dtype = "auto"  # of its weights and products
    kernel: Kernel = "auto"  # of the torch engine
    fused_attention_above: NonNegative = 0  # keys, of the torch engine; 0: as measured
    # Of the torch engine: decoding steps are recorded and launched as a whole (chips/graphs.py).
    graphs: bool | Literal["auto"] = "auto"
    slots: Concurrent = 64  # completions decoded at the same time
    # Of the torch engine. As they are, equal work gives equal bits; who serves sets others.
    patience: NonNegative = 8  # steps that a free slot waits for several prompts to go together
    prefill_chunk: NonNegative = 0  # tokens of prompts computed beside a step; 0: whole prompts
    prefix_cache_mb: NonNegative = 0  # of keys and values of what prompts begin with; 0: none
    python: str | None = None  # interpreter of the worker's own environment; None: the learner's
    env: dict[str, str] = {}  # environment variables of the worker, added to the learner's
    resources: dict[str, Weight] = {}  # what a Ray worker needs: {GPU = 1}, {NPU = 1}, {CPU = 2}
    sync_url: str | None = None  # where the worker reads weights, if not where the learner writes
    options: dict[str, Any] = {}  # the engine's own settings: keyword arguments of vllm.LLM


class FleetSettings(_Section, frozen=True):
    """`[fleet]`: how the generators run, and what is done about those that fail.

    `kind`: "inline" calls the one generator in the learner's process; "local" starts processes on
    this machine; "ray" starts Ray actors.
    """

    kind: Literal["inline", "local", "ray"] = "inline"
    address: str | None = None  # of a Ray cluster; None: RAY_ADDRESS, else one is started here
    # Problems handed to a worker at a time; 0: a step's, shared evenly, where runs are exact
    # (staleness 0), else one by one.
    unit: NonNegative = 0
    start_s: Rate = 600.0  # for a worker to start its engine
    load_s: Rate = 600.0  # for a worker to fetch, load and prove a weight version
    unit_s: Rate = 1800.0  # for a worker to answer one unit
    silence_s: Annotated[float, Meta(ge=5, le=1e9)] = 30.0  # without a sign of life (every 2 s)
    backoff_s: Rate = 1.0  # before the first restart; doubles up to a minute
    failures: Positive = 5  # in a row, without an answer between them, after which one is retired
    strikes: Positive = 3  # failures of workers on a problem, after which it is set aside
    qualify_s: Rate = 600.0  # for a worker in quarantine to be qualified anew, in the smallest form
    requalify: NonNegative = 1  # times one may come back that way; then quarantine is for good


class SyncSettings(_Section, frozen=True):
    """`[sync]`: where weight versions are published for generators that are not inline."""

    url: str | None = None  # any fsspec URL: a path, s3://…, …; None: sync/ in the run directory
    anchor_every: Positive = 20  # versions: every so many is whole, those between are deltas


class GuardSettings(_Section, frozen=True):
    """`[guard]`: how far a generator's numbers may be from the learner's.

    Measured as the mean k3 of learner against generator, in nats per token, on the same tokens and
    weights: the canary of every version, and the fresh tokens of every step.
    """

    warn: Rate = 1e-3  # an event of the run
    quarantine: Rate = 1e-2  # the generator's unused groups are dropped and made again elsewhere
    min_tokens: Positive = 128  # fresh tokens of a worker in a step; of fewer the k3 says nothing


class OptimizerSettings(_Section, frozen=True):
    """`[stage.optimizer]`: AdamW on fp32 masters; linear warm-up to `lr`, then `schedule`."""

    lr: Rate = 1e-5  # the peak
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    eps: Rate = 1e-8
    weight_decay: Weight = 0.0
    warmup_steps: NonNegative = 0  # optimizer steps
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_lr: Share = 0.1  # share of lr left at the last step of a linear or cosine schedule
    clip_norm: Rate = 1.0  # of the whole gradient; a longer one is scaled down to it


class LearnerSettings(_Section, frozen=True):
    """`[learner]`: where and how the weights are updated; the same for every stage."""

    device: str = "cpu"  # without a number under torchrun: every process takes one of its own
    dtype: Dtype = "auto"  # of both passes and of the published weights; not float16
    kernel: Literal["auto", "torch", "onednn"] = "auto"  # as a generator's
    fused_attention_above: NonNegative = 0  # keys; 0: as measured
    # Per forward pass; gradients of a step's are accumulated. 0: as measured.
    micro_batch_tokens: NonNegative = 0
    logits_chunk: Positive = 1024  # tokens whose logits are held at a time
    activation_checkpointing: bool = False  # less memory, one forward pass more
    max_bad_steps: Positive = 5  # non-finite steps in a row before the run stops
    # How far an expert's bias moves per step against its load: DeepSeek-V3 (arXiv 2412.19437, 4.2).
    expert_bias_rate: Weight = 1e-3
    collective_s: Rate = 600.0  # for one collective of several processes, and to wait for rank 0


class TaskSettings(_Section, frozen=True):
    """`[stage.task]`: a source of problems and its verifier."""

    name: str  # "arithmetic", "gsm8k", "jsonl", or "reasoning-gym/<generator>"
    options: dict[str, Any] = {}  # the task's own, which it checks (docs/recipes.md)
    seed: Seed = 0  # of the problems and their order
    # Problems kept away from training.
    held_out: Annotated[int, Meta(gt=0, le=1_000_000)] = 128
    overlong: Overlong = "refuse"  # a prompt that leaves no room for sampling.max_tokens
    system: str | None = None  # a system turn put before every problem
    workers: Processes = 1  # verifier processes
    timeout_s: Rate = 5.0  # to judge one answer
    memory_mb: Positive = 1024  # address space that judging may add to the process's own
    # What judges runs isolated: "auto", when it executes what the model wrote; "always"; or "none",
    # which is kept in the run's record.
    sandbox: Literal["auto", "always", "none"] = "auto"


class EvaluationSettings(_Section, frozen=True):
    """`[stage.eval]`: greedy accuracy on held-out problems, before the first step and after the
    last, and in between.
    """

    every: NonNegative = 0  # steps; 0: only before and after
    problems: Positive = 128  # of the task's held_out


class LossSettings(_Section, frozen=True):
    """`[stage.loss]`: the policy-gradient loss.

    Each formula, and where it is from, is in learner/loss.py and recipes/grpo.py.
    """

    # pi / pi_old is clipped to [1 - clip_low, 1 + clip_high]; DAPO: 0.28 above.
    clip_low: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    clip_high: Rate = 0.2
    normalize: Literal["token", "sequence", "constant"] = "token"  # DAPO / GRPO / Dr.GRPO
    advantage: Literal["mean_std", "mean"] = "mean_std"  # GRPO / Dr.GRPO
    # Weight of k3 against the model that the stage began with.
    kl_beta: Weight = 0.0
    # What is done about the ratio of learner to sampler probability, token by token:
    # "truncated": times min(ratio, tis_cap); "masked": times the ratio, 0 outside the mask;
    # "geometric": as truncated, with the geometric mean over the completion; "bypass": the sampler
    # is the old policy of the clipped ratio; "off": nothing.
    correction: Literal["truncated", "masked", "geometric", "bypass", "off"] = "truncated"
    tis_cap: Rate = 2.0
    tis_veto: Weight = 1e-4  # a token whose ratio is lower counts 0
    mask_low: Weight = 0.5
    mask_high: Rate = 5.0


class StageSettings(_Section, frozen=True, kw_only=True, tag_field="kind"):
    """What every stage has; `kind` in the TOML tells which it is.

    A new kind is a class here, its place in STAGES, and recipes/<kind>.py (docs/recipes.md). What
    the rest of the house asks a stage is asked by the properties below, never by its class.
    """

    steps: Positive
    task: TaskSettings | None = None  # when given, held-out accuracy is measured before and after
    sampling: Sampling = Sampling(temperature=0.0)  # an evaluation takes only its limits
    eval: EvaluationSettings = EvaluationSettings()

    @property
    def kind(self) -> str:
        return str(self.__struct_config__.tag)

    @property
    def generates(self) -> bool:
        """Whether it needs generators, be it for an evaluation only."""
        return self.task is not None

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
        if self.task is not None and self.eval.problems > self.task.held_out:
            yield (
                f"eval.problems = {self.eval.problems} is more than task.held_out = "
                f"{self.task.held_out}; lower the one or raise the other"
            )


class Sampled(StageSettings, frozen=True, kw_only=True):
    """A stage whose every step samples groups of completions on a task's problems."""

    task: TaskSettings
    problems_per_step: Positive = 8
    completions: Concurrent = 8  # G, per problem
    # Weight versions a group may be behind when it is used; older ones are dropped and made again.
    # 0: generation waits for every update, and runs are exact. None: see Recipe.staleness.
    staleness: NonNegative | None = None
    sampling: Sampling = Sampling()


class Grpo(Sampled, frozen=True, kw_only=True, tag="grpo"):
    # The group inside which rewards are compared.
    completions: Annotated[int, Meta(ge=2, le=2**16)] = 8
    updates_per_step: Positive = 1  # optimizer steps on one batch of groups
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()

    @property
    def updates(self) -> int:
        return self.steps * self.updates_per_step

    @property
    def keeps_reference(self) -> bool:
        return self.loss.kl_beta > 0

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
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


class Sft(StageSettings, frozen=True, kw_only=True, tag="sft"):
    """Supervised fine-tuning on `data`, a JSONL file.

    A row is {"messages": […]} (loss on the assistant's tokens) or {"text": …} (on all of them).
    """

    data: str
    batch_size: Positive = 16  # rows per optimizer step
    max_tokens: Positive = 1024  # of a row, and no more than the model's context
    overlong: Overlong = "refuse"  # a longer row
    optimizer: OptimizerSettings = OptimizerSettings()

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        defaults = {field.name: field.default for field in msgspec.structs.fields(Sft)}
        for name in ("eval", "sampling"):
            if self.task is None and getattr(self, name) != defaults[name]:
                yield f"{name} says how to evaluate, but on what: add a [stage.task], or remove it"


# Every kind of stage. The recipe of "sft" is recipes/sft.py; of "a-b", recipes/a_b.py.
STAGES: tuple[type[StageSettings], ...] = (Grpo, Sft)
if TYPE_CHECKING:
    AnyStage = StageSettings
else:
    AnyStage = Union[STAGES]  # noqa: UP007  what msgspec tells apart by `kind`


class Recipe(_Section, frozen=True):
    """A whole recipe: stages that run one after another on the same weights."""

    model: ModelSettings
    stage: Annotated[list[AnyStage], Meta(min_length=1)]
    name: str = "run"  # of the run directory, where the command line gives none
    seed: Seed = 0  # of the sampler's noise, and of the order of data
    learner: LearnerSettings = LearnerSettings()
    generator: Annotated[list[GeneratorSettings], Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: [GeneratorSettings()]
    )
    fleet: FleetSettings = FleetSettings()
    sync: SyncSettings = SyncSettings()
    guard: GuardSettings = GuardSettings()
    unqualified: bool = False  # use devices that no certificate admits; kept in the run's record
    checkpoint_every: NonNegative = 20  # steps; 0: only at the end of a stage
    # The newest, for --resume: 12 bytes a weight each. 0: one, until the run is finished.
    keep_checkpoints: NonNegative = 1

    def staleness(self, stage: StageSettings) -> int:
        """Weight versions that a group of this stage may be behind when it is used.

        Where the stage does not say: inline, 0; else 2, so that workers generate while the learner
        learns.
        """
        default = 0 if self.fleet.kind == "inline" else 2
        return default if stage.staleness is None else stage.staleness


def worker_settings(recipe: Recipe) -> dict[str, GeneratorSettings]:
    """The settings of every worker, by its name."""
    return by_name(recipe.generator, "generator")


def by_name(tables: Sequence[GeneratorSettings], table: str) -> dict[str, GeneratorSettings]:
    """The settings of every worker, by its name; `table` names those that have none of their own.

    Of workers with one name the last is there: checks.py refuses such settings.
    """
    found: dict[str, GeneratorSettings] = {}
    for index, settings in enumerate(tables):
        base = settings.name or f"{table}-{index}"
        names = [base] if settings.count == 1 else [f"{base}-{i}" for i in range(settings.count)]
        found |= dict.fromkeys(names, settings)
    return found
