"""The layer for multi-token prediction against transformers' own layer, joined by hand."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer

from interlock.errors import ModelError
from interlock.models.attention import causal
from interlock.models.checkpoint import load_decoder, save_model
from interlock.models.predictor import predictor_of, published_predictor

CPU = torch.device("cpu")
BEHIND = "model.layers.3"
WHOLE = "model.safetensors"


@pytest.fixture
def published(
    reference: Callable[[str], PreTrainedModel],
    hub_names: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    tmp_path: Path,
) -> tuple[PreTrainedModel, DeepseekV3DecoderLayer, dict[str, Tensor], Path]:
    """A model in DeepSeek's layout with such a layer; transformers' parts; the layer's tensors."""
    model, directory = reference("deepseek-v3"), tmp_path / "v3"
    layer = DeepseekV3DecoderLayer(model.config, layer_idx=2)  # a layer of experts, as it is there
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in layer.state_dict().items():
            mean = 1.0 if name.endswith("norm.weight") else 0.0
            tensor.normal_(mean, 0.2, generator=noise)
    joined = {
        "enorm.weight": 1 + 0.2 * torch.randn(32, generator=noise),
        "hnorm.weight": 1 + 0.2 * torch.randn(32, generator=noise),
        "eh_proj.weight": 0.2 * torch.randn(32, 64, generator=noise),
        "shared_head.norm.weight": 1 + 0.2 * torch.randn(32, generator=noise),
    }
    model.save_pretrained(directory)
    stored = load_file(directory / WHOLE)
    own = hub_names({f"{BEHIND}.{n}": t.clone() for n, t in layer.state_dict().items()})
    own |= {f"{BEHIND}.{name}": tensor for name, tensor in joined.items()}
    copies = {
        f"{BEHIND}.embed_tokens.weight": stored["model.embed_tokens.weight"].clone(),
        f"{BEHIND}.shared_head.head.weight": stored["lm_head.weight"].clone(),
    }
    own = {name: tensor.contiguous() for name, tensor in own.items()}
    save_file(stored | own | copies, directory / WHOLE)
    config = json.loads((directory / "config.json").read_text())
    config["num_nextn_predict_layers"] = 1
    (directory / "config.json").write_text(json.dumps(config))
    return model, layer, joined, directory


def test_logits_two_ahead(
    published: tuple[PreTrainedModel, DeepseekV3DecoderLayer, dict[str, Tensor], Path],
) -> None:
    model, layer, joined, directory = published
    ids = torch.randint(67, (20,), generator=torch.Generator().manual_seed(2))

    def normed(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (32,), joined[f"{name}.weight"], model.config.rms_norm_eps)

    with torch.no_grad():
        hidden = model.model(ids[None]).last_hidden_state[0, :-1]
        embedded = model.get_input_embeddings()(ids[1:])
        both = torch.cat([normed(embedded, "enorm"), normed(hidden, "hnorm")], dim=-1)
        x = (both @ joined["eh_proj.weight"].T)[None]
        positions = torch.arange(19)[None]
        mask = torch.full((19, 19), torch.finfo(torch.float32).min).triu(1)[None, None]
        made = layer(
            x,
            attention_mask=mask,
            position_ids=positions,
            position_embeddings=model.model.rotary_emb(x, positions),
        )
        made = made[0] if isinstance(made, tuple) else made
        wanted = normed(made.view(19, 32), "shared_head.norm") @ model.lm_head.weight.T

    decoder = load_decoder(directory, torch.float32, CPU, predict=True)
    predictor = predictor_of(decoder)
    assert predictor is not None
    with torch.no_grad():
        whole, parts = causal(20, CPU), causal(19, CPU)
        stream = decoder(ids, whole.positions, whole)[:-1]
        ahead = predictor(
            stream,
            F.embedding(ids[1:], decoder.embed),
            decoder.rotary(parts.positions),
            parts,
            torch.float32,
        )
        found = decoder.logits(ahead)
    assert wanted.std() > 0.5
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


def test_left_out_on_purpose_or_kept_whole(
    published: tuple[PreTrainedModel, DeepseekV3DecoderLayer, dict[str, Tensor], Path],
    tmp_path: Path,
) -> None:
    directory, stored = published[3], load_file(published[3] / WHOLE)
    without = load_decoder(directory, torch.float32, CPU)
    assert without.predictor is None
    save_model(without.published(torch.float32), tmp_path / "out", directory, torch.float32)
    assert not [n for n in load_file(tmp_path / "out" / WHOLE) if n.startswith(BEHIND)]
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["num_nextn_predict_layers"] == 0

    decoder = load_decoder(directory, torch.float32, CPU, predict=True)
    assert decoder.layout() == without.layout()  # what generators are given
    tensors = [*decoder.published(torch.float32), *published_predictor(decoder, torch.float32)]
    save_model(tensors, tmp_path / "kept", directory, torch.float32, predict=True)
    again = load_file(tmp_path / "kept" / WHOLE)
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in stored.items())
    told = json.loads((tmp_path / "kept" / "config.json").read_text())
    assert told["num_nextn_predict_layers"] == 1
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "kept") is not None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("enorm.weight", f"lacks 1 of .* tensors, {BEHIND}.enorm.weight first"),
        ("embed_tokens.weight", "embed_tokens.weight differs from model.embed_tokens.weight"),
        ("", "no layer for multi-token prediction; leave learner.mtp_weight at 0"),
    ],
)
def test_refused(
    published: tuple[PreTrainedModel, DeepseekV3DecoderLayer, dict[str, Tensor], Path],
    name: str,
    message: str,
) -> None:
    path = published[3] / WHOLE
    stored = load_file(path)
    if name == "embed_tokens.weight":
        stored[f"{BEHIND}.{name}"] += 1
    else:
        stored = {n: t for n, t in stored.items() if not n.startswith(f"{BEHIND}.{name}")}
    save_file(stored, path)
    with pytest.raises(ModelError, match=message):
        load_decoder(published[3], torch.float32, CPU, predict=True)
