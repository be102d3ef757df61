"""Small random models of every family that GGUF export knows, with a tokenizer of a few merges."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_models import write_model
from chat_templates import CHATML
from safetensors.torch import save_file

from interlock.export import pretokenizers
from interlock.models.decoder import Decoder
from interlock.models.fetch import cache_dir
from interlock.models.huggingface import read_architecture
from interlock.models.tokenizer import Tokenizer
from interlock.records.metrics import StepMetrics, WorkerMetrics
from interlock.records.rl import Completion, FinishReason, Group, Problem, ScoredGroup, Verdict
from interlock.rundir import RunDir

_SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
# 12 experts: as names, 10 would come before 2.
_MOE = {"num_experts": 12, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True},
    "llama-llama3": {"model_type": "llama", "attention_bias": True, "rope_scaling": LLAMA3},
    "qwen2": {"model_type": "qwen2", "rope_scaling": YARN},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
    "qwen3-moe": {
        "model_type": "qwen3_moe",
        "head_dim": 32,
        "norm_topk_prob": True,
        **_MOE,
    },
}
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
Build = Callable[..., Path]
_LLAMA_CPP = "xllamacpp==2026.10.11549"


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """A family's name and changes of its config.json -> a model directory, weights in bf16."""

    def made(family: str, dtype: torch.dtype = torch.bfloat16, **changes: object) -> Path:
        directory = write_model(tmp_path / family, CHATML)
        if family == "qwen2":  # transformers' tokenizer of that family would add it by itself
            tree = json.loads((directory / "tokenizer.json").read_text())
            end = tree["added_tokens"][0] | {"id": 268, "content": "<|endoftext|>"}
            tree["added_tokens"].append(end)
            (directory / "tokenizer.json").write_text(json.dumps(tree))
        config = _SIZES | FAMILIES[family] | changes
        config["architectures"] = [_CLASSES[str(config["model_type"])]]
        (directory / "config.json").write_text(json.dumps(config))
        save_weights(directory, dtype)
        return directory

    return made


def save_weights(directory: Path, dtype: torch.dtype) -> None:
    decoder, noise = Decoder(read_architecture(directory)), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            drawn = torch.randn(parameter.shape, generator=noise)
            parameter.copy_(1 + 0.1 * drawn if parameter.ndim == 1 else 0.2 * drawn)
    tensors = dict(decoder.published(dtype))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Has llama.cpp know the pre-tokenizer of a directory, as "smollm"."""

    def add(directory: Path) -> Path:
        digest = pretokenizers.digest(Tokenizer.load(directory).framed)
        monkeypatch.setitem(pretokenizers.KNOWN, digest, "smollm")
        return directory

    return add


def scored(problem: str, right: bool) -> ScoredGroup:
    answer = Completion.sampled([7], [-0.5], FinishReason.STOP, "x", weight_version=0)
    asked = Problem(problem, [{"role": "user", "content": problem}], "x")
    return ScoredGroup(Group(asked, [1], [answer], "w0"), [Verdict(float(right))])


@pytest.fixture
def trained(build: Build, tmp_path: Path) -> Path:
    """A run of one step: 1 of 4 right before, 3 of 4 after."""
    config: dict[str, Any] = {
        "name": "addition",
        "seed": 7,
        "model": {"path": "hf:org/base@v1"},
        "fleet": {"kind": "local"},
        "generator": [{"env": {"SECRET": "s3cret"}}],
        "stage": [
            {
                "kind": "grpo",
                "steps": 1,
                "optimizer": {"lr": 2e-5},
                "task": {"name": "jsonl", "options": {"path": "/home/me/rows.jsonl"}, "seed": 5},
            }
        ],
    }
    versions = {"torch": "2.13.0", "interlock": "0.1"}
    with RunDir.create(tmp_path / "sums", config, versions, {"tokenizer": "sha256 ab"}) as run:
        for step, right in ((0, 1), (1, 3)):
            each = [scored(f"p{number}", number < right) for number in range(4)]
            run.ledger.record_evaluation(0, step, each)
        worker = WorkerMetrics(engine="torch 2.13.0", device="npu:0", dtype="bf16", trust="train")
        run.log(StepMetrics(stage=0, step=1, kind="grpo", workers={"generator-0": worker}))
        run.event("unqualified", "cuda is used <b>unqualified</b>", device="cuda")
        with run.weights() as weights:
            for path in build("llama").iterdir():
                (weights / path.name).write_bytes(path.read_bytes())
    return tmp_path / "sums"


@pytest.fixture(scope="session")
def llama() -> Path:
    """The interpreter of an environment with xllamacpp, made once in the cache."""
    place = cache_dir() / "tests" / _LLAMA_CPP
    python = place / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True, timeout=120)
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-input", _LLAMA_CPP]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"{_LLAMA_CPP} cannot be installed: {done.stderr.strip()[-200:]}")
    return python
