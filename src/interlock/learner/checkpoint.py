"""A learner's whole state on disk: going on from it is bit for bit like never having stopped.

    learner ── save ──> masters.safetensors, exp_avg.safetensors, exp_avg_sq.safetensors (fp32),
                        reference.safetensors (when the learner keeps a reference policy),
                        state.json: counters, the caller's `extra`, sha256 of each file above
            <── load ──

Written into a directory that the caller owns, syncs and renames (rundir's `atomic_directory`).
Tensors go by the decoder's own parameter names; these files are for resuming, not for publishing.
The learner draws no random numbers, so there is no generator state to keep.
"""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interlock.errors import RunError
from interlock.learner.learner import Learner

_FORMAT = 1
_MOMENTS = ("exp_avg", "exp_avg_sq")


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    steps: int
    bad_steps: int
    bad_in_row: int
    version: int
    unpublished: bool
    sha256: dict[str, str]  # file name -> digest of its bytes
    extra: dict[str, Any]


def save(learner: Learner, directory: Path, extra: dict[str, Any]) -> None:
    """Write the learner and `extra` (what JSON can hold) into the existing, empty `directory`.

    What the disk refuses comes as OSError or SafetensorError.
    """
    digests = {}
    for name, tensors in _contents(learner, _moments(learner)).items():
        path = directory / f"{name}.safetensors"
        save_file(tensors, path)
        digests[path.name] = _sha256(path)
    state = _State(
        format=_FORMAT,
        steps=learner.steps,
        bad_steps=learner.bad_steps,
        bad_in_row=learner.bad_in_row,
        version=learner.version,
        unpublished=learner.unpublished,
        sha256=digests,
        extra=extra,
    )
    (directory / "state.json").write_bytes(msgspec.json.format(msgspec.json.encode(state)))


def load(learner: Learner, directory: Path) -> dict[str, Any]:
    """Put the learner into the state saved in `directory`; -> `extra`.

    The learner must be of the same architecture and keep a reference if the saved one did. Raises
    RunError when anything is missing, truncated, altered or does not fit; nothing is loaded then.
    """
    try:
        state = msgspec.json.decode((directory / "state.json").read_bytes(), type=_State)
    except (OSError, msgspec.DecodeError) as error:
        raise RunError(
            f"{directory}/state.json is unreadable ({error}); resume from an older one"
        ) from None
    if state.format != _FORMAT:
        raise RunError(
            f"{directory} has checkpoint format {state.format}, not {_FORMAT}; resume it with the "
            "version of Interlock that wrote it"
        )
    trained = {name: parameter.detach() for name, parameter in learner.parameters.items()}
    contents = _contents(learner, dict.fromkeys(_MOMENTS, trained) if state.steps else {})
    expected = {f"{name}.safetensors" for name in contents}
    if set(state.sha256) != expected:
        raise RunError(
            f"{directory} lists {sorted(state.sha256)}, this recipe needs {sorted(expected)}; "
            "resume with the recipe that wrote it"
        )
    found = {
        name: _read(directory / f"{name}.safetensors", state.sha256, tensors)
        for name, tensors in contents.items()
    }
    _restore(learner, state, found)
    return state.extra


def _contents(
    learner: Learner, moments: dict[str, dict[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """File stem -> tensors that belong there."""
    contents = {"masters": _detached(learner.decoder)} | moments
    if learner.reference is not None:
        contents["reference"] = _detached(learner.reference)
    return contents


def _moments(learner: Learner) -> dict[str, dict[str, Tensor]]:
    """The optimizer's; it has them from its first step on."""
    if learner.steps == 0:
        return {}
    state, trained = learner.optimizer.state, learner.parameters.items()
    return {kind: {name: state[value][kind] for name, value in trained} for kind in _MOMENTS}


def _detached(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def _read(path: Path, digests: dict[str, str], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU. Raises RunError unless they are what was saved."""
    try:
        if _sha256(path) != digests[path.name]:
            raise RunError(f"{path} is not what was saved; resume from an older checkpoint")
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} is unreadable ({error}); resume from an older one") from None
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


def _restore(learner: Learner, state: _State, found: dict[str, dict[str, Tensor]]) -> None:
    with torch.no_grad():
        for name, parameter in learner.decoder.named_parameters():
            parameter.copy_(found["masters"][name])
        if learner.reference is not None:
            for name, parameter in learner.reference.named_parameters():
                parameter.copy_(found["reference"][name])
    learner.optimizer.state.clear()
    for name, parameter in learner.parameters.items() if state.steps else ():
        moments = {m: found[m][name].to(parameter.device) for m in _MOMENTS}
        on = parameter.device if learner.optimizer.defaults["fused"] else "cpu"
        step = torch.tensor(float(state.steps), device=on)
        learner.optimizer.state[parameter] = {"step": step} | moments
    learner.steps = state.steps
    learner.bad_steps, learner.bad_in_row = state.bad_steps, state.bad_in_row
    learner.version, learner.unpublished = state.version, state.unpublished


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
