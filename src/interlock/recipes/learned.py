"""The weights that a run learns: how they are opened, and what is kept of them as a directory.

model directory ─ masters ─> Decoder, fp32, spread within the cells of what it is stored or computed
                             in; or frozen in the compute dtype, beside an adapter
Learner ────────── keep ───> Hugging Face directory, merged; the adapter in adapter/ of it
"""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import torch

from interlock.chips import device
from interlock.config.schema import Recipe
from interlock.learner.distributed import sharding
from interlock.learner.distributed.ranks import Ranks
from interlock.learner.learner import Learner
from interlock.models import adapters
from interlock.models.cells import narrowest, spread
from interlock.models.checkpoint import load_decoder, save_model, stored_dtype
from interlock.models.decoder import Decoder
from interlock.models.peft_files import ADAPTER, save_adapter
from interlock.models.predictor import published_predictor
from interlock.models.tokenizer import Tokenizer


def masters(recipe: Recipe, model: Path, ranks: Ranks, predict: bool) -> Decoder:
    """The weights that are learned, each process its part; or those that an adapter learns beside,
    in the compute dtype, with a new one.
    """
    if (form := recipe.learner.lora) is None:
        compute = device.dtype(recipe.learner.dtype)
        whole = load_masters(model, ranks.load_device, compute, predict)
        return sharding.shard(whole, recipe.learner, ranks)
    frozen = load_decoder(model, device.dtype(recipe.learner.dtype), ranks.load_device)
    shapes = {name: list(tensor.shape) for name, tensor in frozen.tensors().items()}
    adapters.check_targets(shapes, form)
    adapters.attach(frozen, form, torch.float32, seed=recipe.seed)
    return frozen


def load_masters(
    model: Path, place: torch.device, compute: torch.dtype, predict: bool = False
) -> Decoder:
    """The weights of a model directory in fp32, such that they round to what is stored there."""
    decoder = load_decoder(model, torch.float32, place, predict=predict)
    narrow = narrowest(stored_dtype(model), compute)
    for name, parameter in decoder.named_parameters():
        if parameter.requires_grad:
            spread(parameter, narrow, name)
    return decoder


def keep(
    tokenizer: Tokenizer,
    predict: bool,
    names: Mapping[Path, str],
    learner: Learner,
    path: Path,
    source: Path,
) -> None:
    """What is learned as a Hugging Face directory, in the dtype in which `source` is stored; an
    adapter as it was served is in adapter/ of it, too. `names`: what models are called
    in a recipe; one that a stage made of fewer layers is its directory.
    """
    decoder = learner.decoder
    dtype = stored_dtype(source) or decoder.dtype
    ahead = published_predictor(decoder, dtype)
    save_model(chain(learner.weights(dtype).items(), ahead), path, source, dtype, predict)
    tokenizer.save(path)
    if decoder.adapter is not None and learner.base is not None:
        beside = path / ADAPTER
        beside.mkdir()
        base = names.get(source, str(source.absolute()))
        served = adapters.published_adapter(decoder, decoder.dtype)
        save_adapter(served, decoder.adapter, beside, base, learner.base)
