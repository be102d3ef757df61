"""Settings that are each right and do not go together. Raises ConfigError, one line each."""

import re

from interlock.config.schema import Recipe, worker_settings
from interlock.errors import ConfigError


def _check_fleet(recipe: Recipe, source: str) -> None:
    names = worker_settings(recipe)
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
        if stage.staleness:
            raise ConfigError(
                f"{source}: stage.{index}.staleness = {stage.staleness} needs generators that work "
                'while the learner does; set fleet.kind = "local", or staleness = 0'
            )


def check_combinations(recipe: Recipe, source: str) -> None:
    _check_fleet(recipe, source)
    if recipe.guard.warn > recipe.guard.quarantine:
        raise ConfigError(
            f"{source}: guard.warn = {recipe.guard.warn} is above guard.quarantine = "
            f"{recipe.guard.quarantine}; lower it"
        )
    for index, stage in enumerate(recipe.stage):
        for conflict in stage.conflicts():
            raise ConfigError(f"{source}: stage.{index}.{conflict}")
