"""Opens a pool of replicas as settings ask for it, over a fleet of local processes or of Ray.

[[replica]], [fleet], a model directory ──> a worker for each, its canary ──> Pool
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from interlock.config.schema import FleetSettings, GeneratorSettings, GuardSettings
from interlock.engine.base import Limits
from interlock.errors import ConfigError
from interlock.fleet.base import Fleet, Spec
from interlock.models.huggingface import read_architecture
from interlock.models.tokenizer import Tokenizer
from interlock.workers.packages import missing_package
from interlock.workers.protocol import Canary, Open
from interlock.workers.replicas.crew import TERMS, PoolTerms
from interlock.workers.replicas.pool import Pool
from interlock.workers.replicas.replica import Note

if TYPE_CHECKING:
    from interlock.sync.newest import StoreView

BAND = GuardSettings()  # how far a replica may be from the reference, unless it is said
_WORKER = "interlock.workers.worker"
# Any text of ordinary words does: every replica scores it before it serves.
_TEXT = (
    "The harbour master writes every arrival into a ledger: the name of the ship, its draught, "
    "where it comes from and what it carries. On 14 March there were 23 of them, 5 more than the "
    "day before, and the smallest carried 312 crates of oranges. Nobody unloads before the entry "
    "is signed, however late it is, for a crate that is in no ledger belongs to nobody."
)
_BEGINNINGS = ("The first thing that every sailor learns is", "Add 17 and 25. The result is")
_CONTINUED = 16  # tokens drawn after each
_TEXT_TOKENS = 128


def open_pool(
    model: Path,
    replicas: Mapping[str, GeneratorSettings],
    fleet: FleetSettings,
    logs: Path,
    note: Note,
    *,
    chat_template: str | None = None,
    clock: datetime | None = None,
    band: GuardSettings = BAND,
    terms: PoolTerms = TERMS,
    follow: str | None = None,
    poll_s: float = 2.0,
) -> Pool:
    """A pool whose replicas are starting; each reports by `note` once it serves.

    Args:
        model: the directory of the weights that every replica opens with.
        replicas: the settings of every replica, by its name.
        logs: the directory in which what the workers print is kept.
        follow: the fsspec URL or directory of weight versions, or a run's directory `sync` with
            one for each of its sessions; the newest version is served.

    Raises UserError when the model, the fleet or the store cannot be had.
    """
    check_replicas(replicas, fleet, terms)
    store = None if follow is None else _store(follow)
    tokenizer = Tokenizer.load(model, chat_template, clock)
    arch = read_architecture(model)
    limits = Limits(arch.vocab, arch.context, 0)
    logs.mkdir(parents=True, exist_ok=True)
    opening = Open(
        name="",
        model=str(model.resolve()),
        chat_template=chat_template and str(Path(chat_template).resolve()),
        clock=clock,
        settings=GeneratorSettings(),
        store=None if store is None else store.store,
        canary=canary(tokenizer, limits),
        serves=True,
    )
    workers = {name: _worker(name, each, logs, opening) for name, each in replicas.items()}
    opener = _FLEETS["local" if fleet.kind == "inline" else fleet.kind]
    return Pool(lambda: opener(fleet), workers, fleet, band, limits, note, terms, store, poll_s)


def _worker(name: str, settings: GeneratorSettings, logs: Path, opening: Open) -> tuple[Spec, Open]:
    """`opening`: what all are asked."""
    spec = Spec(
        name=name,
        module=_WORKER,
        log=logs / f"{name}.log",
        python=settings.python,
        env=settings.env,
        resources=settings.resources,
    )
    # Its process has the variables.
    return spec, replace(opening, name=name, settings=replace(settings, env={}))


def check_replicas(
    replicas: Mapping[str, GeneratorSettings], fleet: FleetSettings, terms: PoolTerms
) -> None:
    """Raise ConfigError when a replica's interpreter or engine is not there."""
    if not replicas:
        raise ConfigError("there is no replica; write a [[replica]] table")
    if terms.reference is not None and terms.reference not in replicas:
        raise ConfigError(
            f"reference = {terms.reference!r} is no replica; there are {', '.join(replicas)}"
        )
    if fleet.kind == "ray":
        if importlib.util.find_spec("ray") is None:
            raise ConfigError('fleet.kind = "ray" needs Ray; pip install "interlock[ray]"')
        if fleet.address is not None or "RAY_ADDRESS" in os.environ:
            return  # the interpreters are on the cluster's machines
    for name, settings in replicas.items():
        python, lacking = settings.python, missing_package(settings.engine)
        if python is None and lacking:
            raise ConfigError(
                f"engine = {settings.engine!r} of replica {name!r} needs the package {lacking!r}, "
                "which is not in this environment; set its python to an interpreter that has it"
            )
        if python is not None and shutil.which(os.path.expanduser(python)) is None:
            raise ConfigError(
                f"python = {python!r} of replica {name!r} is no program here; give an interpreter"
            )


def canary(tokenizer: Tokenizer, limits: Limits) -> Canary:
    """What every replica shows itself on; cut to what the model can read."""
    most = max(2, min(_TEXT_TOKENS, limits.context))
    drawn = max(1, min(_CONTINUED, limits.context // 4))
    begun = max(1, limits.context - drawn)
    prompts = [tokenizer.encode(each)[:begun] for each in _BEGINNINGS]
    return Canary(tokenizer.encode(_TEXT)[:most], prompts, drawn)


def _store(follow: str) -> "StoreView":
    from interlock.sync.newest import StoreView  # brings torch, which who follows nothing spares

    return StoreView(_absolute(follow))


def _absolute(follow: str) -> str:
    return follow if "://" in follow else str(Path(follow).resolve())


def _local(settings: FleetSettings) -> Fleet:
    from interlock.fleet.local import LocalFleet

    return LocalFleet()


def _ray(settings: FleetSettings) -> Fleet:
    from interlock.fleet.ray import RayFleet

    return RayFleet(settings.address, settings.start_s)


_FLEETS: dict[str, Callable[[FleetSettings], Fleet]] = {"local": _local, "ray": _ray}
