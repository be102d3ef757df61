"""The weights as vLLM keeps them: which tensor is where, and the files that they travel in."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interlock.engine.base import Shapes
from interlock.errors import SyncError
from interlock.models.peft_files import save_adapter
from interlock.processes.scratch import Scratch
from interlock.records.adapters import AdapterForm
from interlock.text import error_line

Place = tuple[str, int, int]  # a vLLM parameter, and from which of its rows to which


def places(
    shapes: Shapes, parameters: Shapes, packed: Mapping[str, list[str]]
) -> dict[str, Place] | None:
    """Where in vLLM's `parameters` each tensor of `shapes` is; None when one cannot be found.

    packed: module of vLLM -> the checkpoint's modules whose rows it holds, one after another. Rows
    behind those of the checkpoint are padding.
    """
    whole = {part: (module, parts) for module, parts in packed.items() for part in parts}
    found: dict[str, Place] = {}
    for name, shape in shapes.items():
        parameter, start = name, 0
        words = name.split(".")
        if name not in parameters and len(words) > 1 and words[-2] in whole:
            module, parts = whole[words[-2]]
            siblings = [".".join([*words[:-2], part, words[-1]]) for part in parts]
            if not all(sibling in shapes for sibling in siblings):
                return None
            start = sum(shapes[each][0] for each in siblings[: siblings.index(name)])
            parameter = ".".join([*words[:-2], module, words[-1]])
        end = start + shape[0]
        held = parameters.get(parameter)
        if held is None or held[1:] != shape[1:] or held[0] < end:
            return None
        found[name] = parameter, start, end
    return found


@contextmanager
def room() -> Iterator[Path]:
    """The path of a file of weights that is gone afterwards, in TMPDIR.

    Raises SyncError when there is no place for one.
    """
    try:
        folder = Scratch("interlock-weights-")
    except OSError as error:
        raise _refused(f"a temporary file ({error_line(error)})") from None
    with folder as directory:
        yield directory / "weights.safetensors"


def write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file of `tensors`. Raises SyncError when the disk refuses."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, path)
    except (OSError, SafetensorError) as error:
        raise _refused(f"{path} ({error_line(error)})") from None


def write_adapter(tensors: Mapping[str, Tensor], form: AdapterForm, directory: Path) -> None:
    """An adapter as PEFT has it, for vLLM alone. Raises SyncError when the disk refuses."""
    try:
        save_adapter(tensors, form, directory, base="", digest="")
    except (OSError, SafetensorError) as error:
        raise _refused(f"{directory} ({error_line(error)})") from None


def read(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a safetensors file, one at a time."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118, not a dict
            yield name, file.get_tensor(name)


def read_places(path: Path, where: Iterable[tuple[str, Place]]) -> Iterator[tuple[str, Tensor]]:
    """The tensors at these places of a file of parameters, one at a time."""
    with safe_open(path, framework="pt") as file:
        for name, (parameter, start, end) in where:
            yield name, file.get_slice(parameter)[start:end]


def _refused(what: str) -> SyncError:
    return SyncError(f"cannot write the weights to {what}; make room there, or set TMPDIR")
