"""A smaller model out of a larger one: every so many layers of it, the rest as it is.

    layers 0 1 2 3 4 5 ──every second──> 0 2 4, renumbered 0 1 2 ──> a model directory

What remains has to learn anew (DistilBERT begins so: arXiv 1910.01108, section 3).
"""

import json
import re
from pathlib import Path
from typing import Any

import torch

from interlock.errors import ModelError
from interlock.models.checkpoint import StoredWeights, save_model, stored_dtype
from interlock.models.files import read_object

_OF_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def thin(source: Path, directory: Path, every: int) -> None:
    """Write layers 0, `every`, 2 * `every`, … of the model `source` into `directory`, with all else
    of it, in the dtype in which it is stored.

    Raises ModelError when `source` is no whole model, or has experts, whose layers are not alike.
    """
    stored = StoredWeights(source)
    if stored.arch.routing is not None:
        raise ModelError(
            f"{source} has layers with experts and layers without; every_layer is for models whose "
            "layers are alike"
        )
    dtype = stored_dtype(source) or torch.float32
    names = {name: renamed for name in stored.shapes if (renamed := _renamed(name, every))}
    tensors = ((renamed, stored.read(name).to(dtype)) for name, renamed in names.items())
    save_model(tensors, directory, source=source, dtype=dtype)
    config = _thinned(read_object(directory, "config.json") or {}, every)
    if stored.arch.unrotated:  # a pattern over the layers that are not all there any more
        kept = range(0, stored.arch.layers, every)
        config["no_rope_layers"] = [int(layer not in stored.arch.unrotated) for layer in kept]
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _renamed(name: str, every: int) -> str | None:
    """What the tensor is called in the smaller model; None: it is not there."""
    found = _OF_LAYER.fullmatch(name)
    if found is None:
        return name
    layer = int(found[1])
    return None if layer % every else f"model.layers.{layer // every}.{found[2]}"


def _thinned(config: dict[str, Any], every: int) -> dict[str, Any]:
    changed = {"num_hidden_layers": -(-config["num_hidden_layers"] // every)}
    if kinds := config.get("layer_types"):
        changed["layer_types"] = kinds[::every]
    return config | changed
