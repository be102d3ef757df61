"""Where the weights of a model directory are, found by headers alone, and in what form.

    config.json ──> shapes ──┐ names, shapes, dtypes and scales compared
    *.safetensors ── headers ┴──> StoredTensors ── read_into, one tensor at a time ──> parameters

Each tensor of the files has its place in the model, each part of the model its tensor; what is in
fp8 has its scales (blocks.py). Only safetensors files of the directory are opened, nothing is
unpickled. The `safetensors` library checks lengths and offsets.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interlock.errors import ModelError
from interlock.models import blocks
from interlock.models.architecture import Architecture
from interlock.models.blocks import ScaledBlocks
from interlock.models.files import inside, read_object
from interlock.models.finite import finite
from interlock.regular import open_regular
from interlock.text import error_line, one_line

_LFS = b"version https://git-lfs.github.com/spec/"
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
DTYPES = {"F32", "F16", "BF16"}
_ROTARY_TABLE = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
# The layer behind the last one is their head for multi-token prediction.
_PREDICTING = {"deepseek_v3", "glm4_moe", "glm4_moe_lite"}

Files = dict[Path, list[str]]  # safetensors file -> the tensors read from it


class StoredTensors(msgspec.Struct, frozen=True):
    """Where the tensors of a model are, and in what form."""

    used: Files
    spare: Files  # what the model may do without
    scales: dict[str, Path]  # of those in fp8: the file of its scales
    blocks: ScaledBlocks | None

    def fill(self, views: dict[str, Tensor]) -> None:
        """Write every tensor into its view, in the view's dtype and on its device.

        Besides the views one tensor is in memory at a time; of one in fp8, a row of blocks more.
        Raises ModelError, also for one that is not finite.
        """
        for path, names in self.used.items():
            with opened(path) as file:
                for name in names:
                    if name in self.scales:
                        self._dequantise(name, file, path, views[name])
                    else:
                        views[name].copy_(_whole(file, name, path, views[name].dtype))

    def read(self, name: str, path: Path) -> Tensor:
        """One tensor of the file, in its dtype; one that is in fp8, in float32.

        Raises ModelError, also if it is not finite.
        """
        with opened(path) as file:
            if name not in self.scales:
                return _whole(file, name, path)
            found = torch.empty(file.get_slice(name).get_shape())
            self._dequantise(name, file, path, found)
            return found

    def _dequantise(self, name: str, file: Any, path: Path, out: Tensor) -> None:
        assert self.blocks is not None
        place, scale_name = self.scales[name], blocks.scale_of(name)
        with _also(file, path, place) as beside:
            scale = beside.get_tensor(scale_name)
        if not bool((scale.isfinite() & (scale >= 0)).all()):
            raise ModelError(
                f"{place}: {scale_name} holds scales that are negative or not finite; fetch the "
                "model again"
            )
        if not blocks.dequantise(file.get_tensor(name), scale, self.blocks, out):
            raise _not_finite(name, path, out.dtype)


def _whole(file: Any, name: str, path: Path, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor as the file, which is at `path`, has it, for a place of `dtype`.

    Raises ModelError.
    """
    tensor: Tensor = file.get_tensor(name)
    if not finite(tensor, dtype):
        raise _not_finite(name, path, dtype or tensor.dtype)
    return tensor


def _not_finite(name: str, path: Path, dtype: torch.dtype) -> ModelError:
    narrow = dtype in (torch.float16, torch.bfloat16)
    where, other = (f" in {str(dtype)[6:]}", "another dtype, ") if narrow else ("", "")
    return ModelError(
        f"{path}: {name} holds values that are not finite{where}; take {other}an earlier "
        "checkpoint, or fetch the model again"
    )


def weight_files(directory: Path) -> Files:
    """The files that hold the weights, and what they hold; every file is inside the model."""
    if path := inside(directory, WHOLE):
        with opened(path) as file:
            return {path: list(file.keys())}
    index = _read_index(directory)
    if index is None:
        pickled = sorted(p.name for p in directory.iterdir() if p.suffix in _PICKLED)
        if pickled:
            raise ModelError(
                f"{directory} has only pickled weights ({pickled[0]}), which can run code when "
                "opened; convert them to safetensors"
            )
        raise ModelError(f"{directory} has no {WHOLE} and no {INDEX}; fetch the model again")
    files: Files = {}
    for shard in sorted(set(index.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelError(
                f"{directory}: {_shown(repr(shard))} is not the name of a safetensors file beside "
                f"it; fetch {INDEX} again"
            )
        path = inside(directory, shard)
        if path is None:  # or it is a pipe or a directory
            raise ModelError(
                f"{directory} has no file {_shown(shard)}, which {INDEX} names; fetch the model "
                "again"
            )
        with opened(path) as file:
            files[path] = list(file.keys())
        for name in files[path]:
            if index.pop(name, None) != shard:
                raise ModelError(
                    f"{path} holds {_shown(name)}, but {INDEX} does not place it there; fetch both "
                    "again"
                )
    if index:
        name, shard = min(index.items())
        raise ModelError(
            f"{directory / shard} lacks {_shown(name)}, which {INDEX} places there; fetch both "
            "again"
        )
    return files


def _read_index(directory: Path) -> dict[str, str] | None:
    """Tensor name -> file name; None: there is no index."""
    tree = read_object(directory, INDEX)
    if tree is None:
        return None
    index = tree.get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
        raise ModelError(
            f"the weight_map of {directory / INDEX} is no table of file names; fetch the model "
            "again"
        )
    return index


def _shown(name: str) -> str:
    return one_line(name, 120)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The safetensors file, to read from. Raises ModelError when it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} {_told(path, error)}") from None


def _told(path: Path, error: Exception) -> str:
    """What is wrong with a file. safetensors says of all that it may not open that there is none.

    A pointer is what a clone has without git-lfs: fetched in the same way again, it is no other.
    """
    try:
        with open_regular(path) as file:
            if file.read(len(_LFS)) == _LFS:
                return "is a pointer of Git LFS, and not the weights; run git lfs pull there"
    except PermissionError as refused:
        return f"cannot be read ({refused.strerror}); let this user read it"
    except OSError as refused:
        error = refused
    return f"cannot be read ({error_line(error, 300)}); fetch the model again"


def sort_tensors(
    files: Files, shapes: dict[str, list[int]], arch: Architecture, form: ScaledBlocks | None
) -> StoredTensors:
    """Those that have a place in the decoder, and those that it may do without.

    Raises ModelError for any other name, and for a shape, dtype or scale that is not as it must be.
    """
    places = {name: path for path, names in files.items() for name in names}
    stored = StoredTensors({}, {}, {}, form)
    for path, names in files.items():
        with opened(path) as file:
            for name in names:
                owner = blocks.owner_of(name) or name
                if owner not in shapes and _may_be_spare(owner, arch):
                    stored.spare.setdefault(path, []).append(name)
                elif owner == name or owner not in shapes:
                    if problem := _problem(file, name, shapes.get(name), path, places, stored):
                        raise ModelError(
                            f"{path}: {_shown(name)} {one_line(problem, 200)}; fetch the model "
                            "again, with the config.json that came with it"
                        )
                    stored.used.setdefault(path, []).append(name)
    _check_owners(places, shapes, stored)
    return stored


def _problem(
    file: Any,
    name: str,
    shape: list[int] | None,
    path: Path,
    places: dict[str, Path],
    stored: StoredTensors,
) -> str | None:
    """What is wrong with a tensor that should have this shape, if anything.

    Reads headers alone, and notes in `stored.scales` where the scales of one in fp8 are.
    """
    kept = file.get_slice(name)
    if shape is None:
        return "has no place in a model of this config.json"
    if kept.get_shape() != shape:
        return f"has shape {kept.get_shape()}, where config.json asks for {shape}"
    if kept.get_dtype() == blocks.STORED:
        scale = blocks.scale_of(name)
        if scale not in places:
            return blocks.problem(stored.blocks, shape, None)
        stored.scales[name] = places[scale]
        with _also(file, path, places[scale]) as beside:
            return blocks.problem(stored.blocks, shape, beside.get_slice(scale))
    if kept.get_dtype() not in DTYPES:
        known = ", ".join([*sorted(DTYPES), blocks.STORED])
        return f"is stored as {kept.get_dtype()}, and only {known} are read"
    return None


def _check_owners(
    places: dict[str, Path], shapes: dict[str, list[int]], stored: StoredTensors
) -> None:
    """Raise ModelError for scales of what is not stored in fp8: it would be read without them."""
    for name, path in places.items():
        owner = blocks.owner_of(name)
        if owner in shapes and owner not in stored.scales:
            raise ModelError(
                f"{path}: {name} has scales of a tensor that is not stored as {blocks.STORED}; "
                "fetch the model again"
            )


@contextmanager
def _also(file: Any, path: Path, other: Path) -> Iterator[Any]:
    """The safetensors file `other`: `file`, if that is it."""
    if other == path:
        yield file
        return
    with opened(other) as another:
        yield another


def _may_be_spare(name: str, arch: Architecture) -> bool:
    extra = arch.family in _PREDICTING and name.startswith(f"model.layers.{arch.layers}.")
    return extra or name == "lm_head.weight" or _ROTARY_TABLE.fullmatch(name) is not None
