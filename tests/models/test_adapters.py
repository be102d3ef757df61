"""Adapters against peft and transformers: the same files, the same logits, the same gradients."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from reference_models import reference_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from interlock.errors import ModelError
from interlock.models import adapters
from interlock.models.attention import causal
from interlock.models.checkpoint import load_decoder, save_model
from interlock.models.decoder import Decoder
from interlock.models.layers import Linear
from interlock.models.peft_files import CONFIG, WEIGHTS, load_adapter, save_adapter
from interlock.records.adapters import AdapterForm

CPU = torch.device("cpu")
FORM = AdapterForm(rank=4, alpha=6.0)
ATTENTION = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
# peft 0.21 takes what is called as the experts' layers for these alone, so no dense ones beside.
READ = [
    ("llama-linear", {}, FORM),  # with biases
    ("qwen2", {}, AdapterForm(2, 8.0, ["q_proj", "v_proj", "up_proj"])),
    ("qwen3-moe", {"mlp_only_layers": []}, FORM),
    ("deepseek-v3", {}, AdapterForm(4, 6.0, ATTENTION)),
]


def with_adapter(directory: Path, form: AdapterForm = FORM) -> Decoder:
    """B is drawn too: the adapter does something."""
    decoder = load_decoder(directory, torch.float32, CPU)
    adapters.attach(decoder, form, torch.float32, seed=3)
    noise = torch.Generator().manual_seed(4)
    for name, view in adapters.adapter_tensors(decoder).items():
        if ".lora_B." in name:
            view.normal_(0, 0.3, generator=noise)
    return decoder


def logits(decoder: Decoder, ids: Tensor) -> Tensor:
    attend = causal(len(ids), CPU)
    return decoder.logits(decoder(ids, attend.positions, attend))


def tokens(count: int = 20) -> Tensor:
    return torch.randint(67, (count,), generator=torch.Generator().manual_seed(2))


def without(decoder: Decoder) -> Decoder:
    plain = copy.deepcopy(decoder)
    plain.drop_adapter()
    return plain


def adapter_gradients(decoder: Decoder) -> dict[str, Tensor]:
    """By PEFT's names; of the weights there are none."""
    of = {n: p.grad for n, p in decoder.named_parameters() if p.grad is not None}
    assert of.keys() == {owner for owner, _ in decoder.adapter_layout.values()}
    return {name: of[owner][index] for name, (owner, index) in decoder.adapter_layout.items()}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    reference_model("llama").save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize(("name", "changes", "form"), READ, ids=[each[0] for each in READ])
def test_peft_reads_our_files_and_gives_our_logits_and_gradients(
    name: str, changes: dict[str, object], form: AdapterForm, tmp_path: Path
) -> None:
    model = reference_model(name, **changes)
    model.save_pretrained(tmp_path / "model")
    decoder = with_adapter(tmp_path / "model", form)
    served = adapters.published_adapter(decoder, torch.float32)
    save_adapter(served, form, tmp_path, base=name, digest="0")
    theirs = PeftModel.from_pretrained(model, str(tmp_path), is_trainable=True)
    found, ours = theirs(tokens()[None]).logits[0], logits(decoder, tokens())
    assert (ours - logits(without(decoder), tokens())).abs().max() > 0.5
    torch.testing.assert_close(ours, found, atol=2e-5, rtol=2e-5)

    if name == "qwen3-moe":  # theirs learns what is beside the blocks of its experts, too
        return
    for each in (found, ours):
        each[torch.arange(20), tokens()].sum().backward()
    slopes = {n.replace(".default", ""): p.grad for n, p in theirs.named_parameters()}
    own = adapter_gradients(decoder)
    assert own.keys() == {n for n, slope in slopes.items() if slope is not None}
    for each, slope in own.items():
        torch.testing.assert_close(slope, slopes[each], atol=1e-4, rtol=1e-4)


def test_an_adapter_is_the_weights_that_it_merges_into(
    saved: tuple[PreTrainedModel, Path], tmp_path: Path
) -> None:
    """Of every family, with dense layers beside experts: transformers with W + alpha / r B A. Of
    what W would learn, B has s dW Aᵀ and A s Bᵀ dW.
    """
    _, directory = saved
    decoder = with_adapter(directory)
    ours, base = logits(decoder, tokens()), adapters.base_digest(decoder)
    added = adapters.published_adapter(decoder, torch.float32)
    whole = {name: tensor.clone() for name, tensor in without(decoder).tensors().items()}
    pairs = {}
    for name in [each for each in added if ".lora_A." in each]:
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        pairs[f"{module}.weight"] = added[name], added[name.replace("lora_A", "lora_B")]
    for name, (a, b) in pairs.items():
        whole[name] += 1.5 * b @ a
    linear = {n for n, t in whole.items() if t.ndim == 2 and "embed" not in n and "head" not in n}
    assert pairs.keys() == {n for n in linear if not n.endswith("mlp.gate.weight")}
    save_model(whole.items(), tmp_path / "whole", directory, torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    theirs.set_attn_implementation("eager")
    torch.testing.assert_close(ours, theirs(tokens()[None]).logits[0], atol=5e-5, rtol=5e-5)
    for name, tensor in adapters.merged_weights(decoder, torch.float32):
        torch.testing.assert_close(tensor, whole[name], atol=1e-6, rtol=1e-6)
    assert adapters.base_digest(decoder) == base

    plain = load_decoder(tmp_path / "whole", torch.float32, CPU)
    for each in (ours, logits(plain, tokens())):
        each[torch.arange(20), tokens()].sum().backward()
    slopes = {n: p.grad for n, p in plain.named_parameters()}
    found, layout, close = adapter_gradients(decoder), plain.layout(), {"atol": 2e-4, "rtol": 2e-4}
    for name, (a, b) in pairs.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        owner, index = layout[name]
        slope = slopes[owner][index]
        torch.testing.assert_close(found[f"{module}.lora_A.weight"], 1.5 * b.T @ slope, **close)
        torch.testing.assert_close(found[f"{module}.lora_B.weight"], 1.5 * slope @ a.T, **close)


def test_gradients_are_those_of_the_plain_formula(llama: Path) -> None:
    """y + s (x Aᵀ) Bᵀ of stacked parts, left to autograd, in float64."""
    decoder = with_adapter(llama).double()
    layer = decoder.layers[0].attention.qkv
    assert isinstance(layer, Linear) and layer.adapter is not None
    added, noise = layer.adapter, torch.Generator().manual_seed(5)
    x = torch.randn(7, 32, generator=noise, dtype=torch.float64, requires_grad=True)
    slope = torch.randn(7, 64, generator=noise, dtype=torch.float64)
    learned = [added.a, added.b]
    found = torch.autograd.grad((layer(x) * slope).sum(), [x, *learned])
    parts = zip(added.a.split(4), added.b.split([32, 16, 16]), strict=True)
    y = x @ layer.weight.T + torch.cat([1.5 * (x @ a.T) @ b.T for a, b in parts], dim=1)
    for one, other in zip(
        found, torch.autograd.grad((y * slope).sum(), [x, *learned]), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(layer(x), y, atol=1e-12, rtol=1e-12)


def test_a_new_adapter_changes_no_bit_and_is_drawn_by_its_seed(llama: Path) -> None:
    decoder = load_decoder(llama, torch.float32, CPU)
    before = logits(decoder, tokens())
    adapters.attach(decoder, FORM, torch.float32, seed=1)
    assert torch.equal(logits(decoder, tokens()), before)
    drawn = adapters.published_adapter(decoder, torch.float32)
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
    bound = 48**-0.5
    assert drawn[name].abs().max() < bound and abs(float(drawn[name].std()) - bound / 3**0.5) < 0.02
    adapters.attach(decoder, FORM, torch.float32, seed=1)
    again = adapters.published_adapter(decoder, torch.float32)
    assert all(torch.equal(again[each], drawn[each]) for each in drawn)
    assert [p for p in decoder.parameters() if p.requires_grad] == [
        p for n, p in decoder.named_parameters() if ".adapter." in n
    ]


def test_another_decoder_of_the_same_weights_has_an_adapter_of_its_own(llama: Path) -> None:
    decoder = with_adapter(llama)
    shared, before = decoder.shared(), logits(decoder, tokens())
    assert torch.equal(logits(shared, tokens()), logits(without(decoder), tokens()))
    adapters.attach(shared, FORM, torch.float32)
    adapters.set_adapter(shared, adapters.adapter_tensors(decoder))
    assert torch.equal(logits(shared, tokens()), before)
    adapters.set_adapter(decoder, {n: 2 * t for n, t in adapters.adapter_tensors(decoder).items()})
    assert torch.equal(logits(shared, tokens()), before)
    assert not torch.allclose(before, logits(decoder, tokens()), atol=0.1)
    assert shared.embed.data_ptr() == decoder.embed.data_ptr()


def test_files_come_back_as_they_were(llama: Path, tmp_path: Path) -> None:
    decoder = with_adapter(llama)
    served = adapters.published_adapter(decoder, torch.bfloat16)
    save_adapter(served, FORM, tmp_path, base="llama", digest="sha256 of it")
    shapes = {name: list(tensor.shape) for name, tensor in decoder.tensors().items()}
    form, tensors, base = load_adapter(tmp_path, shapes)
    leaves = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert (form, base) == (AdapterForm(4, 6.0, leaves), "sha256 of it")
    assert tensors.keys() == served.keys()
    assert all(torch.equal(tensors[name], served[name]) for name in served)


def spoilt(directory: Path, **changes: object) -> None:
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps(config | changes))


def other_shape(directory: Path) -> None:
    tensors = load_file(directory / WEIGHTS)
    name = min(tensors)
    save_file(tensors | {name: torch.zeros(4, 31)}, directory / WEIGHTS)


def not_finite(directory: Path) -> None:
    tensors = load_file(directory / WEIGHTS)
    name = min(tensors)
    save_file(tensors | {name: tensors[name] / 0}, directory / WEIGHTS)


def stored_as(directory: Path, dtype: torch.dtype) -> None:
    tensors = load_file(directory / WEIGHTS)
    name = min(tensors)
    save_file(tensors | {name: tensors[name].to(dtype)}, directory / WEIGHTS)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (other_shape, "an adapter of another model: base_model.model.model.layers.0.mlp.down_proj"),
        (not_finite, "values that are not finite"),
        (
            lambda d: spoilt(d, r=8),
            "an adapter of rank 4, and adapter_config.json beside it says r 8",
        ),
        (
            lambda d: stored_as(d, torch.float8_e4m3fn),
            "down_proj.lora_A.weight is stored as F8_E4M3",
        ),
        (lambda d: stored_as(d, torch.int32), "is stored as I32, and only BF16, F16, F32 are read"),
        (lambda d: stored_as(d, torch.float64), "is stored as F64"),
        (lambda d: stored_as(d, torch.complex64), "is stored as C64"),
        (lambda d: spoilt(d, lora_alpha=math.nan), "expected `float` > 0.0 - at `alpha`"),
        (
            lambda d: spoilt(d, init_lora_weights="pissa"),
            'init_lora_weights "pissa" is not supported',
        ),
        (lambda d: spoilt(d, alora_invocation_tokens=[1]), "alora_invocation_tokens [1] is not"),
        (lambda d: spoilt(d, lora_bias=True), "lora_bias true is not supported"),
        (lambda d: spoilt(d, use_rslora=True), "use_rslora true is not supported"),
        (lambda d: spoilt(d, r="4"), "expected `int`, got `str` - at `rank`"),
        (lambda d: spoilt(d, lora_alpha="6"), "expected `float`, got `str` - at `alpha`"),
        (lambda d: spoilt(d, use_dora=True), "use_dora true is not supported"),
        (lambda d: spoilt(d, modules_to_save=["lm_head"]), "modules_to_save"),
        (lambda d: spoilt(d, target_modules=["q_proj"]), "another model"),
        (
            lambda d: spoilt(d, target_modules=["self_attn.q_proj"]),
            'target_modules ["self_attn.q_proj"] is not supported; choose an adapter whose targets',
        ),
        (
            lambda d: spoilt(d, target_modules=".*_proj"),
            'target_modules ".*_proj" is not supported',
        ),
        (lambda d: (d / CONFIG).unlink(), "has no adapter_config.json"),
        (lambda d: (d / WEIGHTS).unlink(), "has no adapter_model.safetensors"),
        (lambda d: (d / WEIGHTS).write_bytes(b"\x01"), "cannot be read"),
    ],
)
def test_what_is_no_adapter_of_the_model_is_refused_in_one_line(
    spoil: Callable[[Path], None], told: str, llama: Path, tmp_path: Path
) -> None:
    decoder = with_adapter(llama)
    save_adapter(adapters.published_adapter(decoder, torch.float32), FORM, tmp_path, "", "")
    spoil(tmp_path)
    with pytest.raises(ModelError) as refused:
        load_adapter(tmp_path, {n: list(t.shape) for n, t in decoder.tensors().items()})
    assert told in str(refused.value).replace("Expected", "expected")
    assert "\n" not in str(refused.value)


def test_targets_that_the_model_has_not_are_told(llama: Path) -> None:
    shapes = {
        n: list(t.shape) for n, t in load_decoder(llama, torch.float32, CPU).tensors().items()
    }
    with pytest.raises(ModelError, match="names 'c_attn', which is no linear layer of this model"):
        adapters.check_targets(shapes, AdapterForm(4, 4.0, ["q_proj", "c_attn"]))


@pytest.mark.parametrize(
    ("sizes", "share"),
    # hidden, inner, heads x head size, key/value heads x head size, layers, all weights
    [
        ((576, 1536, 576, 192, 30, 134_515_008), 0.0363),  # SmolLM2-135M
        ((896, 4864, 896, 128, 24, 494_032_768), 0.0178),  # Qwen2.5-0.5B
        ((4096, 12288, 4096, 1024, 36, 8_190_735_360), 0.0053),  # Qwen3-8B
    ],
)
def test_how_much_of_a_model_rank_16_is(sizes: tuple[int, ...], share: float) -> None:
    hidden, inner, queries, kv, layers, whole = sizes
    each = {
        "self_attn.q_proj": [queries, hidden],
        "self_attn.k_proj": [kv, hidden],
        "self_attn.v_proj": [kv, hidden],
        "self_attn.o_proj": [hidden, queries],
        "mlp.gate_proj": [inner, hidden],
        "mlp.up_proj": [inner, hidden],
        "mlp.down_proj": [hidden, inner],
    }
    shapes = {f"model.layers.0.{name}.weight": shape for name, shape in each.items()}
    found = adapters.adapter_shapes(shapes, AdapterForm(16, 32.0))
    learned = layers * sum(rows * columns for rows, columns in found.values())
    assert learned / whole == pytest.approx(share, abs=5e-5)
