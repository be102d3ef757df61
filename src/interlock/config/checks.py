"""Settings that are each right and do not go together: one function for each subject.

    Recipe ──each of _CHECKS──> why, and the remedy ──the first──> ConfigError

To add one, write a function that yields what is wrong, one line each, and name it in _CHECKS. What
concerns one stage alone is in its class (stages.py, `conflicts`).
"""

import datetime
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, combinations
from typing import Any

from interlock.config.origins import MODEL, layers_apart, of_stage
from interlock.config.rewards import JudgeReward
from interlock.config.schema import BudgetSettings, GeneratorSettings, Recipe, by_name
from interlock.config.tasks import TaskSettings, same_problems, task_conflicts
from interlock.errors import ConfigError
from interlock.text import hide_credentials, one_line


def check_combinations(recipe: Recipe, source: str) -> None:
    """Raise ConfigError on the first conflict; `source` says where the recipe is from."""
    for check in _CHECKS:
        for conflict in check(recipe):
            raise ConfigError(f"{source}: {hide_credentials(conflict)}")


def check_task(task: TaskSettings, source: str) -> None:
    """The same of a task without a recipe, which an evaluation has."""
    for conflict in chain(task_conflicts([task]), _free_tables("task", task)):
        raise ConfigError(f"{source}: {hide_credentials(conflict)}")


def _names(recipe: Recipe) -> Iterator[str]:
    """The run's is a directory's; workers are told apart by name, and have log files of it."""
    if not (re.fullmatch(r"(?!\.)[^/]{1,100}", recipe.name) and recipe.name.isprintable()):
        yield (
            f"name = {one_line(repr(recipe.name), 40)} is to be the name of a directory; use at "
            "most 100 characters that print, no / and no . at the start"
        )
    yield from name_conflicts(recipe.generator, "generator")
    for name, count in Counter(recipe.log).items():
        if count > 1:
            yield f'log names "{name}" {count} times; once is enough'


def _handed_on(recipe: Recipe) -> Iterator[str]:
    """What becomes a path, a URL or a variable of a process: none of them may hold a NUL."""
    texts = {"model.path": recipe.model.path, "model.chat_template": recipe.model.chat_template}
    texts |= {"sync.url": recipe.sync.url, "fleet.address": recipe.fleet.address}
    files = {"prices": recipe.prices, "plan": recipe.plan}
    for name, text in (files | {"model.chat_template": recipe.model.chat_template}).items():
        if text == "":
            yield f'{name} = "" names no file; remove it, or give one'
    texts |= files
    for index, stage in enumerate(recipe.stage):
        texts[f"stage.{index}.data"] = getattr(stage, "data", None)
        texts[f"stage.{index}.from"] = stage.origin
    yield from nul_conflicts(texts)
    yield from process_conflicts(recipe.generator, "generator")


def _ahead(recipe: Recipe) -> Iterator[str]:
    """The loss of multi-token prediction is that of a step of a policy or of texts."""
    if recipe.learner.mtp_weight == 0:
        return
    for index, stage in enumerate(recipe.stage):
        if stage.kind == "distill":
            yield (
                f"learner.mtp_weight goes with no distill stage (stage {index}), whose loss is of "
                "another kind; leave it at 0"
            )
        if stage.origin is not None:
            yield (
                f"learner.mtp_weight goes with no stage that begins from other weights (stage "
                f"{index}: from), which are kept without that layer; leave it at 0"
            )


def _adapter(recipe: Recipe) -> Iterator[str]:
    """An adapter is of one base, whose weights stay as they are."""
    lora = recipe.learner.lora
    if lora is None:
        return
    if recipe.learner.mtp_weight > 0:
        yield (
            "learner.mtp_weight trains a layer of the model, and with learner.lora none of them "
            "changes; leave it at 0"
        )
    if lora.targets == []:
        yield 'learner.lora.targets = [] leaves nothing to learn; name some, or "all-linear"'
    for index, stage in enumerate(recipe.stage):
        if stage.origin not in (None, MODEL) and of_stage(str(stage.origin)) is None:
            shown = one_line(repr(stage.origin), 60)
            yield (
                f"stage.{index}.from = {shown} is other weights than those that the adapter of "
                "learner.lora is of; set model.path to it"
            )


def name_conflicts(tables: Sequence[GeneratorSettings], table: str) -> Iterator[str]:
    """Workers are told apart by name, and have log files of it."""
    names = by_name(tables, table)
    if len(names) < sum(settings.count for settings in tables):
        yield f"two [[{table}]] tables have one name; give each its own"
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
            shown = one_line(repr(name), 40)
            yield f"{table}.name = {shown} is to be a file name; use letters, digits, . _ -"


def process_conflicts(tables: Sequence[GeneratorSettings], table: str) -> Iterator[str]:
    """What the process of a worker cannot be given."""
    texts: dict[str, str | None] = {}
    for index, each in enumerate(tables):
        where = f"{table}.{index}"
        texts |= {f"{where}.python": each.python, f"{where}.sync_url": each.sync_url}
        texts |= {f"{where}.env.{name}": text for name, text in each.env.items()}
        if not all(
            re.fullmatch(r"[^=\0]+", name) for name in each.env
        ):  # perhaps a secret: not told
            yield f"{where}.env has a name that is empty, or holds = or NUL; use letters, digits, _"
    yield from nul_conflicts(texts)


def nul_conflicts(texts: Mapping[str, str | None]) -> Iterator[str]:
    """`texts`: by the name of the setting."""
    for name, text in texts.items():
        if text is not None and "\0" in text:
            yield f"{name} holds a NUL, which ends a text; remove it"


def engine_conflicts(tables: Sequence[GeneratorSettings], table: str) -> Iterator[str]:
    """What an engine is given that is not for it; `table` is how the settings name them."""
    for settings in tables:
        if settings.options and settings.engine == "torch":
            yield (
                f"{table}.options sets {min(settings.options)!r}, but the torch engine has no "
                "options; remove it"
            )
        if settings.engine != "torch":
            yield from _of_torch(settings, table)


# Settings of the torch engine alone, each with the place of the same thing among vLLM's.
_OF_TORCH = {
    "kernel": None,
    "fused_attention_above": None,
    "graphs": None,
    "patience": None,
    "prefill_chunk": "max_num_batched_tokens",
    "prefix_cache_mb": "enable_prefix_caching",
}


def _of_torch(settings: GeneratorSettings, table: str) -> Iterator[str]:
    """What was set, as it differs from the table's own default, and would be dropped."""
    usual = type(settings)()
    for name, of_vllm in _OF_TORCH.items():
        if (value := getattr(settings, name)) == getattr(usual, name):
            continue
        other = f"remove it, or set {table}.options.{of_vllm}" if of_vllm else "remove it"
        yield (
            f"{table}.{name} = {value!r} is of the torch engine, and {table}.engine is "
            f"{settings.engine!r}, which decides that its own way; {other}"
        )


def _engines(recipe: Recipe) -> Iterator[str]:
    yield from engine_conflicts(recipe.generator, "generator")


def _ray(recipe: Recipe) -> Iterator[str]:
    """What is said to Ray, where no Ray is."""
    if (kind := recipe.fleet.kind) == "ray":
        return
    remedy = f'and fleet.kind is "{kind}"; remove it, or set fleet.kind = "ray"'
    for settings in recipe.generator:
        if settings.resources:
            yield f"generator.resources = {settings.resources} is what Ray reserves, {remedy}"
    if recipe.fleet.address is not None:
        yield f"fleet.address = {recipe.fleet.address!r} is that of a Ray cluster, {remedy}"


def _sync(recipe: Recipe) -> Iterator[str]:
    for settings in recipe.generator:
        if settings.sync_url is not None and recipe.sync.url is None:
            yield (
                f"generator.sync_url = {settings.sync_url!r} is another way to what is written at "
                "sync.url; set that too"
            )
    if recipe.sync.url is not None and recipe.sync.url.startswith("memory:"):
        yield (
            f"sync.url = {recipe.sync.url!r} is seen by one process alone; give a path or a bucket"
        )
    if recipe.sync.url is not None and recipe.fleet.kind == "inline":
        yield (
            f"sync.url = {recipe.sync.url!r} is for generators in processes of their own; set "
            'fleet.kind = "local", or remove it'
        )


def _inline(recipe: Recipe) -> Iterator[str]:
    """The one generator of an inline fleet is part of the learner's process."""
    if recipe.fleet.kind != "inline":
        return
    only, total = recipe.generator[0], sum(settings.count for settings in recipe.generator)
    reasons = [f"there are {total} generators"] if total > 1 else []
    if only.engine != "torch":
        reasons.append(f'generator.engine = "{only.engine}"')
    separate = {"python": only.python, "env": only.env, "sync_url": only.sync_url}
    reasons += [f"generator.{name} is set" for name, value in separate.items() if value]
    for reason in reasons:
        yield f'{reason}, which fleet.kind = "inline" cannot do; set fleet.kind = "local"'
    for index, stage in enumerate(recipe.stage):
        if stage.staleness:
            yield (
                f"stage.{index}.staleness = {stage.staleness} needs generators that work while the "
                'learner does; set fleet.kind = "local", or staleness = 0'
            )


def _learner(recipe: Recipe) -> Iterator[str]:
    """A token's weight of 1e-8 has no gradient in float16, one of 1e-6 half of it (verl#4036)."""
    if recipe.learner.dtype == "float16":
        yield (
            'learner.dtype = "float16" rounds the gradients of small token weights to nothing; set '
            "bfloat16 or float32"
        )


def _options(recipe: Recipe) -> Iterator[str]:
    """What is passed on as it stands must survive the run's record and the way to a process."""
    tables = {f"generator.{i}.options": each.options for i, each in enumerate(recipe.generator)}
    for i, stage in enumerate(recipe.stage):
        lone = len(stage.task) == 1
        for place, task in enumerate(stage.task):
            where = f"stage.{i}.task" if lone else f"stage.{i}.task.{place}"
            yield from _free_tables(where, task)
    for name, options in tables.items():
        yield from _unrecordable(name, options)


def _free_tables(where: str, task: TaskSettings) -> Iterator[str]:
    yield from _unrecordable(f"{where}.options", task.options)
    yield from _unrecordable(f"{where}.template", task.template)
    if task.judge is not None:
        yield from _unrecordable(f"{where}.judge.body", task.judge.body)
    for each in task.reward:
        if isinstance(each, JudgeReward):
            yield from _unrecordable(f"{where}.reward.{each.called}.judge.body", each.judge.body)


def _unrecordable(name: str, value: Any) -> Iterator[str]:
    match value:
        case dict():
            for key, inner in value.items():
                yield from _unrecordable(f"{name}.{key}", inner)
        case list():
            for index, inner in enumerate(value):
                yield from _unrecordable(f"{name}.{index}", inner)
        case float() if not math.isfinite(value):
            yield f"{name} = {value}: give a finite number"
        case int() if not -(2**63) <= value < 2**63:
            yield f"{name} = {value}: give a number of at most 64 bits"
        case datetime.date() | datetime.time():
            yield f"{name} = {value}: a date or time is no option; put it in quotes"


def _guard(recipe: Recipe) -> Iterator[str]:
    warn, quarantine = recipe.guard.warn, recipe.guard.quarantine
    if warn > quarantine:
        yield f"guard.warn = {warn} is above guard.quarantine = {quarantine}; lower it"


def _budget(recipe: Recipe) -> Iterator[str]:
    """What would be said of a limit that there is not."""
    budget, usual = recipe.budget, BudgetSettings()
    if budget.money is None and budget.currency != usual.currency:
        yield (
            f'budget.currency = "{budget.currency}" is that of budget.money, which is not set; set '
            "that, or remove it"
        )
    if not budget.limits and budget.warn_at != usual.warn_at:
        yield f"budget.warn_at = {budget.warn_at} is a share of limits, and there is none; set one"


def _stage_names(recipe: Recipe) -> Iterator[str]:
    """A name is part of a directory's; a number is a stage's place."""
    before: list[str] = []
    for index, stage in enumerate(recipe.stage):
        name = stage.name
        if name and (not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) or name.isdecimal()):
            shown = one_line(repr(name), 40)
            yield f"stage.{index}.name = {shown}: use letters, digits, _ - and no number alone"
        if name and name in before:
            yield f"stage.{index}.name = {name!r} is another stage's, too; give it its own"
        for other in stage.refers_to:
            if other not in before or not other:
                yield (
                    f"stage.{index} wants the weights of the stage {one_line(repr(other), 40)}, "
                    "and none before it is named so; give one that name"
                )
        if (rows := stage.rows_of) is not None:
            made = [each.name for each in recipe.stage[:index] if each.makes_rows]
            if rows not in made or not rows:
                yield (
                    f"stage.{index}.data wants rows of the stage {one_line(repr(rows), 40)}, and "
                    "no reject-sft stage before it is named so"
                )
            source = next((each for each in recipe.stage[:index] if each.name == rows), None)
            room, most = getattr(stage, "max_tokens", 0), getattr(source, "max_tokens", 0)
            if room < most and getattr(stage, "overlong", "") == "refuse":
                yield (
                    f"stage.{index}.max_tokens = {room} is less than the {most} that rows of the "
                    f'stage {rows!r} may have; raise it, or set overlong = "leave_out"'
                )
        before.append(name)


def _sizes(recipe: Recipe) -> Iterator[str]:
    """Weights of another size cannot be gone on with: one decoder learns, stage after stage."""
    before, apart = 1, layers_apart(recipe.stage)
    for index, (stage, now) in enumerate(zip(recipe.stage, apart, strict=True)):
        if stage.every_layer == 1 and now != before:
            yield (
                f"stage.{index}.from = {stage.origin!r} has other layers than the stage before it; "
                "put the stages of the smaller model last"
            )
        before = now


def _held_out(recipe: Recipe) -> Iterator[str]:
    """What one stage holds out another may not train on."""
    tasks = [(index, task) for index, stage in enumerate(recipe.stage) for task in stage.task]
    for (index, one), (later, other) in combinations(tasks, 2):
        same = index != later and same_problems(one, other)
        if same and (one.seed, one.held_out) != (other.seed, other.held_out):
            yield (
                f"stage.{later}: task {other.called!r} has the problems of stage {index} with "
                "another seed or held_out, and what the one holds out the other may train on; give "
                "both the same"
            )


def _stages(recipe: Recipe) -> Iterator[str]:
    for index, stage in enumerate(recipe.stage):
        for conflict in stage.conflicts():
            yield f"stage.{index}.{conflict}"


_CHECKS: tuple[Callable[[Recipe], Iterator[str]], ...] = (
    _names,
    _handed_on,
    _engines,
    _ray,
    _sync,
    _inline,
    _learner,
    _ahead,
    _adapter,
    _options,
    _guard,
    _budget,
    _stage_names,
    _sizes,
    _held_out,
    _stages,
)
