"""The GGUF file, read back with gguf's own reader, against values by hand and by numpy."""

import json
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, TokenType
from gguf.quants import dequantize
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from interlock.errors import ModelError, RunError
from interlock.export.gguf_file import write_gguf
from interlock.export.source import find_source
from interlock.export.tensors import permuted

Build = Callable[..., Path]
Known = Callable[[Path], Path]


def export(directory: Path, type_: str = "BF16", name: str = "out") -> GGUFReader:
    target = directory.parent / f"{name}.gguf"
    write_gguf(find_source(str(directory)), target, type_, {})
    return GGUFReader(target)


def contents(reader: GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


def tensors(reader: GGUFReader) -> dict[str, np.ndarray]:
    return {each.name: dequantize(each.data, each.tensor_type) for each in reader.tensors}


def stored(directory: Path) -> dict[str, np.ndarray]:
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name).float().numpy() for name in file.keys()}  # noqa: SIM118


def test_permutation_by_hand() -> None:
    # Two heads of four rows; llama.cpp rotates neighbours, Hugging Face halves.
    rows = np.arange(8).reshape(8, 1)
    assert permuted(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert permuted(np.arange(8), 1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_llama_has_every_weight_once_with_q_and_k_in_the_other_order(
    build: Build, known: Known
) -> None:
    directory = known(build("llama"))
    found, given = tensors(export(directory)), stored(directory)
    assert len(found) == len(given) == 20
    assert "output.weight" not in found  # tied
    q = given["model.layers.1.self_attn.q_proj.weight"]
    # Row 2i + j of a head of 16 was its row i + 8j.
    order = [head * 16 + i + 8 * j for head in range(4) for i in range(8) for j in range(2)]
    assert np.array_equal(found["blk.1.attn_q.weight"], q[order])
    k = given["model.layers.0.self_attn.k_proj.weight"]
    assert np.array_equal(found["blk.0.attn_k.weight"], k[order[:32]])
    v = given["model.layers.0.self_attn.v_proj.weight"]
    assert np.array_equal(found["blk.0.attn_v.weight"], v)
    assert np.array_equal(found["token_embd.weight"], given["model.embed_tokens.weight"])


def test_qwen_keeps_the_order_and_norms_are_float32(build: Build, known: Known) -> None:
    directory = known(build("qwen3"))
    reader, given = export(directory), stored(directory)
    found = tensors(reader)
    q = given["model.layers.1.self_attn.q_proj.weight"]
    assert np.array_equal(found["blk.1.attn_q.weight"], q)
    kinds = {each.name: each.tensor_type.name for each in reader.tensors}
    assert kinds["blk.0.attn_q_norm.weight"] == kinds["output_norm.weight"] == "F32"
    assert kinds["blk.0.ffn_down.weight"] == "BF16"


def test_experts_are_stacked_by_number(build: Build, known: Known) -> None:
    directory = known(build("qwen3-moe"))
    reader, given = export(directory), stored(directory)
    found = tensors(reader)["blk.1.ffn_up_exps.weight"]
    each = [given[f"model.layers.1.mlp.experts.{n}.up_proj.weight"] for n in range(12)]
    assert np.array_equal(found, np.stack(each))
    told = contents(reader)
    assert told["qwen3moe.expert_count"] == 12
    assert told["qwen3moe.expert_used_count"] == 2
    assert told["qwen3moe.expert_feed_forward_length"] == 32
    router = next(t for t in reader.tensors if t.name == "blk.0.ffn_gate_inp.weight")
    assert router.tensor_type is GGMLQuantizationType.F32


def test_blocks_of_eight_and_four_bits_by_their_formulas(build: Build, known: Known) -> None:
    directory = known(build("llama", dtype=torch.float32))
    row = stored(directory)["model.layers.0.mlp.down_proj.weight"][3, 32:64]
    raw = {
        type_: next(t for t in export(directory, type_, type_).tensors if "ffn_down" in t.name)
        for type_ in ("Q8_0", "Q4_0")
    }
    # Q8_0: the scale is the largest magnitude / 127; each value its multiple, rounded.
    block = raw["Q8_0"].data[3, 34:68]
    scale = np.float32(np.abs(row).max() / np.float32(127))
    assert block[:2].view(np.float16)[0] == np.float16(scale)
    assert block[2:].view(np.int8).tolist() == np.round(row / scale).astype(int).tolist()
    # Q4_0: the scale is the value of largest magnitude / -8; halves of a block share bytes.
    block = raw["Q4_0"].data[3, 18:36]
    scale = np.float32(row[np.abs(row).argmax()] / np.float32(-8))
    assert block[:2].view(np.float16)[0] == np.float16(scale)
    codes = np.clip(np.floor(row / scale + 8.5), 0, 15).astype(int).tolist()
    assert (block[2:] & 15).tolist() + (block[2:] >> 4).tolist() == codes


def test_four_bits_spare_the_embedding(build: Build, known: Known) -> None:
    reader = export(known(build("qwen2")), "Q4_0")
    kinds = {each.name: each.tensor_type.name for each in reader.tensors}
    assert kinds["token_embd.weight"] == kinds["output.weight"] == "Q8_0"
    assert kinds["blk.0.attn_v.weight"] == "Q4_0"
    assert kinds["blk.0.attn_v.bias"] == "F32"
    assert contents(reader)["general.file_type"] == 2


def test_llama3_scaling_is_a_tensor_of_factors(build: Build, known: Known) -> None:
    found = tensors(export(known(build("llama-llama3"))))["rope_freqs.weight"]
    expected = []
    for i in range(8):
        wavelength = 2 * np.pi * 10000 ** (2 * i / 16)
        smooth = (64 / wavelength - 1) / 3
        between = 1 / ((1 - smooth) / 8 + smooth)
        expected.append(1 if wavelength < 16 else 8 if wavelength > 64 else between)
    assert found == pytest.approx(expected, rel=1e-5)
    assert 1 < found[2] < 8  # one is between


def test_yarn_and_sizes_are_told(build: Build, known: Known) -> None:
    told = contents(export(known(build("qwen2"))))
    assert told["qwen2.rope.scaling.type"] == "yarn"
    assert told["qwen2.rope.scaling.factor"] == 4.0
    assert told["qwen2.rope.scaling.original_context_length"] == 64
    assert told["qwen2.attention.head_count_kv"] == 2
    assert "qwen2.attention.key_length" not in told
    assert told["general.size_label"] == "100K"  # 2 x 300 x 64 + 2 x 30976 + 64


def test_vocabulary_is_padded_and_its_kinds_told(build: Build, known: Known) -> None:
    told = contents(export(known(build("qwen3"))))
    tokens, kinds = told["tokenizer.ggml.tokens"], told["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == 300
    # 256 bytes, 4 merges, 4 special, 4 added; then rows without a token.
    assert tokens[260] == "<|im_start|>"
    assert kinds[260] == TokenType.CONTROL
    assert (tokens[264], kinds[264]) == ("<think>", TokenType.USER_DEFINED)
    assert (tokens[268], kinds[268]) == ("[PAD268]", TokenType.UNUSED)
    assert told["tokenizer.ggml.merges"] == ["Ċ Ċ", "h e", "Ġ t", "u s"]
    assert told["tokenizer.ggml.eos_token_id"] == 261
    assert told["tokenizer.ggml.pre"] == "smollm"


def test_a_replaced_chat_template_is_the_one_that_is_written(build: Build, known: Known) -> None:
    directory = known(build("qwen3"))
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert contents(export(directory))["tokenizer.chat_template"] == "{{ messages[0].content }}"


def test_every_end_of_ours_is_an_end_there(build: Build, known: Known) -> None:
    directory = known(build("qwen3"))
    # <|im_start|>, which llama.cpp does not know as one by its spelling.
    (directory / "generation_config.json").write_text('{"eos_token_id": [261, 260]}')
    told = contents(export(directory))
    assert told["tokenizer.ggml.eos_token_id"] == 261
    assert told["tokenizer.ggml.eot_token_id"] == 260
    (directory / "generation_config.json").write_text('{"eos_token_id": [261, 260, 5, 6]}')
    with pytest.raises(ModelError, match=r"3 tokens that llama\.cpp does not know"):
        export(directory, name="more")


def test_an_unknown_pre_tokenizer_is_refused_and_nothing_left(build: Build) -> None:
    directory = build("llama")
    with pytest.raises(ModelError, match=r"knows no pre-tokenizer that splits text as .*--to hf"):
        export(directory)
    assert [path.name for path in directory.parent.iterdir()] == ["llama"]


def test_added_tokens_that_change_the_split_are_refused(build: Build, known: Known) -> None:
    directory = known(build("llama"))
    tree = json.loads((directory / "tokenizer.json").read_text())
    tree["added_tokens"].append(dict(tree["added_tokens"][-1], id=268, content="apple"))
    (directory / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(ModelError, match="knows no pre-tokenizer"):
        export(directory)


def test_rows_that_do_not_divide_are_refused(build: Build, known: Known) -> None:
    directory = known(build("llama", intermediate_size=40))
    with pytest.raises(ModelError, match=r"down_proj.weight has rows of 40 values, which Q8_0"):
        export(directory, "Q8_0")
    assert len(export(directory, "F16").tensors) == 20


@pytest.mark.parametrize(
    ("family", "changes", "complaint"),
    [
        ("qwen3-moe", {"norm_topk_prob": False}, "whose norm_topk_prob is false"),
        ("qwen3-moe", {"mlp_only_layers": [0]}, "dense layers among those of experts"),
        ("qwen3", {"attention_bias": True}, "with attention_bias"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.5}},
            "attention_factor",
        ),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    build: Build, known: Known, family: str, changes: dict, complaint: str
) -> None:
    with pytest.raises(ModelError, match=complaint):
        export(known(build(family, **changes)))


def test_values_that_a_type_cannot_hold_are_refused(build: Build, known: Known) -> None:
    directory = known(build("llama"))
    weights = load_file(directory / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(ModelError, match=r"up_proj.weight holds 9.98e\+04, which F16 cannot"):
        export(directory, "F16")
    export(directory, "BF16", "wide")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(ModelError, match="not finite"):
        export(directory, "BF16", "nan")
    assert not (directory.parent / "nan.gguf").exists()


def test_nothing_is_replaced_and_no_link_followed(build: Build, known: Known) -> None:
    directory = known(build("llama"))
    target = directory.parent / "out.gguf"
    target.write_text("mine")
    with pytest.raises(RunError, match="exists, and nothing is replaced"):
        export(directory)
    assert target.read_text() == "mine"
    (directory.parent / "link.gguf").symlink_to(target)
    with pytest.raises(RunError, match="symbolic link"):
        export(directory, name="link")
    assert target.read_text() == "mine"


def test_a_disk_that_takes_no_more_leaves_nothing(build: Build, known: Known) -> None:
    directory = known(build("llama"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(RunError, match="a file may not become that large here"):
            export(directory)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in directory.parent.iterdir()] == ["llama"]


def test_the_file_begins_as_the_format_says(build: Build, known: Known) -> None:
    reader = export(known(build("llama")))
    head = reader.data[:24].tobytes()
    magic, version, count, _ = struct.unpack("<4sIQQ", head)
    assert (magic, version, count) == (b"GGUF", 3, 20)
    assert all(tensor.data_offset % 32 == 0 for tensor in reader.tensors)
