"""Memory of the roles: against what a decoder's backward pass keeps, and by hand."""

import json
from pathlib import Path

import pytest
import torch

from interlock.config.reading import parse_recipe
from interlock.models.attention import Groups
from interlock.models.decoder import Decoder
from interlock.models.huggingface import read_architecture
from interlock.plan.chips import find, parse_stock
from interlock.plan.memory import (
    LearnerLoad,
    MemoryUse,
    generator_memory,
    in_turns,
    kept_bytes,
    learner_memory,
)
from interlock.plan.plan import PlanInputs, plan_of
from interlock.plan.roles import roles_of
from interlock.plan.shapes import model_shape, of_config
from interlock.plan.workload import GivenFigures

CONFIG = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
# of a layer: 2*64*64 for queries and output, 2*64*32 for keys and values, 3*64*128
LAYER, WORDS = 36_864, 50 * 64
PARAMS = 2 * LAYER + WORDS


def saved(directory: Path, layers: int, groups: Groups, dtype: torch.dtype) -> int:
    """Bytes of all that autograd keeps of a forward pass, parameters left out."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
    decoder = Decoder(read_architecture(directory))
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    decoder.dtype = dtype
    own = {each.untyped_storage().data_ptr() for each in decoder.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        tokens = torch.zeros(len(groups.positions), dtype=torch.long)
        hidden = decoder(tokens, groups.positions, groups)
    assert hidden.requires_grad
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_what_a_layer_keeps_for_its_backward_pass(
    tmp_path: Path, dtype: torch.dtype, size: int
) -> None:
    """A prompt of 30 tokens with 6 answers of 30: 6 * 60 + 30 keys for 210 tokens are 1.9 each."""
    groups = Groups([30], [[30] * 6], torch.device("cpu"))
    four, two = (saved(tmp_path / f"{n}", n, groups, dtype) for n in (4, 2))
    cast = LAYER * 2 if size == 2 else 0  # a layer's weights, where they are not the masters
    load = LearnerLoad(210, 60, weight_bytes=size)
    found = kept_bytes(of_config(CONFIG, "tiny"), load)
    assert found * 210 == pytest.approx((four - two) / 2 - cast, rel=0.05)


def test_a_learner_by_hand() -> None:
    shape, chip = of_config(CONFIG, "tiny"), find("H100")
    assert shape.params == PARAMS
    load = LearnerLoad(tokens=100, longest=40, recompute=False, held=1e6)
    # hidden and inner elements, queries and their results, keys and values twice, 4 * 40 weights
    token = 16 * 64 + 2 * (2 * 64 + 2 * 64 + 2 * 64 + 3 * 128 + 4 * 40)
    assert kept_bytes(shape, load) == token
    use = learner_memory(shape, chip, 1, load)
    assert use == MemoryUse(
        copies=2 * PARAMS,
        gradients=4 * PARAMS,
        optimizer=12 * PARAMS,
        held=1e6,
        activations=100 * 2 * token + 12 * 50 * 100 + 6 * WORDS,
        usable=72e9,
    )
    taught = learner_memory(shape, chip, 1, load._replace(taught=True))
    assert taught.activations - use.activations == (32 - 12) * 50 * 100
    here = learner_memory(shape, find("cpu"), 1, load)
    assert here.activations == 100 * 2 * token + 6 * 50 * 100 + 8 * WORDS
    assert (use.kept, use.total) == (12 * PARAMS + 1e6, 18 * PARAMS + 1e6 + use.activations)
    again = learner_memory(shape, chip, 1, load._replace(recompute=True))
    assert use.activations - again.activations == 100 * (2 * token - token - 2 * 4 * 64)
    long = kept_bytes(shape, load._replace(longest=600))  # the fused kernel forgets its weights
    assert long == token - 2 * 4 * 40
    wide = learner_memory(shape, chip, 1, load._replace(weight_bytes=4.0))
    assert (wide.copies, wide.optimizer) == (0, 12 * PARAMS)  # the masters are multiplied by


def test_an_adapter_learns_beside_weights_that_stay() -> None:
    shape = of_config(CONFIG, "tiny")
    use = learner_memory(shape, find("H100"), 1, LearnerLoad(100, 40, adapter=500))
    assert (use.weights, use.copies, use.gradients, use.optimizer) == (2 * PARAMS, 1000, 2000, 6000)
    full = learner_memory(shape, find("H100"), 1, LearnerLoad(100, 40))
    assert full.activations - use.activations == 6 * WORDS  # no gradient of the vocabulary


def test_a_cpu_packs_what_it_decodes_with_and_holds_its_program() -> None:
    shape = of_config(CONFIG, "tiny")
    packed = 2 * 2 * LAYER + 4 * WORDS
    here = generator_memory(shape, find("cpu"), 1, 2.0, 8, 30)
    there = generator_memory(shape, find("H100"), 1, 2.0, 8, 30)
    assert here._replace(copies=0, process=0, pieces=0, usable=there.usable) == there
    assert here.copies == packed and here.process == 0.345e9 + 0.645e9
    wide = generator_memory(shape, find("cpu"), 1, 4.0, 8, 30)
    assert wide.process == 0.345e9  # products of float32 are not compiled
    assert here.pieces == pytest.approx(0.07 * (packed + here.activations))
    assert there.cache == 8 * 30 * 2 * 2 * 2 * 16 * 2
    assert generator_memory(shape, find("cpu"), 1, 2.0, 8, 30, shared=True).weights == 0


def test_one_process_holds_what_both_keep_and_the_larger_of_what_passes() -> None:
    learner = MemoryUse(copies=5, gradients=7, optimizer=100, held=10, activations=20, process=3)
    generator = MemoryUse(weights=40, copies=6, cache=8, activations=1, process=3, pieces=2)
    assert in_turns(learner, generator) == 100 + 10 + 3 + 40 + 8 + 32
    assert in_turns(learner, generator._replace(copies=60)) == 100 + 10 + 3 + 40 + 8 + 63


def test_a_chip_with_both_roles_has_room_for_what_is_left() -> None:
    """Long answers, more of them than the cache of one chip holds beside a learner."""
    task = {"kind": "grpo", "steps": 1, "problems_per_step": 512, "completions": 16}
    task |= {"task": [{"name": "arithmetic"}], "sampling": {"max_tokens": 16384}}
    tree = {"model": {"path": "Qwen3-0.6B"}, "stage": [task], "generator": [{"slots": 8192}]}
    inputs = PlanInputs(parse_recipe(tree), model_shape("Qwen3-0.6B"), GivenFigures(4000.0))
    plan = plan_of(inputs, roles_of(parse_stock("1xH200:both"), True))
    use, (group,) = plan.settled.learner_memory, plan.settled.groups
    left = use.usable - use.total - group.memory.weights
    taken = group.memory.cache + group.memory.activations
    assert taken == pytest.approx(left) and not plan.unfit
    assert plan.stages[0].memory == {"learner": in_turns(use, group.memory)}
    apart = plan_of(inputs, roles_of(parse_stock("1xH200:learner,1xH200:generator"), True))
    assert apart.settled.groups[0].replica.slots > group.replica.slots
    assert set(apart.stages[0].memory) == {"learner", "generator"}
