"""Every table of a recipe with its settings, their units, types and defaults; none is elsewhere.

    Recipe ─┬─ [model] [learner] [fleet] [sync] [guard] [budget] [[generator]]: here
            └─ [[stage]]: stages.py ─┬─ [stage.task] [stage.eval]: tasks.py
                                     └─ [stage.loss]: losses.py

Names follow the TOML: `[[generator]]` is a GeneratorSettings, `[stage.loss]` a LossSettings. Names
that end in `_s` are seconds, in `_mb` megabytes of 2^20 bytes. Reading a file is in reading.py, and
what settings may not stand together in checks.py, but for those of one stage: `conflicts`.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from interlock.config.fields import (
    Concurrent,
    NonNegative,
    Positive,
    Processes,
    Rate,
    Seed,
    SettingsTable,
    Weight,
)
from interlock.config.stages import AnyStage, StageSettings
from interlock.records.adapters import AdapterForm
from interlock.records.cost import Currency

EngineName = Literal["torch", "vllm"]  # the modules are named in workers/generator.py
# "auto", and 0 where it says so: as measured on the device (chips/probe.py); the run records it.
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
TrackerName = Literal["tensorboard", "trackio", "wandb"]  # recipes/trackers.py
Kernel = Literal["auto", "torch", "mkl", "onednn"]  # what multiplies: chips/products.py


class ModelSettings(SettingsTable, frozen=True):
    """`[model]`: what the first stage begins with."""

    # A Hugging Face directory, a GGUF file, "hf:org/name[@revision]", or "smollm2-135m-instruct".
    path: str
    chat_template: str | None = None  # a Jinja file that replaces the model's own
    # The time that a chat template is told; None: when the run begins, which the run records.
    clock: datetime | None = None


class GeneratorSettings(SettingsTable, frozen=True):
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


class FleetSettings(SettingsTable, frozen=True):
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


class SyncSettings(SettingsTable, frozen=True):
    """`[sync]`: where weight versions are published for generators that are not inline."""

    url: str | None = None  # any fsspec URL: a path, s3://…, …; None: sync/ in the run directory
    anchor_every: Positive = 20  # versions: every so many is whole, those between are deltas


class GuardSettings(SettingsTable, frozen=True):
    """`[guard]`: how far a generator's numbers may be from the learner's.

    Measured as the mean k3 of learner against generator, in nats per token, on the same tokens and
    weights: the canary of every version, and the fresh tokens of every step.
    """

    warn: Rate = 1e-3  # an event of the run
    quarantine: Rate = 1e-2  # the generator's unused groups are dropped and made again elsewhere
    min_tokens: Positive = 128  # fresh tokens of a worker in a step; of fewer the k3 says nothing


class BudgetSettings(SettingsTable, frozen=True):
    """`[budget]`: what a run may use, its earlier sessions counted (docs/cost.md).

    At the first limit that is reached a run ends its step, keeps a checkpoint and stops; with a
    larger budget it is resumed. None: no limit.
    """

    hours: Rate | None = None  # of the run, pauses between its sessions left out
    chip_hours: Rate | None = None
    money: Rate | None = None  # at the high end of each price
    currency: Currency = "USD"  # of `money`, and of its prices
    tokens: Annotated[int, Meta(gt=0, le=10**18)] | None = None  # sampled, and learned from
    kwh: Rate | None = None
    warn_at: Annotated[float, Meta(gt=0, lt=1)] = 0.8  # share of a limit; an event of the run

    @property
    def limits(self) -> dict[str, float]:
        """Those that there are, by name."""
        names = ("hours", "chip_hours", "money", "tokens", "kwh")
        return {name: limit for name in names if (limit := getattr(self, name)) is not None}


class LearnerSettings(SettingsTable, frozen=True):
    """`[learner]`: where and how the weights are updated; the same for every stage."""

    device: str = "cpu"  # without a number under torchrun: every process takes one of its own
    dtype: Dtype = "auto"  # of both passes and of the published weights; not float16
    kernel: Literal["auto", "torch", "onednn"] = "auto"  # as a generator's
    fused_attention_above: NonNegative = 0  # keys; 0: as measured
    # Per forward pass; gradients of a step's are accumulated. 0: as measured.
    micro_batch_tokens: NonNegative = 0
    logits_chunk: Positive = 1024  # tokens whose logits are held at a time
    activation_checkpointing: bool = False  # less memory, one forward pass more
    # [learner.lora]: an adapter learns, the weights beside it stay (docs/lora.md). None: all learn.
    lora: AdapterForm | None = None
    max_bad_steps: Positive = 5  # non-finite steps in a row before the run stops
    # How far an expert's bias moves per step against its load: DeepSeek-V3 (arXiv 2412.19437, 4.2).
    expert_bias_rate: Weight = 1e-3
    # Of the loss of multi-token prediction (models/predictor.py), beside that of a stage; 0: the
    # layer for it is left out. DeepSeek-V3 was trained with 0.3, then 0.1.
    mtp_weight: Weight = 0.0
    mtp_detached: bool = True  # it trains that layer alone, and nothing else changes by a bit
    collective_s: Rate = 600.0  # for one collective of several processes, and to wait for rank 0


class Recipe(SettingsTable, frozen=True):
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
    budget: BudgetSettings = BudgetSettings()
    prices: str | None = None  # a file of [[price]] tables, before those that are shipped
    plan: str | None = None  # what `interlock plan --json` printed, for the report to compare with
    unqualified: bool = False  # use devices that no certificate admits; kept in the run's record
    checkpoint_every: NonNegative = 20  # steps; 0: only at the end of a stage
    log: list[TrackerName] = []  # where every step's figures and events go as well
    # The weights of every stage that another comes after, in stages/. False: of those alone that a
    # later stage names.
    keep_stages: bool = True
    # The newest, for --resume: 12 bytes a weight each. 0: one, until the run is finished.
    keep_checkpoints: NonNegative = 1

    @property
    def generates(self) -> bool:
        """Whether some stage needs generators."""
        return any(stage.generates for stage in self.stage)

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
