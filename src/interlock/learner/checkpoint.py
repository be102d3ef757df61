"""A learner's whole state on disk: going on from it is bit for bit like never having stopped.

    learner ── save ──> masters.safetensors, exp_avg.safetensors, exp_avg_sq.safetensors (fp32),
                        reference.safetensors (when the learner keeps a reference policy),
                        state.json: counters, the caller's `extra`, sha256 of each file above
            <── load ──

Written into a directory that the caller owns, syncs and renames (rundir's `atomic_directory`).
Tensors go by the decoder's own parameter names; these files are for resuming, not for publishing.
They are written and read by rank 0, and are the same whatever the number of processes. Of a learner
with an adapter they hold that alone, and state.json the digest of the weights that it is of.
The learner draws no random numbers, so there is no generator state to keep.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interlock.errors import RunError
from interlock.learner.distributed import sharding
from interlock.learner.distributed.messages import GatherState, RestoreState, StateKind
from interlock.learner.learner import Learner
from interlock.records.coding import from_json
from interlock.regular import open_regular, read_regular

_FORMAT = 1
_MOMENTS: tuple[StateKind, ...] = ("exp_avg", "exp_avg_sq")
_REMEDY = "put it back from a copy, or delete the checkpoint to go on from the one before"


class _SavedState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    steps: int
    bad_steps: int
    bad_in_row: int
    version: int
    unpublished: bool
    sha256: dict[str, str]  # file name -> digest of its bytes
    extra: dict[str, Any]
    base: str | None = None  # of an adapter: Learner.base


def save(learner: Learner, directory: Path, extra: dict[str, Any]) -> None:
    """Write the learner and `extra` (what JSON can hold) into the existing, empty `directory`.

    What the disk refuses comes as OSError or SafetensorError.
    """
    digests = {}
    for kind in _kinds(learner, learner.steps):
        path = directory / f"{kind}.safetensors"
        with learner.ranks.broadcast(GatherState(kind)):
            tensors = gather_state(learner, kind)
        save_file(tensors, path)
        digests[path.name] = _sha256(path)
    state = _SavedState(
        format=_FORMAT,
        steps=learner.steps,
        bad_steps=learner.bad_steps,
        bad_in_row=learner.bad_in_row,
        version=learner.version,
        unpublished=learner.unpublished,
        sha256=digests,
        extra=extra,
        base=learner.base,
    )
    (directory / "state.json").write_bytes(msgspec.json.format(msgspec.json.encode(state)))


def load(learner: Learner, directory: Path) -> dict[str, Any]:
    """Put the learner into the state saved in `directory`; -> `extra`.

    The learner must be of the same architecture and keep a reference if the saved one did. Raises
    RunError when anything is missing, truncated, altered or does not fit; nothing is loaded then.
    """
    state = _state(directory)
    if state.format != _FORMAT:
        raise RunError(
            f"{directory} has checkpoint format {state.format}, not {_FORMAT}; resume it with the "
            "version of Interlock that wrote it"
        )
    if state.base != learner.base:
        raise RunError(
            f"{directory} holds an adapter of other weights than these; resume with the model that "
            "it was begun with"
            if state.base is not None and learner.base is not None
            else f"{directory} is of a run {'with' if state.base else 'without'} learner.lora; "
            "resume with the recipe that wrote it"
        )
    kinds = _kinds(learner, state.steps)
    expected = {f"{kind}.safetensors" for kind in kinds}
    if set(state.sha256) != expected:
        raise RunError(
            f"{directory} lists {sorted(state.sha256)}, this recipe needs {sorted(expected)}; "
            "resume with the recipe that wrote it"
        )
    found = {
        kind: _read(directory / f"{kind}.safetensors", state.sha256, _like(learner, kind))
        for kind in kinds
    }
    counters = RestoreState(
        state.steps, state.bad_steps, state.bad_in_row, state.version, state.unpublished
    )
    with learner.ranks.broadcast(counters):
        restore(learner, counters, found)
    return state.extra


def kept(directory: Path) -> dict[str, Any]:
    """What the caller of `save` had kept. Raises RunError."""
    return _state(directory).extra


def _state(directory: Path) -> _SavedState:
    try:
        return from_json(read_regular(directory / "state.json"), _SavedState)
    except (OSError, ValueError) as error:
        raise RunError(f"{directory}/state.json is unreadable ({error}); {_REMEDY}") from None


def begin_with(learner: Learner, masters: dict[str, Tensor]) -> None:
    """Give a learner that has made no step other weights, and its reference the same.

    `masters`: fp32, on the CPU, by the decoder's own parameter names. Raises RunError when they are
    of another model.
    """
    wanted = {name: tensor.shape for name, tensor in _like(learner, "masters").items()}
    if {name: tensor.shape for name, tensor in masters.items()} != wanted:
        raise RunError("the weights to start from are of another model")
    assert learner.steps == learner.bad_steps == 0
    counters = RestoreState(0, 0, 0, learner.version, unpublished=True)
    with learner.ranks.broadcast(counters):
        restore(learner, counters, {kind: dict(masters) for kind in _kinds(learner, steps=0)})


def gather_state(learner: Learner, kind: StateKind) -> dict[str, Tensor]:
    """One kind of state, by parameter; of several ranks, whole on rank 0's CPU, else empty."""
    if kind in _MOMENTS:
        state, trained = learner.optimizer.state, learner.parameters.items()
        own = {name: state[parameter][kind] for name, parameter in trained}
    else:
        own = _like(learner, kind)
    wholes = ((name, sharding.gather(tensor, learner.ranks)) for name, tensor in own.items())
    return {name: tensor for name, tensor in wholes if tensor is not None}


def _kinds(learner: Learner, steps: int) -> list[StateKind]:
    """The optimizer has moments from its first step on."""
    kinds: list[StateKind] = ["masters", *(_MOMENTS if steps else ())]
    return kinds if learner.reference is None else [*kinds, "reference"]


def _like(learner: Learner, kind: StateKind) -> dict[str, Tensor]:
    """Parameters of which the file of this kind holds one tensor each, like them."""
    if kind in _MOMENTS:
        return {name: parameter.detach() for name, parameter in learner.parameters.items()}
    owner = learner.reference if kind == "reference" else learner.decoder
    assert owner is not None
    found = {name: parameter.detach() for name, parameter in owner.named_parameters()}
    return found if learner.base is None else {name: found[name] for name in learner.parameters}


def _read(path: Path, digests: dict[str, str], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU. Raises RunError unless they are what was saved."""
    try:
        if _sha256(path) != digests[path.name]:
            raise RunError(f"{path} is not what was saved; {_REMEDY}")
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} is unreadable ({error}); {_REMEDY}") from None
    saved, wanted = (
        {name: (tensor.dtype, tensor.shape) for name, tensor in some.items()}
        for some in (tensors, like)
    )
    if saved != wanted:
        names = sorted(name for name in saved | wanted if saved.get(name) != wanted.get(name))
        raise RunError(
            f"{path} is of another model: it differs in {names[0]} and {len(names) - 1} more"
        )
    return tensors


@torch.no_grad()
def restore(
    learner: Learner, counters: RestoreState, found: Mapping[StateKind, dict[str, Tensor]]
) -> None:
    """Put every rank into the state `found`, which only rank 0 has: kind -> name -> tensor.

    Empties `found` as it goes.
    """
    for kind in _kinds(learner, counters.steps):
        for name, parameter in () if kind in _MOMENTS else _like(learner, kind).items():
            sharding.scatter(parameter, found.get(kind, {}).pop(name, None), learner.ranks)
    learner.optimizer.state.clear()
    for name, parameter in learner.parameters.items() if counters.steps else ():
        moments = {kind: torch.empty_like(parameter) for kind in _MOMENTS}
        for kind, moment in moments.items():
            sharding.scatter(moment, found.get(kind, {}).pop(name, None), learner.ranks)
        on = parameter.device if learner.optimizer.defaults["fused"] else "cpu"
        step = torch.tensor(float(counters.steps), device=on)
        learner.optimizer.state[parameter] = {"step": step} | moments
    learner.steps = counters.steps
    learner.bad_steps, learner.bad_in_row = counters.bad_steps, counters.bad_in_row
    learner.version, learner.unpublished = counters.version, counters.unpublished


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
