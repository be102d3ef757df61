"""An adapter while weights are packed: what is drawn is told as the learner scores it."""

from pathlib import Path

import pytest
import torch
from byte_model import make_model, write_tokenizer
from torch import Tensor

from interlock.chips import products
from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.engine.portable.prepacked import Packed
from interlock.learner.learner import Learner
from interlock.mismatch import Mismatch, mismatch
from interlock.models import adapters
from interlock.models.checkpoint import load_decoder
from interlock.models.decoder import Decoder
from interlock.models.tokenizer import Tokenizer
from interlock.records.adapters import AdapterForm
from interlock.records.rl import Sampling
from interlock.records.serving import Rules

FORM, CPU, PROMPT = AdapterForm(rank=4, alpha=8.0), torch.device("cpu"), [5, 17, 200, 33]
KERNELS = [("onednn", "float32"), ("mkl", "float32"), ("onednn", "bfloat16")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write_tokenizer(directory)
    return make_model(directory, hidden_size=64, intermediate_size=128)


def opened(model: Path, dtype: str) -> Decoder:
    return load_decoder(model, getattr(torch, dtype), CPU)


def few_steps(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """A as it begins, B as AdamW leaves it after a few steps of 1e-3: weights of 0.2 are moved by
    about a thousandth, which is half of what bfloat16 tells apart there.
    """
    noise = torch.Generator().manual_seed(3)
    found = {}
    for name, shape in shapes.items():
        b = "lora_B" in name
        size = 3e-3 if b else shape[1] ** -0.5
        found[name] = (torch.rand(shape, generator=noise) * 2 - 1) * size
    return found


def apart(engine: PortableEngine, learner: Learner) -> Mismatch:
    """Of what an engine draws while it packs, against the learner's scores."""
    sampling, rules = Sampling(max_tokens=24), Rules(ignore_eos=True)
    for number in range(4):
        engine.add(str(number), Request(str(number), PROMPT, 8, sampling, 0, rules=rules))
    done = list(engine.step())
    assert isinstance(engine.decoder.layers[0].attention.qkv.lent, Packed)
    while engine.pending:
        done += engine.step()
    found = Mismatch()
    for each in done:
        if each.completion is not None:
            scored = learner.score(PROMPT + each.completion.tokens)[len(PROMPT) - 1 :]
            found += mismatch(scored, each.completion.logprobs)
    assert found.tokens == 4 * 8 * 24
    return found


@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
def test_packed_weights_beside_an_adapter_draw_by_what_the_learner_has(
    model: Path, kernel: str, dtype: str
) -> None:
    """Both as close as without an adapter; rounded together in bfloat16, several times as far."""
    if not products.offered(kernel, getattr(torch, dtype), "cpu"):
        pytest.skip(f"this CPU has no {kernel} for {dtype}")
    decoder = opened(model, dtype)
    adapters.attach(decoder, FORM, torch.float32, seed=0)
    learner = Learner(decoder, LearnerSettings(dtype=dtype, lora=FORM), OptimizerSettings(), 1)  # type: ignore[arg-type]
    engine = PortableEngine(opened(model, dtype), Tokenizer.load(model), 32, kernel)
    added = few_steps(adapters.adapter_shapes(engine.shapes, FORM))
    none = apart(engine, learner)  # B is zero
    adapters.set_adapter(decoder, added)
    engine.load_adapter(added, FORM, 1)
    beside = apart(engine, learner)
    engine.load(dict(adapters.merged_weights(decoder, getattr(torch, dtype))), 2)
    merged = apart(engine, learner)
    if dtype == "float32":
        assert max(none.k3, beside.k3, merged.k3) < 1e-9
    else:
        assert beside.k3 < 1.5 * none.k3 and beside.k3 < 1e-3
        assert merged.k3 > 1.5 * beside.k3
