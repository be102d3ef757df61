"""Model directories in the Hugging Face layout: strict loading, and saving that transformers reads.

    config.json ──> Decoder on the meta device ──┐ names, shapes and dtypes compared
    *.safetensors ── headers only ───────────────┴──> memory ── tensor by tensor ──> Decoder

Nothing is allocated before every header has been read and found right: each tensor of the files has
its place, each parameter its tensor. Only safetensors files of the directory are opened, nothing is
unpickled and no code of the model is run. The `safetensors` library checks lengths and offsets.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from interlock.errors import ModelError
from interlock.models.architecture import Architecture
from interlock.models.decoder import Decoder
from interlock.models.files import copy, inside, read_object
from interlock.models.huggingface import read_architecture
from interlock.text import error_line

_log = logging.getLogger(__name__)

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
_DTYPES = {"F32", "F16", "BF16"}
_NAMED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_ROTARY_TABLE = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_SHARD_BYTES = 4 * 2**30

Files = dict[Path, list[str]]  # safetensors file -> the tensors read from it


def load_decoder(
    directory: Path, dtype: torch.dtype, device: torch.device, compute: torch.dtype | None = None
) -> Decoder:
    """The decoder of a model directory.

    Args:
        directory: in the Hugging Face layout: config.json and *.safetensors.
        dtype: of its parameters; fp32 masters for a learner.
        device: where they are put.
        compute: dtype of its activations; None: `dtype`.

    Raises:
        ModelError: the model is unsupported, unsafe, damaged or incomplete.
    """
    decoder, used, spare = _laid_out(directory)
    _allocate(decoder, dtype, device)
    decoder.dtype = compute or dtype
    _fill(decoder, used)
    _check_spare(lambda: decoder.embed.detach(), spare)
    return decoder


class StoredWeights:
    """The weights of a model directory as they are stored, found whole, and read one by one.

    arch: what config.json says. shapes: of every tensor, by Hugging Face name, as the files have
    them. exact: the tensors that are kept in float32, whatever the others are in.
    """

    def __init__(self, directory: Path) -> None:
        """Reads headers only. Raises ModelError as load_decoder does."""
        decoder, used, spare = _laid_out(directory)
        self.arch = decoder.arch
        self._places = {name: path for path, names in used.items() for name in names}
        sizes = {name: list(view.shape) for name, view in decoder.tensors().items()}
        self.shapes = {name: sizes[name] for name in self._places}
        layout = decoder.layout()
        self.exact = {name for name in sizes if layout[name][0].endswith("router.correction")}
        _check_spare(lambda: self.read("model.embed_tokens.weight"), spare)

    def read(self, name: str) -> Tensor:
        """The tensor, in the dtype of its file. Raises ModelError if it is not finite."""
        path = self._places[name]
        with _opened(path) as file:
            tensor: Tensor = file.get_tensor(name)
        if not bool(tensor.isfinite().all()):
            raise ModelError(
                f"{path}: {name} holds values that are not finite; take an earlier checkpoint"
            )
        return tensor


def stored_dtype(directory: Path) -> torch.dtype | None:
    """In which the weights of a model are, as its config.json says; None where it does not.

    Raises ModelError.
    """
    config = read_object(directory, "config.json") or {}
    return _NAMED.get(str(config.get("dtype") or config.get("torch_dtype")))


def save_model(
    tensors: Iterable[tuple[str, Tensor]], directory: Path, source: Path, dtype: torch.dtype
) -> None:
    """Write `tensors`, which are in `dtype`, and the other files of the model `source`.

    They are what Decoder.published gives, or Learner.publish. transformers' `from_pretrained` reads
    the directory, which may exist. To make the write atomic is the caller's business
    (rundir.atomic_directory). Raises OSError, or SafetensorError, when the disk refuses.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = read_object(source, "config.json") or {}
    config.pop("auto_map", None)  # names code, which is not copied
    config.pop("torch_dtype", None)
    _write_json(directory / "config.json", config | {"dtype": str(dtype).removeprefix("torch.")})
    copy(source, directory)
    _write_tensors(tensors, directory)


def _laid_out(directory: Path) -> tuple[Decoder, Files, Files]:
    """The decoder without memory, the files that have its tensors, and what those hold besides."""
    arch, files = read_architecture(directory), _weight_files(directory)
    _check_experts(arch, sum(map(len, files.values())), directory)
    with torch.device("meta"):
        decoder = Decoder(arch)
    shapes = {name: list(view.shape) for name, view in decoder.tensors().items()}
    used, spare = _sort_tensors(files, shapes, arch)
    if missing := sorted(shapes.keys() - {name for names in used.values() for name in names}):
        raise ModelError(
            f"{directory} lacks {len(missing)} of {len(shapes)} tensors, {missing[0]} first; "
            "fetch the model again"
        )
    return decoder, used, spare


def _weight_files(directory: Path) -> Files:
    """The files that hold the weights, and what they hold; every file is inside the model."""
    if path := inside(directory, _WHOLE):
        with _opened(path) as file:
            return {path: list(file.keys())}
    index = _read_index(directory)
    if index is None:
        pickled = sorted(p.name for p in directory.iterdir() if p.suffix in _PICKLED)
        if pickled:
            raise ModelError(
                f"{directory} has only pickled weights ({pickled[0]}), which can run code when "
                "opened; convert them to safetensors"
            )
        raise ModelError(f"{directory} has no {_WHOLE} and no {_INDEX}; fetch the model again")
    files: Files = {}
    for shard in sorted(set(index.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelError(
                f"{directory}: {shard!r} is not the name of a safetensors file beside it"
            )
        path = inside(directory, shard) or directory / shard
        with _opened(path) as file:
            files[path] = list(file.keys())
        for name in files[path]:
            if index.pop(name, None) != shard:
                raise ModelError(
                    f"{path} holds {name}, but {_INDEX} does not place it there; fetch both again"
                )
    if index:
        name, shard = min(index.items())
        raise ModelError(f"{directory / shard} lacks {name}, which {_INDEX} places there")
    return files


def _check_experts(arch: Architecture, stored: int, directory: Path) -> None:
    """Raise ModelError before a model is laid out of which the files hold but a small part."""
    if arch.routing is not None and (asked := 3 * arch.routing.routed) > stored:
        raise ModelError(
            f"{directory}/config.json asks for {asked} tensors of experts, and the files hold "
            f"{stored} in all; use the config.json that came with the weights"
        )


def _read_index(directory: Path) -> dict[str, str] | None:
    """Tensor name -> file name; None: there is no index."""
    tree = read_object(directory, _INDEX)
    if tree is None:
        return None
    index = tree.get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
        raise ModelError(f"the weight_map of {directory / _INDEX} is no table of file names")
    return index


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} cannot be read ({error_line(error)}); fetch the model again"
        ) from None


def _sort_tensors(
    files: Files, shapes: dict[str, list[int]], arch: Architecture
) -> tuple[Files, Files]:
    """Those that have a place in the decoder, and those that it may do without.

    Raises ModelError for any other name, and for a shape or dtype that is not as it must be.
    """
    used: Files = {}
    spare: Files = {}
    for path, names in files.items():
        with _opened(path) as file:
            for name in names:
                if name not in shapes and _may_be_spare(name, arch):
                    spare.setdefault(path, []).append(name)
                    continue
                if problem := _problem(file.get_slice(name), shapes.get(name)):
                    raise ModelError(
                        f"{path}: {name} {problem}; use the config.json that came with the weights"
                    )
                used.setdefault(path, []).append(name)
    return used, spare


def _problem(stored: Any, shape: list[int] | None) -> str | None:
    """What is wrong with the header of a tensor that should have this shape, if anything."""
    if shape is None:
        return "has no place in a model of this config.json"
    if stored.get_shape() != shape:
        return f"has shape {stored.get_shape()}, where config.json asks for {shape}"
    if stored.get_dtype() not in _DTYPES:
        return f"is stored as {stored.get_dtype()}, and only {', '.join(sorted(_DTYPES))} are read"
    return None


def _may_be_spare(name: str, arch: Architecture) -> bool:
    # The layer behind the last one is DeepSeek-V3's head for multi-token prediction.
    extra = arch.family == "deepseek_v3" and name.startswith(f"model.layers.{arch.layers}.")
    return extra or name == "lm_head.weight" or _ROTARY_TABLE.fullmatch(name) is not None


def _check_spare(embedding: Callable[[], Tensor], spare: Files) -> None:
    """Raise ModelError if a tied model brings a vocabulary projection that is not its embedding."""
    for path, names in spare.items():
        _log.info("%s: %d tensors are not used, %s first", path, len(names), names[0])
        if "lm_head.weight" not in names:
            continue
        with _opened(path) as file:
            embed = embedding()
            head = file.get_tensor("lm_head.weight").to(embed)
        if not torch.equal(head, embed):
            raise ModelError(
                f"{path}: lm_head.weight differs from the embedding, though config.json ties them; "
                "set tie_word_embeddings to false"
            )


def _allocate(decoder: Decoder, dtype: torch.dtype, device: torch.device) -> None:
    """Give every parameter memory: fp32 where gradients do not train it, else `dtype`."""
    for module in decoder.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            trained = parameter.requires_grad
            kept = dtype if trained else torch.float32
            memory = torch.empty(parameter.shape, dtype=kept, device=device)
            setattr(module, name, nn.Parameter(memory, requires_grad=trained))


def _fill(decoder: Decoder, files: Files) -> None:
    views = decoder.tensors()
    for path, names in files.items():
        with _opened(path) as file:
            for name in names:
                views.pop(name).copy_(file.get_tensor(name))
    assert not views


def _write_tensors(tensors: Iterable[tuple[str, Tensor]], directory: Path) -> None:
    """One file, or several and an index when one would pass _SHARD_BYTES."""
    names: list[list[str]] = []
    total = 0
    for shard in _shards(tensors):
        save_file(shard, directory / f"shard-{len(names)}", metadata={"format": "pt"})
        names.append(list(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
    if len(names) == 1:
        (directory / "shard-0").rename(directory / _WHOLE)
        return
    index: dict[str, str] = {}
    for number, stored in enumerate(names):
        file = f"model-{number + 1:05d}-of-{len(names):05d}.safetensors"
        (directory / f"shard-{number}").rename(directory / file)
        index |= dict.fromkeys(stored, file)
    _write_json(directory / _INDEX, {"metadata": {"total_size": total}, "weight_map": index})


def _shards(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > _SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.cpu()
        size += tensor.nbytes
    yield shard


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
