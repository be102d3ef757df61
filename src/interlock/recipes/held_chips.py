"""Which chip a process of a run has, and how it is told from every other.

By its serial, where its driver gives one; else by host, device and the variable that chooses which
devices a process sees. All processes that compute on one machine's CPU share that as one chip. A
worker of Ray that gives no serial is taken to have what it has to itself, as Ray reserves it.
"""

import math
import os
import socket
from collections.abc import Mapping

import torch

from interlock.chips import device, vendors, versions
from interlock.config.schema import GeneratorSettings, Recipe, worker_settings
from interlock.recipes.meter import HeldBy
from interlock.records.cost import HeldChip
from interlock.records.trust import Stack

# Of vLLM: over how many chips one engine is spread.
_SPREAD = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


def own(place: torch.device, stack: Stack) -> HeldChip:
    """The chip of this process."""
    name = device.name(place)
    there = stack.serial or _place(name, os.environ)
    return HeldChip(stack.chip, there, name, stack.serial, socket.gethostname())


def of_workers(recipe: Recipe) -> dict[str, HeldBy]:
    """What each worker has, before it tells of its chip."""
    if recipe.fleet.kind == "inline":
        return {}
    return {
        name: HeldBy(_expected(name, settings, recipe.fleet.kind), _count(settings))
        for name, settings in worker_settings(recipe).items()
    }


def _expected(name: str, settings: GeneratorSettings, fleet: str) -> HeldChip:
    kind = vendors.kind_of(settings.device)
    if fleet == "ray":
        return HeldChip(settings.device, f"worker {name}", settings.device)
    chosen = vendors.of(kind).visible
    known = "" if chosen and chosen in settings.env else settings.device
    chip = versions.processor() if vendors.of(kind).host and kind == "cpu" else settings.device
    place = _place(settings.device, os.environ | settings.env)
    return HeldChip(chip, place, known, "", socket.gethostname())


def _place(name: str, environment: Mapping[str, str]) -> str:
    kind, _, number = name.partition(":")
    if vendors.of(kind).host:
        return f"{socket.gethostname()}/{kind}"
    seen = environment.get(vendors.of(kind).visible, "")
    return f"{socket.gethostname()}/{kind}:{number or 0}" + (f" of {seen}" if seen else "")


def _count(settings: GeneratorSettings) -> int:
    spread = [settings.options.get(name) for name in _SPREAD]
    needed = math.prod(n for n in spread if isinstance(n, int) and n > 0)
    # Ray's own kinds of accelerators are in capitals.
    reserved = [n for kind, n in settings.resources.items() if kind.isupper() and kind != "CPU"]
    return max(needed, *map(math.ceil, reserved), 1)
