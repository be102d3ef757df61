"""The Hugging Face directory against transformers, and what its card says of a run."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from interlock.errors import ModelError, RunError
from interlock.export.directory import write_directory
from interlock.export.source import Source, find_source
from interlock.models import checkpoint

Build = Callable[..., Path]
IDS = torch.tensor([[3, 260, 7, 99, 12, 261, 5]])


def logits(directory: Path, dtype: torch.dtype) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("family", ["llama", "llama-llama3", "qwen2", "qwen3", "qwen3-moe"])
def test_transformers_gives_the_same_logits(build: Build, family: str, tmp_path: Path) -> None:
    given = build(family)
    write_directory(find_source(str(given)), tmp_path / "out", "bfloat16")
    expected = logits(given, torch.float32)
    assert torch.equal(logits(tmp_path / "out", torch.float32), expected)
    assert expected.std() > 0.1  # they could be told apart


def test_float32_weights_are_rounded_to_nearest(build: Build, tmp_path: Path) -> None:
    given = build("qwen3", dtype=torch.float32)
    write_directory(find_source(str(given)), tmp_path / "out", "bfloat16")
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in load_file(given / "model.safetensors").items():
        assert torch.equal(found[name], tensor.bfloat16()), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_shards_past_a_size_load_as_one(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_SHARD_BYTES", 60_000)
    given = build("llama")
    write_directory(find_source(str(given)), tmp_path / "out", "bfloat16")
    names = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    assert len(names) > 1
    assert torch.equal(logits(tmp_path / "out", torch.float32), logits(given, torch.float32))


def test_values_that_a_dtype_cannot_hold_are_refused(build: Build, tmp_path: Path) -> None:
    given = build("llama")
    weights = load_file(given / "model.safetensors")
    weights["model.norm.weight"][0] = 1e5
    save_file(weights, given / "model.safetensors")
    with pytest.raises(ModelError, match=r"model.norm.weight holds 9.98e\+04, which float16"):
        write_directory(find_source(str(given)), tmp_path / "out", "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def test_nothing_is_replaced_but_an_empty_directory(build: Build, tmp_path: Path) -> None:
    source = find_source(str(build("llama")))
    (tmp_path / "empty").mkdir()
    write_directory(source, tmp_path / "empty", "bfloat16")
    assert (tmp_path / "empty" / "config.json").is_file()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    with pytest.raises(RunError, match="is not empty"):
        write_directory(source, tmp_path / "full", "bfloat16")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(RunError, match="symbolic link"):
        write_directory(source, tmp_path / "link", "bfloat16")
    assert os.listdir(tmp_path / "full") == ["mine"]


def test_a_file_that_leads_out_of_the_model_is_not_copied(build: Build, tmp_path: Path) -> None:
    given = build("llama")
    (tmp_path / "secret").write_text("secret")
    (given / "merges.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="leads out of the model directory"):
        write_directory(find_source(str(given)), tmp_path / "out", "bfloat16")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs")
def test_a_full_disk_leaves_nothing(build: Build, tmp_path: Path) -> None:
    source = find_source(str(build("llama")))
    (small := tmp_path / "small").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)]).returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        with pytest.raises(RunError, match="no space left on the disk"):
            write_directory(source, small / "out", "bfloat16")
        assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_the_card_of_a_run_says_what_it_was_and_came_to(trained: Path, tmp_path: Path) -> None:
    source = find_source(str(trained))
    assert source == Source(trained / "weights", "sums", trained)
    write_directory(source, tmp_path / "out", "bfloat16")
    _, front, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["interlock", "grpo"],
        "base_model": "org/base",
    }
    # Wilson's interval of 1 in 4 by its formula: 4.6 % to 69.9 %; of 3 in 4 its mirror image.
    assert "| before | 25.0% | 4.6% to 69.9% | 4 | 0, 0 |" in text
    assert "| after | 75.0% | 30.1% to 95.4% | 4 | 0, 1 |" in text
    assert "| generator-0 | npu:0 | bf16 | torch 2.13.0 | train |" in text
    assert "cuda is used &lt;b>unqualified&lt;/b>" in text
    assert '| 0 | grpo | 1 | jsonl {"path": "rows.jsonl"}, seed 5 | 2e-05 |' in text
    assert "| torch | 2.13.0 |" in text
    assert "| tokenizer | sha256 ab |" in text
    assert "Seed of the run 7" in text
    assert "Licence: not known here" in text
    for private in ("/home/me", "s3cret", str(tmp_path)):
        assert private not in text


def test_a_models_own_card_is_kept(build: Build, tmp_path: Path) -> None:
    given = build("llama")
    (given / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    write_directory(find_source(str(given)), tmp_path / "out", "bfloat16")
    assert (tmp_path / "out" / "README.md").read_text() == "---\nlicense: mit\n---\nMine.\n"
