"""Small models of every family, made by transformers, the oracle of this room; our tokenizer."""

from collections.abc import Callable
from pathlib import Path

import pytest
from reference_models import FAMILIES, reference_model
from torch import Tensor
from transformers import PreTrainedModel

from interlock.models.tokenizer import Tokenizer


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def reference() -> Callable[[str], PreTrainedModel]:
    """A family's name -> transformers' model of it, with weights large enough to tell errors."""

    return reference_model


@pytest.fixture(scope="session")
def hub_names() -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """transformers' tensors in memory -> the tensors of a checkpoint, where experts stand alone."""

    def split(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if not name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
                found[name] = tensor
                continue
            base, kind = name.rsplit(".", 1)
            for expert, part in enumerate(tensor):
                if kind == "down_proj":
                    found[f"{base}.{expert}.down_proj.weight"] = part
                else:
                    gate, up = part.chunk(2)
                    found[f"{base}.{expert}.gate_proj.weight"] = gate
                    found[f"{base}.{expert}.up_proj.weight"] = up
        return found

    return split


@pytest.fixture
def saved(
    family: str, reference: Callable[[str], PreTrainedModel], tmp_path: Path
) -> tuple[PreTrainedModel, Path]:
    """transformers' model of the family and the directory it saved it to."""
    model = reference(family)
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


@pytest.fixture(scope="session")
def ours(smollm2: Path) -> Tokenizer:
    """SmolLM2's tokenizer, read by us."""
    return Tokenizer.load(smollm2)
