"""The decoder against transformers, family by family, and against itself through a cache."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rounding import assert_close, in_both
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from interlock.models.attention import Groups, attention, causal
from interlock.models.checkpoint import load_decoder
from interlock.models.decoder import Decoder
from interlock.workers.inspection.operators import Doubled

CPU = torch.device("cpu")
Saved = tuple[PreTrainedModel, Path]


class Growing:
    """The simplest cache: keys and values of one sequence, appended to."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if layer in self.kept:
            k, v = (torch.cat(pair) for pair in zip(self.kept[layer], (k, v), strict=True))
        self.kept[layer] = k, v
        mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        return attention(q[None], k[None], v[None], mask[None], scale)[0]


def load(directory: Path) -> Decoder:
    return load_decoder(directory, torch.float32, CPU)


def tokens(count: int, vocab: int = 67) -> Tensor:
    return torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(2))


def logits(decoder: Decoder, ids: Tensor) -> Tensor:
    attend = causal(len(ids), CPU)
    return decoder.logits(decoder(ids, attend.positions, attend))


def gradients(decoder: Decoder) -> dict[str, Tensor]:
    """By Hugging Face name."""
    of = {name: parameter.grad for name, parameter in decoder.named_parameters()}
    found = {}
    for name, (parameter, index) in decoder.layout().items():
        if (gradient := of[parameter]) is not None:
            found[name] = gradient[index]
    return found


def test_logits_and_gradients_are_those_of_transformers(
    saved: Saved, hub_names: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    model, directory = saved
    decoder, ids = load(directory), tokens(60)

    def theirs(model: PreTrainedModel) -> tuple[Tensor, dict[str, Tensor]]:
        out = model(ids[None]).logits[0]
        F.cross_entropy(out[:-1], ids[1:]).backward()
        found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        return out, hub_names(found)

    with Doubled():
        exact, wanted = theirs(copy.deepcopy(model).double())
    plain, plain_gradients = theirs(model)
    found = logits(decoder, ids)
    assert exact.std() > 0.5
    assert_close(found, exact, plain)
    F.cross_entropy(found[:-1], ids[1:]).backward()
    ours = gradients(decoder)
    assert ours.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert_close(ours[name], gradient, plain_gradients[name], where=name)


def test_decoding_with_a_cache_equals_one_forward_pass(saved: Saved) -> None:
    decoder, ids, cache = load(saved[1]), tokens(24), Growing()
    with torch.no_grad():
        exact, whole = in_both(decoder, lambda made: logits(made, ids))
        positions = torch.arange(24)
        pieces = [(0, 7), *((at, at + 1) for at in range(7, 24))]
        parts = [decoder(ids[a:b], positions[a:b], cache) for a, b in pieces]
        assert_close(decoder.logits(torch.cat(parts)), exact, whole)


def test_packed_groups_equal_separate_sequences(saved: Saved) -> None:
    decoder = load(saved[1])
    prompts, completions = [5, 3], [[4, 0, 2], [6]]
    stream = tokens(20)
    groups = Groups(prompts, completions, CPU)
    packed = decoder(stream, groups.positions, groups)
    prompt, first, last = stream[:5], stream[5:9], stream[9:11]

    def alone(text: Tensor) -> tuple[Tensor, Tensor]:
        attend = causal(len(text), CPU)
        return in_both(decoder, lambda made: made(text, attend.positions, attend))

    for completion, rows in ((first, packed[5:9]), (last, packed[9:11])):
        exact, plain = alone(torch.cat([prompt, completion]))
        assert_close(torch.cat([packed[:5], rows]), exact, plain)
    exact, plain = alone(stream[11:])
    assert_close(packed[11:], exact, plain)


def test_recomputing_activations_changes_no_bit(saved: Saved) -> None:
    decoder, ids = load(saved[1]), tokens(30)
    F.cross_entropy(logits(decoder, ids)[:-1], ids[1:]).backward()
    expected = gradients(decoder)
    decoder.zero_grad()
    decoder.checkpointing = True
    F.cross_entropy(logits(decoder, ids)[:-1], ids[1:]).backward()
    for name, gradient in gradients(decoder).items():
        assert torch.equal(gradient, expected[name]), name


def test_fp32_masters_compute_with_the_weights_that_are_published(saved: Saved) -> None:
    directory = saved[1]
    masters = load_decoder(directory, torch.float32, CPU, compute=torch.bfloat16)
    published = load_decoder(directory, torch.bfloat16, CPU)
    with torch.no_grad():
        ids = tokens(40)
        assert torch.equal(logits(masters, ids), logits(published, ids))


def test_smollm2_agrees_with_transformers(smollm2: Path) -> None:
    ids = tokens(48, vocab=49152)
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
        plain = model(ids[None]).logits[0]
        with Doubled():
            exact = model.double()(ids[None]).logits[0]
        assert_close(logits(load(smollm2), ids), exact, plain)
        theirs = model.bfloat16()(ids[None]).logits[0].float() - exact
        ours = logits(load_decoder(smollm2, torch.bfloat16, CPU), ids).float() - exact
    assert 0 < ours.pow(2).mean().sqrt() < 1.1 * theirs.pow(2).mean().sqrt()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_as_transformers(saved: Saved, dtype: torch.dtype) -> None:
    model, directory = saved
    ids = tokens(256).view(32, 8)
    decoder, attend = load_decoder(directory, dtype, CPU), Groups([8] * 32, [[]] * 32, CPU)
    with torch.no_grad():
        exact = model(ids).logits.flatten(0, 1)
        theirs = model.to(dtype)(ids).logits.flatten(0, 1).float() - exact
        hidden = decoder(ids.flatten(), attend.positions, attend)
        ours = decoder.logits(hidden).float() - exact
    # The median: a token that rounding sends to another expert outweighs all rounding.
    assert 0 < ours.abs().median() < 1.1 * theirs.abs().median()
