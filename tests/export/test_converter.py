"""Whole files against llama.cpp's own converter, byte for byte."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from llama_converter import convert, converter

from interlock.export import pretokenizers
from interlock.export.card import run_card
from interlock.export.directory import write_directory
from interlock.export.gguf_file import write_gguf
from interlock.export.source import Source, find_source

Build = Callable[..., Path]
Known = Callable[[Path], Path]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def oracle() -> Path:
    return converter()


def check(oracle: Path, source: Source, model: Path, type_: str, rule: str | None) -> None:
    ours, theirs = model.parent / "ours.gguf", model.parent / "theirs.gguf"
    card = run_card(source)[0] if source.run else {}
    write_gguf(source, ours, type_, card)
    convert(oracle, model, theirs, type_, rule)
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("type_", ["F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("family", ["llama", "llama-llama3", "qwen2", "qwen3", "qwen3-moe"])
def test_every_family(oracle: Path, build: Build, known: Known, family: str, type_: str) -> None:
    directory = known(build(family, dtype=torch.float32 if type_ == "F16" else torch.bfloat16))
    sampling = '{"eos_token_id": 261, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1}'
    (directory / "generation_config.json").write_text(sampling)
    check(oracle, find_source(str(directory)), directory, type_, "smollm")


@pytest.mark.parametrize("type_", ["BF16", "Q8_0"])
def test_smollm2(oracle: Path, smollm2: Path, tmp_path: Path, type_: str) -> None:
    write_directory(Source(smollm2, "smollm2-135m-instruct"), tmp_path / "SmolLM2-135M", "bfloat16")
    (tmp_path / "SmolLM2-135M" / "README.md").unlink()
    source = find_source(str(tmp_path / "SmolLM2-135M"))
    check(oracle, source, source.directory, type_, None)


def test_a_run_is_what_its_hugging_face_export_gives(
    oracle: Path, trained: Path, known: Known, tmp_path: Path
) -> None:
    known(trained / "weights")
    source = find_source(str(trained))
    (tmp_path / "hf").mkdir()
    write_directory(source, tmp_path / "hf" / "sums", "bfloat16")
    check(oracle, source, tmp_path / "hf" / "sums", "BF16", "smollm")


def test_the_table_of_pre_tokenizers_is_theirs(oracle: Path) -> None:
    text = (oracle / "conversion" / "base.py").read_text()
    pairs = re.findall(r'chkhsh == "(\w{64})":\s+# ref: .*\s+res = "([^"]+)"', text)
    assert dict(pairs) == pretokenizers.KNOWN  # of two names for one digest the later counts
    (literal,) = re.findall(r"chktxt = ('.*')\n", text)
    assert ast.literal_eval(literal) == pretokenizers.CHECK
