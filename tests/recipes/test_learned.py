"""What is learned in small steps from weights stored in bfloat16 is computed with, and kept."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from interlock.config.reading import load_recipe
from interlock.models.checkpoint import load_decoder
from interlock.recipes.learned import load_masters
from interlock.recipes.train import train

CPU = torch.device("cpu")
TEXTS = [f"{word} " * 6 for word in ("red", "green", "blue", "black")]


@pytest.fixture(scope="module")
def in_bfloat16(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as checkpoints are published."""
    directory = tmp_path_factory.mktemp("models") / "bfloat16"
    shutil.copytree(tiny_model, directory)
    AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).save_pretrained(directory)
    return directory


def test_masters_round_to_what_is_stored(in_bfloat16: Path) -> None:
    stored = load_decoder(in_bfloat16, torch.bfloat16, CPU)
    masters = load_masters(in_bfloat16, CPU, torch.float32)
    for kept, own in zip(stored.parameters(), masters.parameters(), strict=True):
        assert own.dtype == torch.float32
        assert torch.equal(own.to(torch.bfloat16), kept)
        assert (own != kept.float()).float().mean() > 0.99


def test_where_nothing_is_rounded_masters_are_what_is_stored(tiny_model: Path) -> None:
    stored = load_decoder(tiny_model, torch.float32, CPU)
    masters = load_masters(tiny_model, CPU, torch.float32)
    for kept, own in zip(stored.parameters(), masters.parameters(), strict=True):
        assert torch.equal(own, kept)


def loss(model: Path) -> float:
    """Of the texts, by transformers in fp32."""
    read = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(model)(TEXTS, return_tensors="pt", padding=True).input_ids
    return read(ids, labels=ids).loss.item()


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_small_steps_reach_the_saved_weights(
    compute: str, in_bfloat16: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """As much as where nothing is rounded. From the values themselves, rounding to nearest kept
    about half of it.
    """
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    recipe = tmp_path / "sft.toml"
    recipe.write_text(
        f"""
name = "small-steps"
[[stage]]
kind = "sft"
data = "{rows}"
steps = 6
batch_size = 4
optimizer = {{ lr = 1e-5, schedule = "constant" }}
"""
    )

    def learned(model: Path, dtype: str) -> float:
        told = [f"model.path={model}", f"learner.dtype={dtype}"]
        directory = tmp_path / f"run-{model.name}-{dtype}"
        train(load_recipe(recipe, told), directory)
        return loss(model) - loss(directory / "weights")

    whole = learned(tiny_model, "float32")
    assert whole > 0
    assert learned(in_bfloat16, compute) == pytest.approx(whole, rel=0.15)
