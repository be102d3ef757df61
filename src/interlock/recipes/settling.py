"""What a recipe leaves open, decided for here and now; or as in the run that is resumed."""

import platform
from contextlib import closing, suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import torch
from msgspec.structs import replace

from interlock import hub
from interlock.chips import device, probe
from interlock.config.reading import parse_recipe
from interlock.config.schema import GeneratorSettings, LearnerSettings, Recipe
from interlock.rundir import RunDir

Part = TypeVar("Part", LearnerSettings, GeneratorSettings)
_OURS = ("torch", "cpu")  # engine and device
_PACKAGES = ("interlock", "torch", "msgspec", "safetensors", "tokenizers", "numpy")


def settled(recipe: Recipe, resumed: Path | None) -> Recipe:
    """The recipe with what it leaves open decided: as in the resumed run, or for here and now.

    That is what is left to a measurement (chips/probe.py), the time that a chat template is told,
    and a resumed run's revision of a model of the hub.
    """
    known = recipe
    clock: datetime | None = datetime.now().replace(microsecond=0)
    if resumed is not None:
        with closing(RunDir.read(resumed)) as run:
            run.ledger.check_current()  # before its settings are compared with those of today
            known = parse_recipe(run.config, source=f"{resumed}/config.json")
            clock = known.model.clock
    return replace(
        recipe,
        model=replace(
            recipe.model,
            path=hub.settled(recipe.model.path, known.model.path),
            clock=recipe.model.clock or clock,
        ),
        learner=_measured(recipe.learner, known.learner),
        generator=_generators(recipe, known),
    )


def kernels(recipe: Recipe) -> str:
    """In one line what multiplies, and why; a generator that decides for itself says so itself."""
    ours = [each for each in recipe.generator if each.kernel != "auto"] if recipe.generates else []
    told = [
        f"generator: {each.dtype} by {each.kernel}" + ", recorded steps" * (each.graphs is True)
        for each in ours[:1]
    ]
    why = probe.why(recipe.learner, device.claim(recipe.learner.device))
    return "; ".join([*told, f"learner: {why}"])


def _generators(recipe: Recipe, known: Recipe) -> list[GeneratorSettings]:
    """Those on this machine's CPU in this environment are settled, so that they come back as they
    were; the others decide for their own device.
    """
    kind, kept = recipe.fleet.kind, known.generator
    if len(kept) != len(recipe.generator):
        kept = recipe.generator
    return [
        _measured(asked, old)
        if kind == "inline"
        or (kind == "local" and asked.python is None and (asked.engine, asked.device) == _OURS)
        else asked
        for asked, old in zip(recipe.generator, kept, strict=True)
    ]


def _measured(asked: Part, known: Part) -> Part:
    """As the run had it; on another device than it had, its dtype alone."""
    open_names = probe.left_open(asked)
    names = open_names if asked.device == known.device else {"dtype"} & set(open_names)
    kept = {name: getattr(known, name) for name in names}
    return probe.settled(replace(asked, **kept), device.claim(asked.device))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found | {"threads": str(torch.get_num_threads())}
