"""Adapters as files, in the format of PEFT: what peft, transformers and vLLM read.

    adapter_config.json          rank, alpha, targets, name of the base
    adapter_model.safetensors    A and B by PEFT's names; in its metadata the digest of the base

Other programs write no digest: an adapter of theirs is told from one of another model by its names
and shapes alone.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace
from safetensors.torch import save_file
from torch import Tensor

from interlock import hub
from interlock.errors import ModelError
from interlock.models import adapters
from interlock.models.files import inside, read_object
from interlock.models.finite import finite
from interlock.models.stored import DTYPES, opened
from interlock.records.adapters import ALL_LINEAR, AdapterForm
from interlock.text import one_line

ADAPTER = "adapter"  # in a directory of merged weights: what they were merged from
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BASE = "interlock.base"  # in the metadata
# What changes an adapter's effect beyond what A and B say, and the values under which it does not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "fan_in_fan_out": (False, None),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
    "lora_bias": (False, None),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),  # an adapter only behind these tokens
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "monteclora_config": (None, {}),
    "kasa_config": (None, {}),
    "velora_config": (None, {}),
    "loftq_config": (None, {}),
    # The others (pissa, olora, corda, …) take from the base what they give the adapter.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}


class AdapterFile(NamedTuple):
    """An adapter that was read."""

    form: AdapterForm
    tensors: dict[str, Tensor]  # by PEFT's names
    base: str | None  # digest of the weights that it is of; None: it does not say


def save_adapter(
    tensors: Mapping[str, Tensor], form: AdapterForm, directory: Path, base: str, digest: str
) -> None:
    """Write an adapter into an existing directory; `base`: its model, as a recipe names it. What is
    on the hub is told as PEFT has it, name and revision.

    Raises OSError, or SafetensorError, when the disk refuses.
    """
    name, revision = hub.parts(base) if base.startswith(hub.PREFIX) else (base, None)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": revision,
        "r": form.rank,
        "lora_alpha": int(form.alpha) if form.alpha.is_integer() else form.alpha,
        "lora_dropout": 0.0,
        "target_modules": adapters.targets_of(tensors),
        "bias": "none",
        "inference_mode": True,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (directory / CONFIG).write_text(text, encoding="utf-8")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, directory / WEIGHTS, metadata={"format": "pt", _BASE: digest})


def load_adapter(directory: Path, shapes: Mapping[str, Sequence[int]]) -> AdapterFile:
    """Read an adapter of a model whose tensors have these shapes, by Hugging Face names.

    Raises ModelError when it is damaged, of another model, or more than A and B.
    """
    form = _form(directory)
    path = inside(directory, WEIGHTS)
    if path is None:
        raise ModelError(f"{directory} has no {WEIGHTS}; give a directory that PEFT has written")
    with opened(path) as file:
        base = (file.metadata() or {}).get(_BASE)
        tensors = {name: file.get_tensor(name) for name in _plain_names(path, file)}
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    _check_shapes(path, found, shapes, form)
    if bad := [name for name, tensor in tensors.items() if not finite(tensor)]:
        raise ModelError(f"{path}: {bad[0]} holds values that are not finite; take another")
    return AdapterFile(form, tensors, base)


def _plain_names(path: Path, file: Any) -> list[str]:
    """Of all tensors. Raises ModelError where one is stored as what no adapter learns in."""
    names = list(file.keys())
    for name in names:
        if (dtype := file.get_slice(name).get_dtype()) not in DTYPES:
            raise ModelError(
                f"{path}: {one_line(name, 120)} is stored as {dtype}, and only "
                f"{', '.join(sorted(DTYPES))} are read; save the adapter in one of these"
            )
    return names


def _check_shapes(
    path: Path, found: adapters.Shapes, shapes: Mapping[str, Sequence[int]], form: AdapterForm
) -> None:
    expected = adapters.adapter_shapes(shapes, form)
    if found == expected:
        return
    ranks = {shape[0] for name, shape in found.items() if ".lora_A." in name and shape}
    for rank in ranks:  # the same adapter but for what its config says
        if found == adapters.adapter_shapes(shapes, replace(form, rank=max(rank, 1))):
            raise ModelError(
                f"{path} holds an adapter of rank {rank}, and {CONFIG} beside it says "
                f"r {form.rank}; take both files from one adapter"
            )
    odd = min(n for n in found.keys() | expected if found.get(n) != expected.get(n))
    raise ModelError(
        f"{path} is an adapter of another model: {one_line(odd, 120)} is {found.get(odd)}, "
        f"where this one asks for {expected.get(odd)}; give the adapter of this base"
    )


def _are_last_words(targets: str | list[Any]) -> bool:
    """PEFT takes a regular expression, or longer ends of names, too."""
    return isinstance(targets, list) and not any("." in str(each) for each in targets)


def _form(directory: Path) -> AdapterForm:
    config = read_object(directory, CONFIG)
    if config is None:
        raise ModelError(f"{directory} has no {CONFIG}; give a directory that PEFT has written")
    for key, plain in _PLAIN.items():
        if key in config and config[key] not in plain:
            value = one_line(json.dumps(config[key]), 60)
            raise ModelError(
                f"{directory / CONFIG}: {key} {value} is not supported; choose an adapter of A and "
                "B alone"
            )
    targets = config.get("target_modules")
    if isinstance(targets, str | list) and targets != ALL_LINEAR and not _are_last_words(targets):
        raise ModelError(
            f"{directory / CONFIG}: target_modules {one_line(json.dumps(targets), 60)} is not "
            "supported; choose an adapter whose targets are the last words of modules, as q_proj"
        )
    tree = {"rank": config.get("r"), "alpha": config.get("lora_alpha")}
    tree["targets"] = ALL_LINEAR if targets == ALL_LINEAR else targets
    try:
        return msgspec.convert(tree, AdapterForm)
    except msgspec.ValidationError as error:
        problem = one_line(str(error).replace("$.", ""), 100)
        raise ModelError(
            f"{directory / CONFIG}: {problem}; give rank, alpha and a list of targets"
        ) from None
