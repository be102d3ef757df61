"""A model as a Hugging Face directory: what transformers, vLLM and SGLang load.

Source ──> temporary NAME/: *.safetensors (several past 4 GiB, with an index)
           config.json, tokenizer, chat template, generation_config.json, README.md ──> NAME/
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from interlock.errors import ModelError
from interlock.export.card import model_card, rendered, run_card
from interlock.export.source import Source
from interlock.export.target import new_directory
from interlock.models.checkpoint import StoredWeights, save_model
from interlock.models.files import inside
from interlock.models.finite import finite

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def write_directory(source: Source, target: Path, dtype: str) -> None:
    """Write `target`, which may be an empty directory.

    Raises ModelError when the model is not whole or does not fit the dtype, RunError when the disk
    refuses.
    """
    weights = StoredWeights(source.directory)
    with new_directory(target) as directory:
        save_model(_cast(weights, DTYPES[dtype]), directory, source.directory, DTYPES[dtype])
        own = inside(source.directory, "README.md")
        if source.run is None and own is not None:
            shutil.copyfile(own, directory / "README.md")
        else:
            front, text = model_card(source) if source.run is None else run_card(source)
            (directory / "README.md").write_text(rendered(front, text), encoding="utf-8")


def _cast(weights: StoredWeights, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    for name in weights.shapes:
        given = weights.read(name)
        cast = given.to(torch.float32 if name in weights.exact else dtype)
        if not finite(cast):
            raise ModelError(
                f"{name} holds {given.abs().max().item():.3g}, which "
                f"{str(dtype).removeprefix('torch.')} cannot; take --dtype bfloat16 or float32"
            )
        yield name, cast
