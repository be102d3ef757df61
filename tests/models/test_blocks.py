"""Checkpoints in fp8 blocks, as DeepSeek publishes them; transformers is the other reader."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from interlock.errors import ModelError
from interlock.models.attention import causal
from interlock.models.blocks import ScaledBlocks, dequantise
from interlock.models.checkpoint import StoredWeights, load_decoder, save_model

CPU = torch.device("cpu")
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
QUERY = "model.layers.0.self_attn.q_a_proj.weight"
EXPERT = "model.layers.1.mlp.experts.3.down_proj.weight"
LARGEST = 448.0  # of e4m3
# What DeepSeek keeps as it is; all other matrices are in fp8.
KEPT = ("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight", "norm.weight", "_bias")


def by_hand(stored: Tensor, scale: Tensor, rows: int, columns: int) -> Tensor:
    """Element by element, as the format says."""
    found = stored.float().clone()
    for i in range(found.shape[0]):
        for j in range(found.shape[1]):
            found[i, j] *= scale[i // rows, j // columns].float()
    return found


def quantised(weight: Tensor, rows: int, columns: int, round_: bool) -> tuple[Tensor, Tensor]:
    """fp8 and scales, each block stretched to what e4m3 holds; `round_`: scales are powers of 2, as
    those of V3.1."""
    down, across = -(-weight.shape[0] // rows), -(-weight.shape[1] // columns)
    scale = torch.empty(down, across)
    stored = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for i in range(down):
        for j in range(across):
            place = (slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
            exact = weight[place].abs().max() / LARGEST
            scale[i, j] = exact.log2().ceil().exp2() if round_ else exact
            stored[place] = (weight[place] / scale[i, j]).to(torch.float8_e4m3fn)
    return stored, scale


def publish(directory: Path, edges: tuple[int, int], round_: bool = False) -> dict[str, Tensor]:
    """Rewrite the model in two files of DeepSeek's layout, scales not always beside their weights,
    and a prediction layer behind the last; gives the tensors."""
    stored: dict[str, Tensor] = {}
    for name, tensor in load_file(directory / WHOLE).items():
        if name.endswith(KEPT):
            exact = name.endswith("_bias")
            stored[name] = tensor.bfloat16().float() if exact else tensor.bfloat16()
        else:
            stored[name], stored[f"{name}_scale_inv"] = quantised(tensor, *edges, round_)
    depth = 1 + max(int(name.split(".")[2]) for name in stored if ".layers." in name)
    ahead = {
        f"model.layers.{depth}.{kind}": tensor
        for kind, tensor in {
            "eh_proj.weight": torch.ones(32, 64),
            "self_attn.o_proj.weight": torch.ones(32, 40).to(torch.float8_e4m3fn),
            "self_attn.o_proj.weight_scale_inv": torch.ones(1, 1),
        }.items()
    }
    stored |= ahead
    (directory / WHOLE).unlink()
    write(directory, stored)
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": list(edges),
    }
    config["num_nextn_predict_layers"] = 1
    (directory / "config.json").write_text(json.dumps(config))
    return stored


def write(directory: Path, tensors: dict[str, Tensor]) -> None:
    for old in directory.glob("*.safetensors"):
        old.unlink()
    index = {}
    for number, name in enumerate(sorted(tensors)):
        index[name] = f"model-0000{number // 5 % 2 + 1}-of-000002.safetensors"
    for file in set(index.values()):
        save_file({n: t for n, t in tensors.items() if index[n] == file}, directory / file)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


@pytest.fixture
def v3(reference: Callable[[str], PreTrainedModel], tmp_path: Path) -> Path:
    directory = tmp_path / "v3"
    reference("deepseek-v3").save_pretrained(directory)
    return directory


def logits(directory: Path, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    decoder = load_decoder(directory, dtype, CPU, torch.float32)
    attend = causal(len(ids), CPU)
    with torch.no_grad():
        return decoder.logits(decoder(ids, attend.positions, attend))


def test_the_published_layout_gives_the_logits_of_transformers(v3: Path) -> None:
    # Sizes of the model that these edges divide: transformers' reader takes no cut-off blocks.
    publish(v3, (4, 2), round_=True)
    with safe_open(v3 / "model-00001-of-000002.safetensors", "pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert kinds == {"F8_E4M3", "F32", "BF16"}
    ids = torch.arange(20)
    # It multiplies in bfloat16, which holds e4m3 times a power of 2; it computes in float32 here.
    theirs = AutoModelForCausalLM.from_pretrained(v3, attn_implementation="eager").float()
    assert not any(p.dtype == torch.float8_e4m3fn for p in theirs.parameters())
    with torch.no_grad():
        wanted = theirs(ids[None]).logits[0]
    assert wanted.std() > 0.5
    torch.testing.assert_close(logits(v3, ids, torch.bfloat16), wanted, atol=2e-5, rtol=1e-4)


def test_blocks_at_the_edges_are_cut_off(v3: Path) -> None:
    stored = publish(v3, (128, 12))
    found = load_decoder(v3, torch.float32, CPU).tensors()
    for name in (QUERY, EXPERT):
        wanted = by_hand(stored[name], stored[f"{name}_scale_inv"], 128, 12)
        assert torch.equal(found[name], wanted), name
    assert torch.equal(found["lm_head.weight"], stored["lm_head.weight"].float())


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 11), st.integers(1, 11),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)  # fmt: skip
def test_every_block_takes_its_own_scale(
    rows: int, columns: int, r: int, c: int, dtype: torch.dtype
) -> None:
    noise = torch.Generator().manual_seed(rows * 100 + columns)
    stored = torch.randn(rows, columns, generator=noise).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-rows // r), -(-columns // c), generator=noise)
    out = torch.full((rows, columns), torch.nan, dtype=dtype)
    assert dequantise(stored, scale, ScaledBlocks("fp8", (r, c)), out)
    assert torch.equal(out, by_hand(stored, scale, r, c).to(dtype))


def test_a_product_that_the_dtype_cannot_hold_is_told() -> None:
    stored, scale = torch.full((1, 1), 448.0).to(torch.float8_e4m3fn), torch.tensor([[146.25]])
    form = ScaledBlocks("fp8", (1, 1))  # 448 x 146.25 = 65520, which float16 has not
    assert not dequantise(stored, scale, form, torch.empty(1, 1, dtype=torch.float16))
    assert dequantise(stored, scale, form, torch.empty(1, 1, dtype=torch.bfloat16))


def test_reading_and_saving_give_plain_weights(v3: Path, tmp_path: Path) -> None:
    stored = publish(v3, (16, 16))
    weights = StoredWeights(v3)
    wanted = by_hand(stored[EXPERT], stored[f"{EXPERT}_scale_inv"], 16, 16)
    assert torch.equal(weights.read(EXPERT), wanted)
    assert weights.read("lm_head.weight").dtype == torch.bfloat16
    decoder = load_decoder(v3, torch.float32, CPU)
    save_model(decoder.published(torch.float32), tmp_path / "saved", v3, torch.float32)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["num_nextn_predict_layers"] == 0
    assert torch.equal(load_file(tmp_path / "saved" / WHOLE)[EXPERT], wanted)
    ids = torch.arange(12)
    assert torch.equal(logits(tmp_path / "saved", ids), logits(v3, ids))


def _drop(name: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors.pop(f"{name}_scale_inv")


def _put(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop(QUERY), f"{QUERY} is stored as F8_E4M3 and has no scales"),
        (_drop(EXPERT), f"{EXPERT} is stored as F8_E4M3 and has no scales"),
        (
            _put(f"{EXPERT}_scale_inv", torch.ones(2, 3)),
            "has scales of shape [2, 3], where blocks of [16, 16] (weight_block_size) ask for "
            "[2, 2]",
        ),
        (_put(f"{EXPERT}_scale_inv", torch.ones(4)), "has scales of shape [4]"),
        (_put(f"{EXPERT}_scale_inv", torch.ones(2, 2).long()), "has scales stored as I64"),
        (_put(f"{EXPERT}_scale_inv", torch.full((2, 2), torch.nan)), "not finite"),
        (_put(f"{EXPERT}_scale_inv", torch.full((2, 2), -1.0)), "negative"),
        (
            lambda tensors: tensors[EXPERT].view(torch.uint8)[-1, -1].fill_(0xFF),  # its one NaN
            f"{EXPERT} holds values that are not finite",
        ),
        (
            lambda tensors: tensors["model.norm.weight"][-1].fill_(torch.nan),
            "model.norm.weight holds values that are not finite",
        ),
        (
            _put("model.norm.weight", torch.ones(32).to(torch.float8_e4m3fn)),
            "model.norm.weight is stored as F8_E4M3 and has no scales",
        ),
        (_put("lm_head.weight_scale_inv", torch.ones(5, 2)), "not stored as F8_E4M3"),
        (_put("model.odd.weight_scale_inv", torch.ones(1, 1)), "has no place in a model"),
        (
            _put(EXPERT, torch.ones(32, 20).to(torch.float8_e5m2)),
            "stored as F8_E5M2, and only BF16, F16, F32, F8_E4M3 are read",
        ),
    ],
)  # fmt: skip
def test_broken_scales_are_refused(
    v3: Path, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    tensors = publish(v3, (16, 16))
    change(tensors)
    write(v3, tensors)
    with pytest.raises(ModelError) as raised:
        load_decoder(v3, torch.float32, CPU)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_blocks_that_do_not_fit_the_scales(v3: Path) -> None:
    publish(v3, (16, 16))
    config = json.loads((v3 / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = [128, 128]
    (v3 / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"blocks of \[128, 128\] \(weight_block_size\) ask for"):
        load_decoder(v3, torch.float32, CPU)
    del config["quantization_config"]
    (v3 / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="has no quantization_config that says how"):
        load_decoder(v3, torch.float32, CPU)
