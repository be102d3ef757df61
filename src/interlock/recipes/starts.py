"""What a stage starts from, where that is not what the stage before it left: `from = …`.

    "runs/x", a model directory, "hf:…" ─┐
    "model": the recipe's own ───────────┼─> directory ──> masters of a stage before its first step
    "stage:NAME": an earlier one's end ──┘    (digest in the run's manifest)

What is read is what a run publishes, in the model's own dtype. Of a stage that has begun nothing is
read again: a resumed run takes its own. Where an adapter learns (learner.lora), the weights beside
it stay those of the recipe's model, and stages hand on the adapter alone.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from interlock.config.origins import MODEL, of_stage
from interlock.config.schema import Recipe
from interlock.errors import ConfigError, RunError, UserError
from interlock.learner import checkpoint
from interlock.models import adapters
from interlock.models.fetch import find_model
from interlock.models.huggingface import read_architecture
from interlock.models.peft_files import ADAPTER, load_adapter
from interlock.recipes.learned import load_masters
from interlock.recipes.stage import Stage
from interlock.regular import open_regular
from interlock.rundir import RunDir
from interlock.text import one_line

Starts = Mapping[int, Path]  # the directories of stages that start elsewhere and have not begun


def find(
    recipe: Recipe,
    model: Path,
    begun: int,
    recorded: Mapping[str, str],
    tell: Callable[[str], None],
) -> Starts:
    """Where each stage that has yet to begin starts from, but for the ends of earlier stages.

    Args:
        begun: the index of the last stage that has begun; -1: none.
        recorded: the inputs of the run that is resumed; those of a new one are none.

    Raises UserError when there is no such model or run, or it is another model than the recipe's.
    """
    found = {}
    for index, stage in enumerate(recipe.stage):
        if index <= begun or stage.origin is None or of_stage(stage.origin) is not None:
            continue
        try:
            directory = model if stage.origin == MODEL else find_model(stage.origin, tell)
            if why := _unlike(directory, model):
                raise ConfigError(why)
            if _name(index, stage.origin) not in recorded and (why := _longer(stage.origin)):
                raise ConfigError(why)
        except UserError as error:
            where = f"stage {stage.name or index}: from = {one_line(repr(stage.origin), 80)}"
            raise type(error)(f"{where}: {error}") from None
        found[index] = directory
    return found


def _unlike(directory: Path, model: Path) -> str | None:
    """Why the weights there cannot take the place of the model's."""
    theirs, ours = read_architecture(directory), read_architecture(model)
    for name in theirs.__struct_fields__:
        was, wanted = getattr(theirs, name), getattr(ours, name)
        if was != wanted:
            return (
                f"it is another model than [model] path ({name} is {one_line(str(was), 60)}, not "
                f"{one_line(str(wanted), 60)}); give one of the same shape, or set model.path to it"
            )
    if _content(directory, "tokenizer.json") != _content(model, "tokenizer.json"):
        return "its tokenizer is another than that of [model] path; set model.path to it"
    return None


def _longer(origin: str) -> str | None:
    """Why a run's weights are not those that it is to end with."""
    path = Path(origin).expanduser()
    if not (path / "manifest.json").is_file():
        return None
    with closing(RunDir.read(path)) as run:
        status = run.status
    if status == "finished":
        return None
    return (
        f"that run is {status}, and its weights are those it had before it was made longer; go on "
        f"with it first, or say from = {str(path / 'weights')!r}"
    )


def _name(index: int, origin: str) -> str:
    """Of such weights among the inputs in a run's manifest."""
    return f"stage {index}: from {origin}"


def digests(recipe: Recipe, starts: Starts, recorded: Mapping[str, str]) -> dict[str, str]:
    """Of the weights that stages start from, by name; of those that have begun, as recorded."""
    found = {}
    for index, stage in enumerate(recipe.stage):
        if stage.origin is None or stage.origin == MODEL or of_stage(stage.origin) is not None:
            continue
        name = _name(index, stage.origin)
        if index in starts:
            found[name] = _digest(starts[index])
        elif name in recorded:
            found[name] = recorded[name]
    return found


def begin(stage: Stage[Any], starts: Starts) -> None:
    """Give a stage that begins the weights that it asks for, where it asks for any.

    Raises ModelError when they are damaged, RunError when they are not there.
    """
    origin = stage.settings.origin
    if origin is None:
        return
    name = of_stage(origin)
    directory = starts[stage.index] if name is None else stage.left_by(name)
    _load(stage, directory, fresh=origin == MODEL)
    digest = stage.run.manifest.inputs.get(_name(stage.index, origin)) or _digest(directory)
    message = f"stage {stage.index} starts from {origin}"
    stage.sinks.event(stage.run.event("started_from", message, origin=origin, digest=digest))


def _load(stage: Stage[Any], directory: Path, fresh: bool) -> None:
    """Of an adapter: that of an earlier stage's end, or a new one, beside the weights that stay."""
    learner = stage.learner
    if (form := learner.decoder.adapter) is None:
        decoder = load_masters(directory, torch.device("cpu"), learner.decoder.dtype)
        checkpoint.begin_with(learner, {n: p.detach() for n, p in decoder.named_parameters()})
        return
    decoder = learner.decoder.shared()
    adapters.attach(decoder, form, torch.float32, seed=stage.recipe.seed)
    if not fresh:
        shapes = {name: list(tensor.shape) for name, tensor in decoder.tensors().items()}
        kept = load_adapter(directory / ADAPTER, shapes)
        if kept.base != learner.base:
            raise RunError(
                f"{directory / ADAPTER} is an adapter of other weights than those that it would "
                "stand beside; begin from a stage that learned beside these"
            )
        adapters.set_adapter(decoder, kept.tensors)
    drawn = {n: p.detach().cpu() for n, p in decoder.named_parameters() if p.requires_grad}
    checkpoint.begin_with(learner, drawn)


def _digest(directory: Path) -> str:
    """Over the digests of the weights' files, in the order of their names."""
    whole = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        with open_regular(path) as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256 {whole.hexdigest()}"


def _content(directory: Path, name: str) -> bytes:
    path = directory / name
    return path.read_bytes() if path.is_file() else b""


def referred(recipe: Recipe) -> Sequence[int]:
    """The stages whose weights a later one asks for."""
    wanted = {name for stage in recipe.stage for name in stage.refers_to}
    return [index for index, stage in enumerate(recipe.stage) if stage.name in wanted]
