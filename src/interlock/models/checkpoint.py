"""Model directories in the Hugging Face layout: strict loading, and saving that transformers reads.

    config.json ──> Decoder on the meta device ──┐ names, shapes and dtypes compared
    *.safetensors ── headers only ───────────────┴──> memory ── tensor by tensor ──> Decoder
                                                               fp8 with its scales (blocks.py)

Nothing is allocated before every header has been read and found right (stored.py). No code of the
model is run.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from interlock.errors import ModelError
from interlock.models.architecture import Architecture
from interlock.models.blocks import read_blocks
from interlock.models.decoder import Decoder
from interlock.models.files import copy, read_object
from interlock.models.huggingface import read_architecture
from interlock.models.predictor import Predictor, predictor_of, predictor_tensors
from interlock.models.stored import (
    INDEX,
    WHOLE,
    Files,
    StoredTensors,
    opened,
    sort_tensors,
    weight_files,
)

_log = logging.getLogger(__name__)

_NAMED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SHARD_BYTES = 4 * 2**30


def load_decoder(
    directory: Path,
    dtype: torch.dtype,
    device: torch.device,
    compute: torch.dtype | None = None,
    predict: bool = False,
) -> Decoder:
    """The decoder of a model directory.

    Args:
        directory: in the Hugging Face layout: config.json and *.safetensors.
        dtype: of its parameters; fp32 masters for a learner.
        device: where they are put.
        compute: dtype of its activations; None: `dtype`.
        predict: with the layer for multi-token prediction, which is left out otherwise.

    Raises:
        ModelError: the model is unsupported, unsafe, damaged or incomplete, or holds values that
            are not finite.
    """
    decoder, stored = _laid_out(directory, predict)
    _allocate(decoder, dtype, device)
    decoder.dtype = compute or dtype
    stored.fill(decoder.tensors() | predictor_tensors(decoder))
    _check_spare(lambda: decoder.embed.detach(), stored.spare)
    _check_copies(decoder, stored.spare)
    return decoder


class StoredWeights:
    """The weights of a model directory as they are stored, found whole, and read one by one.

    arch: what config.json says. shapes: of every tensor, by Hugging Face name, in the files' order.
    exact: the tensors that are kept in float32, whatever the others are in.
    """

    def __init__(self, directory: Path) -> None:
        """Reads headers only. Raises ModelError as load_decoder does."""
        decoder, self._stored = _laid_out(directory)
        self.arch = decoder.arch
        self._places = {n: path for path, names in self._stored.used.items() for n in names}
        sizes = {name: list(view.shape) for name, view in decoder.tensors().items()}
        self.shapes = {name: sizes[name] for name in self._places}
        self.exact = decoder.exact()
        _check_spare(lambda: self.read("model.embed_tokens.weight"), self._stored.spare)

    def read(self, name: str) -> Tensor:
        """The tensor, in the dtype of its file; one that is stored in fp8, in float32.

        Raises ModelError if it is not finite.
        """
        return self._stored.read(name, self._places[name])


def stored_dtype(directory: Path) -> torch.dtype | None:
    """In which the weights of a model are, as its config.json says; None where it does not.

    Raises ModelError.
    """
    config = _config(directory)
    return _NAMED.get(str(config.get("dtype") or config.get("torch_dtype")))


def has_predictor(directory: Path) -> bool:
    """Whether config.json says that there is a layer for multi-token prediction."""
    config = _config(directory)
    said = config.get("num_nextn_predict_layers", config.get("num_mtp_layers"))
    return isinstance(said, int) and said > 0


def in_blocks(directory: Path) -> bool:
    """Whether the weights of a model are stored in fp8. Raises ModelError."""
    read_architecture(directory)
    return read_blocks(_config(directory)) is not None


def save_model(
    tensors: Iterable[tuple[str, Tensor]],
    directory: Path,
    source: Path,
    dtype: torch.dtype,
    predict: bool = False,
) -> None:
    """Write `tensors`, which are in `dtype`, and the other files of the model `source`.

    They are what Decoder.published gives, or Learner.publish; with `predict`, those of
    published_predictor too. transformers' `from_pretrained` reads
    the directory, which may exist. To make the write atomic is the caller's business
    (rundir.atomic_directory). Raises OSError, or SafetensorError, when the disk refuses.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = _config(source)
    config.pop("auto_map", None)  # names code, which is not copied
    config.pop("torch_dtype", None)
    config.pop("quantization_config", None)  # of the source's files; these are not in fp8
    if "num_nextn_predict_layers" in config and not predict:
        config["num_nextn_predict_layers"] = 0  # that head was left out when the source was loaded
    _write_json(directory / "config.json", config | {"dtype": str(dtype).removeprefix("torch.")})
    copy(source, directory)
    write_tensors(tensors, directory)


def _laid_out(directory: Path, predict: bool = False) -> tuple[Decoder, StoredTensors]:
    """The decoder without memory, and the files that have its tensors."""
    arch, files = read_architecture(directory), weight_files(directory)
    _check_experts(arch, sum(map(len, files.values())), directory)
    with torch.device("meta"):
        decoder = Decoder(arch)
        decoder.predictor = Predictor(arch) if predict else None
    views = decoder.tensors() | predictor_tensors(decoder)
    shapes = {name: list(view.shape) for name, view in views.items()}
    behind = f"model.layers.{arch.layers}."
    if predict and not any(n.startswith(behind) for names in files.values() for n in names):
        raise ModelError(
            f"{directory} has no layer for multi-token prediction; leave learner.mtp_weight at 0"
        )
    stored = sort_tensors(files, shapes, arch, read_blocks(_config(directory)))
    found = {name for names in stored.used.values() for name in names}
    if missing := sorted(shapes.keys() - found):
        raise ModelError(
            f"{directory} lacks {len(missing)} of {len(shapes)} tensors, {missing[0]} first; "
            "fetch the model again"
        )
    return decoder, stored


def _config(directory: Path) -> dict[str, Any]:
    return read_object(directory, "config.json") or {}


def _check_experts(arch: Architecture, stored: int, directory: Path) -> None:
    """Raise ModelError before a model is laid out of which the files hold but a small part."""
    if arch.routing is not None and (asked := 3 * arch.routing.routed) > stored:
        raise ModelError(
            f"{directory}/config.json asks for {asked} tensors of experts, and the files hold "
            f"{stored} in all; use the config.json that came with the weights"
        )


def _check_spare(embedding: Callable[[], Tensor], spare: Files) -> None:
    """Raise ModelError if a tied model brings a vocabulary projection that is not its embedding."""
    for path, names in spare.items():
        _log.info("%s: %d tensors are not used, %s first", path, len(names), names[0])
        if "lm_head.weight" not in names:
            continue
        with opened(path) as file:
            embed = embedding()
            head = file.get_tensor("lm_head.weight").to(embed)
        if not torch.equal(head, embed):
            raise ModelError(
                f"{path}: lm_head.weight differs from the embedding, though config.json ties them; "
                "set tie_word_embeddings to false"
            )


def _check_copies(decoder: Decoder, spare: Files) -> None:
    """Raise ModelError if a predictor brings an embedding or a head that is not the decoder's."""
    predictor = predictor_of(decoder)
    if predictor is None:
        return
    own = dict(zip(predictor.copies, (decoder.embed, decoder.head), strict=True))
    for path, names in spare.items():
        for name in own.keys() & set(names):
            with opened(path) as file:
                copy = file.get_tensor(name)
            if not torch.equal(copy.to(own[name]), own[name].detach()):
                raise ModelError(
                    f"{path}: {name} differs from {predictor.copies[name]}, and only a predictor "
                    "that shares it can be trained; leave learner.mtp_weight at 0"
                )


def _allocate(decoder: Decoder, dtype: torch.dtype, device: torch.device) -> None:
    """Give every parameter memory: fp32 where gradients do not train it, else `dtype`."""
    for module in decoder.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            trained = parameter.requires_grad
            kept = dtype if trained else torch.float32
            memory = torch.empty(parameter.shape, dtype=kept, device=device)
            setattr(module, name, nn.Parameter(memory, requires_grad=trained))


def write_tensors(tensors: Iterable[tuple[str, Tensor]], directory: Path) -> None:
    """One file, or several and an index when one would pass _SHARD_BYTES."""
    names: list[list[str]] = []
    total = 0
    for shard in _shards(tensors):
        save_file(shard, directory / f"shard-{len(names)}", metadata={"format": "pt"})
        names.append(list(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
    if len(names) == 1:
        (directory / "shard-0").rename(directory / WHOLE)
        return
    index: dict[str, str] = {}
    for number, stored in enumerate(names):
        file = f"model-{number + 1:05d}-of-{len(names):05d}.safetensors"
        (directory / f"shard-{number}").rename(directory / file)
        index |= dict.fromkeys(stored, file)
    _write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": index})


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
