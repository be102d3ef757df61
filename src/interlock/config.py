"""The run config: a TOML recipe read into typed, frozen structs.

    recipe.toml + key=value overrides ──load──> Recipe ──to_tree──> config.json of the run

Unknown keys and wrong types are errors. Every default of a run stands in this file.
"""

import difflib
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import msgspec.inspect
from msgspec import Meta

from interlock.errors import ConfigError
from interlock.records import Sampling

Positive = Annotated[int, Meta(gt=0)]
NonNegative = Annotated[int, Meta(ge=0)]
Rate = Annotated[float, Meta(gt=0, le=1e9)]  # finite
Share = Annotated[float, Meta(ge=0, le=1)]
# "auto": bfloat16 where the device is built for it, else float32; the run records which it was.
Dtype = Literal["auto", "bfloat16", "float16", "float32"]


Section = TypeVar("Section", bound=msgspec.Struct)


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every table of a recipe."""


class Model(_Section, frozen=True):
    """`path`: a Hugging Face directory, a hub id ("org/name"), or "smollm2-135m-instruct"."""

    path: str
    chat_template: str | None = None  # a Jinja file that replaces the model's own


class Generator(_Section, frozen=True):
    """One generation worker, or `count` of them; what is not inline runs in its own process."""

    name: str = ""  # of the workers, for logs and the report; "": generator-<index>
    count: Positive = 1
    engine: Literal["torch", "vllm"] = "torch"
    device: str = "cpu"
    dtype: Dtype = "auto"
    slots: Positive = 64  # completions decoded at the same time
    python: str | None = None  # interpreter of the worker's own environment; None: the learner's
    env: dict[str, str] = {}  # environment variables of the worker, added to the learner's
    resources: dict[str, float] = {}  # what a Ray worker needs: {GPU = 1}, {NPU = 1}, {CPU = 2}
    sync_url: str | None = None  # where the worker reads weights, if not where the learner writes
    options: dict[str, Any] = {}  # the engine's own settings: keyword arguments of vllm.LLM


class Fleet(_Section, frozen=True):
    """How the generators run, and what is done about those that fail. Times in seconds.

    `kind`: "inline" calls the one generator in the learner's process; "local" starts processes on
    this machine; "ray" starts Ray actors.
    """

    kind: Literal["inline", "local", "ray"] = "inline"
    address: str | None = None  # of a Ray cluster; None: RAY_ADDRESS, else one is started here
    unit: NonNegative = 0  # problems handed to a worker at a time; 0: a step's, shared evenly
    start_s: Rate = 600.0  # for a worker to start its engine
    load_s: Rate = 600.0  # for a worker to fetch, load and prove a weight version
    unit_s: Rate = 1800.0  # for a worker to answer one unit
    silence_s: Annotated[float, Meta(ge=5, le=1e9)] = 30.0  # without a sign of life (every 2 s)
    backoff_s: Rate = 1.0  # before the first restart; doubles up to a minute
    failures: Positive = 5  # in a row, without an answer between them, after which one is retired
    strikes: Positive = 3  # failures of workers on a problem, after which it is set aside
    qualify_s: Rate = 600.0  # for a worker in quarantine to be qualified anew, in the smallest form
    requalify: NonNegative = 1  # times one may come back that way; then quarantine is for good


class Sync(_Section, frozen=True):
    """Where weight versions are published for generators that are not inline."""

    url: str | None = None  # any fsspec URL: a path, s3://…, …; None: sync/ in the run directory
    anchor_every: Positive = 20  # versions; those between are deltas


class Guard(_Section, frozen=True):
    """Mean k3 of learner against generator on the same tokens and weights, in nats per token."""

    warn: Rate = 1e-3
    quarantine: Rate = 1e-2  # the generator's unused groups are dropped and made again elsewhere


class Optimizer(_Section, frozen=True):
    """AdamW on fp32 masters, linear warm-up, then `schedule` down to `final_lr` times the peak."""

    lr: Rate = 1e-5
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: Rate = 1e-8
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    warmup_steps: NonNegative = 0  # optimizer steps
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_lr: Share = 0.1  # share of lr left at the last step of a linear or cosine schedule
    clip_norm: Rate = 1.0


class Learner(_Section, frozen=True):
    """Where and how the weights are updated; the same for every stage of the recipe."""

    device: str = "cpu"
    dtype: Dtype = "auto"  # of the forward and backward pass, and of the published weights
    micro_batch_tokens: Positive = 512  # per forward pass; the rest is accumulated
    logits_chunk: Positive = 1024  # rows of the vocabulary projection held at a time
    activation_checkpointing: bool = False
    max_bad_steps: Positive = 5  # non-finite steps in a row before the run stops


class Task(_Section, frozen=True):
    """A source of problems and its verifier; `options` are the task's own and are checked by it.

    `name`: "arithmetic", "gsm8k", "jsonl", or "reasoning-gym/<generator>".
    """

    name: str
    options: dict[str, Any] = {}
    seed: int = 0
    held_out: Positive = 128  # problems kept away from training
    system: str | None = None  # a system turn put before every problem
    workers: Positive = 1  # verifier processes
    timeout_s: Rate = 5.0  # per answer
    memory_mb: Positive = 1024  # address space a verifier may add to the worker's own


class Evaluation(_Section, frozen=True):
    """Greedy accuracy on the held-out problems; also before the first and after the last step."""

    every: NonNegative = 0  # steps; 0: only before and after
    problems: Positive = 128


class Loss(_Section, frozen=True):
    """The policy-gradient loss; sources of each formula in learner/loss.py and recipes/grpo.py."""

    clip_low: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    clip_high: Rate = 0.2  # DAPO: 0.28
    normalize: Literal["token", "sequence", "constant"] = "token"  # DAPO / GRPO / Dr.GRPO
    advantage: Literal["mean_std", "mean"] = "mean_std"  # GRPO / Dr.GRPO
    kl_beta: Annotated[float, Meta(ge=0)] = (
        0.0  # weight of k3 against the model the stage began with
    )
    # What is done about the ratio of learner to sampler probability, token by token:
    # "truncated": times min(ratio, tis_cap); "masked": times the ratio, 0 outside the mask;
    # "geometric": as truncated, with the geometric mean over the completion; "bypass": the sampler
    # is the old policy of the clipped ratio; "off": nothing.
    correction: Literal["truncated", "masked", "geometric", "bypass", "off"] = "truncated"
    tis_cap: Rate = 2.0
    tis_veto: Annotated[float, Meta(ge=0)] = 1e-4  # a token whose ratio is lower counts 0
    mask_low: Annotated[float, Meta(ge=0)] = 0.5
    mask_high: Rate = 5.0


class _Stage(_Section, frozen=True, tag_field="kind"):
    """Base of the stages; `kind` in the TOML tells which."""

    @property
    def kind(self) -> str:
        return str(self.__struct_config__.tag)


class Grpo(_Stage, frozen=True, tag="grpo"):
    task: Task
    steps: Positive
    problems_per_step: Positive = 8
    completions: Annotated[int, Meta(ge=2)] = 8  # G, per problem
    updates_per_step: Positive = 1  # optimizer steps on one batch of groups
    # Weight versions a group may be behind when it is used; older ones are dropped and made again.
    # 0: generation waits for every update, and runs are exact. None: 0 inline, else 2.
    staleness: NonNegative | None = None
    sampling: Sampling = Sampling()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    eval: Evaluation = Evaluation()

    @property
    def updates(self) -> int:
        """Optimizer steps of the whole stage."""
        return self.steps * self.updates_per_step


class Sft(_Stage, frozen=True, tag="sft"):
    """Supervised fine-tuning on `data`, a JSONL file.

    A row is {"messages": […]} (loss on the assistant's tokens) or {"text": …} (on all of them).
    """

    data: str
    steps: Positive
    batch_size: Positive = 16  # rows per optimizer step
    max_tokens: Positive = 1024  # longer rows (or than the context) are left out, counted
    optimizer: Optimizer = Optimizer()
    task: Task | None = None  # when given, held-out accuracy is measured before and after
    sampling: Sampling = Sampling(temperature=0.0)
    eval: Evaluation = Evaluation()

    @property
    def updates(self) -> int:
        """Optimizer steps of the whole stage."""
        return self.steps


Stage = Grpo | Sft
STAGES = (Grpo, Sft)


class Recipe(_Section, frozen=True):
    model: Model
    stage: Annotated[list[Stage], Meta(min_length=1)]
    name: str = "run"
    seed: int = 0
    learner: Learner = Learner()
    generator: Annotated[list[Generator], Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: [Generator()]
    )
    fleet: Fleet = Fleet()
    sync: Sync = Sync()
    guard: Guard = Guard()
    unqualified: bool = False  # use devices that no certificate admits; kept in the run's record
    checkpoint_every: NonNegative = 20  # steps; 0: only at the end of a stage
    keep_checkpoints: Positive = 1


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a TOML recipe and apply `section.key=value` overrides (TOML values or bare strings).

    Raises ConfigError, which names the file, the setting and what is expected.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no recipe at {path}; give the path of a .toml file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a directory; give the path of a .toml file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    if overrides:
        tree.setdefault("generator", [{}])  # the default one, for overrides to change
    for override in overrides:
        _apply(tree, override)
    return parse(tree, source=str(path))


def task(name: str, held_out: int, overrides: Sequence[str] = ()) -> Task:
    """The [stage.task] table of an evaluation without a recipe. Raises ConfigError."""
    tree: dict[str, Any] = {"name": name, "held_out": held_out}
    for override in overrides:
        _apply(tree, override)
    return _convert(tree, Task, source=f"task {name}")


def sampling(temperature: float, max_tokens: int, stop: list[str]) -> Sampling:
    """Sampling from the command line. Raises ConfigError."""
    tree = {"temperature": temperature, "max_tokens": max_tokens, "stop": stop}
    return _convert(tree, Sampling, source="sampling")


def parse(tree: dict[str, Any], source: str = "recipe") -> Recipe:
    """Turn a plain tree into a Recipe. Raises ConfigError on any unknown key or wrong value."""
    recipe = _convert(tree, Recipe, source)
    _check_combinations(recipe, source)
    return recipe


def to_tree(section: msgspec.Struct) -> dict[str, Any]:
    """A resolved config as plain dicts and lists; `parse` reads a recipe's back."""
    return msgspec.to_builtins(section)


def _convert(tree: dict[str, Any], kind: type[Section], source: str) -> Section:
    try:
        return msgspec.convert(tree, kind, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_explain(str(error), tree, kind)}") from None


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one dotted `key=value`. A list of one table, such as a lone [[stage]], needs no index."""
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", key):
        raise ConfigError(f"cannot read the override {override!r}; write section.key=value")
    parts: list[str] = key.split(".")
    node: Any = tree
    for depth, part in enumerate(parts):
        where = ".".join(parts[: depth + 1])
        if isinstance(node, list):
            node = _element(node, part, where)
            if part.isdigit():
                if depth == len(parts) - 1:
                    raise ConfigError(f"cannot set {key}: set one of its keys, or the whole list")
                continue
        if not isinstance(node, dict):
            raise ConfigError(f"cannot set {key}: {'.'.join(parts[:depth])} is not a table")
        if depth == len(parts) - 1:
            node[part] = _value(text)
        else:
            node = node.setdefault(part, {})


def _element(tables: list[Any], part: str, where: str) -> Any:
    if part.isdigit() and int(part) < len(tables):
        return tables[int(part)]
    if len(tables) == 1 and not part.isdigit():
        return tables[0]
    raise ConfigError(
        f"cannot set {where}: give an index from 0 to {len(tables) - 1} after the list"
    )


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(message: str, tree: dict[str, Any], kind: type[msgspec.Struct]) -> str:
    """Turn msgspec's "Expected `int`, got `str` - at `$.stage[0].steps`" into our words."""
    complaint, _, path = message.partition(" - at `")
    keys = re.findall(r"\.([A-Za-z0-9_]+)|\[(\d+|\.\.\.)\]", path)
    where = ".".join(name or index for name, index in keys)
    if unknown := re.fullmatch(r"Object contains unknown field `(.+)`", complaint):
        name = unknown[1]
        setting = f"{where}.{name}" if where else name
        near = _nearest(setting, kind)
        return f"unknown setting {setting!r}" + (f"; did you mean {near!r}?" if near else "")
    if missing := re.fullmatch(r"Object missing required field `(.+)`", complaint):
        setting = f"{where}.{missing[1]}" if where else missing[1]
        return f"the setting {setting!r} is missing"
    value = _lookup(tree, where)
    complaint = complaint[0].lower() + complaint[1:].replace("`", "").replace("object", "a table")
    if where.startswith("stage") and where.endswith(".kind"):
        kinds = [str(stage.__struct_config__.tag) for stage in STAGES]
        complaint = f"the kinds of stage are {', '.join(kinds)}"
    if choices := _choices(where, kind):
        complaint = f"choose one of {choices}"
    return f"{where or 'the recipe'} = {value!r}: {complaint}"


def _lookup(tree: Any, where: str) -> Any:
    for part in filter(None, where.split(".")):
        if isinstance(tree, dict):
            tree = tree.get(part)
        elif isinstance(tree, list) and part.isdigit():
            tree = tree[int(part)]
    return tree


def _nearest(setting: str, kind: type[msgspec.Struct]) -> str | None:
    """The known setting that an unknown one was most likely meant to be."""
    known = sorted({path for path, _ in _settings(msgspec.inspect.type_info(kind), "")})
    plain = ".".join(part for part in setting.split(".") if not part.isdigit())
    leaf = plain.rsplit(".", 1)[-1]
    same_leaf = [path for path in known if path.rsplit(".", 1)[-1] == leaf]
    near = difflib.get_close_matches(
        plain, same_leaf or known, n=1, cutoff=0.0 if same_leaf else 0.6
    )
    return near[0] if near else None


def _choices(setting: str, kind: type[msgspec.Struct]) -> str:
    """The values that an enumerated setting may have, as text; "" for any other setting."""
    plain = ".".join(part for part in setting.split(".") if not part.isdigit())
    for path, found in _settings(msgspec.inspect.type_info(kind), ""):
        if path == plain and isinstance(found, msgspec.inspect.LiteralType):
            return ", ".join(map(str, found.values))
    return ""


def _settings(
    kind: msgspec.inspect.Type, prefix: str
) -> Iterator[tuple[str, msgspec.inspect.Type]]:
    """Every setting below `kind` with its type, as dotted paths without list indices."""
    match kind:
        case msgspec.inspect.StructType():
            for field in kind.fields:
                yield prefix + field.name, field.type
                yield from _settings(field.type, f"{prefix}{field.name}.")
        case msgspec.inspect.ListType():
            yield from _settings(kind.item_type, prefix)
        case msgspec.inspect.UnionType():
            for member in kind.types:
                yield from _settings(member, prefix)


def workers(recipe: Recipe) -> dict[str, Generator]:
    """The settings of every worker, by its name."""
    found: dict[str, Generator] = {}
    for index, settings in enumerate(recipe.generator):
        base = settings.name or f"generator-{index}"
        names = [base] if settings.count == 1 else [f"{base}-{i}" for i in range(settings.count)]
        found |= dict.fromkeys(names, settings)
    return found


def _check_fleet(recipe: Recipe, source: str) -> None:
    names = workers(recipe)
    total = sum(settings.count for settings in recipe.generator)
    if len(names) < total:
        raise ConfigError(f"{source}: two [[generator]] tables have one name; give each its own")
    if odd := next((name for name in names if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name)), ""):
        raise ConfigError(
            f"{source}: generator.name = {odd!r} is to be a file name; use letters, digits, . _ -"
        )
    kind = recipe.fleet.kind
    for settings in recipe.generator:
        if settings.options and settings.engine == "torch":
            raise ConfigError(
                f"{source}: generator.options sets {min(settings.options)!r}, but the torch engine "
                "has no options; remove it"
            )
        if settings.resources and kind != "ray":
            raise ConfigError(
                f"{source}: generator.resources = {settings.resources} is what Ray reserves, and "
                f'fleet.kind is "{kind}"; remove it, or set fleet.kind = "ray"'
            )
        if settings.sync_url is not None and recipe.sync.url is None:
            raise ConfigError(
                f"{source}: generator.sync_url = {settings.sync_url!r} is another way to what is "
                "written at sync.url; set that too"
            )
    if recipe.fleet.address is not None and kind != "ray":
        raise ConfigError(
            f"{source}: fleet.address = {recipe.fleet.address!r} is that of a Ray cluster, and "
            f'fleet.kind is "{kind}"; remove it, or set fleet.kind = "ray"'
        )
    if kind != "inline":
        return
    only = recipe.generator[0]
    separate = {"python": only.python, "env": only.env, "sync_url": only.sync_url}
    if recipe.sync.url is not None:
        raise ConfigError(
            f"{source}: sync.url = {recipe.sync.url!r} is for generators in processes of their "
            'own; set fleet.kind = "local", or remove it'
        )
    reason = next((f"generator.{key} is set" for key, value in separate.items() if value), "")
    if only.engine != "torch":
        reason = f'generator.engine = "{only.engine}"'
    if total > 1:
        reason = f"there are {total} generators"
    if reason:
        raise ConfigError(
            f'{source}: {reason}, which fleet.kind = "inline" cannot do; set fleet.kind = "local"'
        )
    for index, stage in enumerate(recipe.stage):
        if isinstance(stage, Grpo) and stage.staleness:
            raise ConfigError(
                f"{source}: stage.{index}.staleness = {stage.staleness} needs generators that work "
                'while the learner does; set fleet.kind = "local", or staleness = 0'
            )


def _check_combinations(recipe: Recipe, source: str) -> None:
    _check_fleet(recipe, source)
    if recipe.guard.warn > recipe.guard.quarantine:
        raise ConfigError(
            f"{source}: guard.warn = {recipe.guard.warn} is above guard.quarantine = "
            f"{recipe.guard.quarantine}; lower it"
        )
    for index, stage in enumerate(recipe.stage):
        at = f"{source}: stage.{index}"
        if stage.optimizer.warmup_steps >= stage.updates:
            raise ConfigError(
                f"{at}.optimizer.warmup_steps = {stage.optimizer.warmup_steps} leaves none of the "
                f"{stage.updates} optimizer steps for training; lower it"
            )
        if stage.task is not None and stage.eval.problems > stage.task.held_out:
            raise ConfigError(
                f"{at}.eval.problems = {stage.eval.problems} is more than task.held_out = "
                f"{stage.task.held_out}; lower the one or raise the other"
            )
        if isinstance(stage, Grpo):
            if stage.sampling.temperature == 0:
                raise ConfigError(
                    f"{at}.sampling.temperature = 0 makes all completions of a group equal; "
                    "GRPO needs a temperature above 0"
                )
            if stage.updates_per_step > stage.problems_per_step:
                raise ConfigError(
                    f"{at}.updates_per_step = {stage.updates_per_step} is more than "
                    f"problems_per_step = {stage.problems_per_step}; an update needs a group"
                )
        if isinstance(stage, Sft) and stage.task is None and _evaluates(stage):
            raise ConfigError(
                f"{at} says how to evaluate, but on what: add a [stage.task], or remove eval and "
                "sampling"
            )


def _evaluates(stage: Sft) -> bool:
    fields = {field.name: field.default for field in msgspec.structs.fields(Sft)}
    return stage.eval != fields["eval"] or stage.sampling != fields["sampling"]
