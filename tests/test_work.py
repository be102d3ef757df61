"""How much is computed and kept for a given job: counts, not seconds, so they cannot be noisy.

A change that computes a prompt twice, splits a product or keeps a copy for the backward pass fails
here before any benchmark shows it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from interlock.config.losses import LossSettings
from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.engine.portable.prompts import LONE_PROMPT
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup
from interlock.models.architecture import Architecture, DefaultRope
from interlock.models.decoder import Decoder
from interlock.records.rl import Sampling

LAYERS, HIDDEN, INNER, VOCAB = 3, 32, 80, 300
QKV, OUT = (4 + 2 * 2) * 8, 4 * 8
# Multiplied with every token, and with every token whose distribution is needed.
LAYER_WEIGHTS = LAYERS * (HIDDEN * QKV + OUT * HIDDEN + HIDDEN * 2 * INNER + INNER * HIDDEN)
HEAD_WEIGHTS = VOCAB * HIDDEN
PRODUCTS = 4 * LAYERS  # qkv, out, gate and up, down


class Endless:
    """A vocabulary none of whose tokens ends a completion."""

    eos_ids: frozenset[int] = frozenset()

    def decode(self, ids: list[int]) -> str:
        return ""

    def stream(self) -> Any:
        raise AssertionError("no stop strings here")

    def definition(self) -> str:
        raise AssertionError("no grammars here")


class Products(TorchDispatchMode):
    """Counts products with weights, not those inside attention, and their multiplications."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.steps = 0  # products with the vocabulary projection
        self.multiplications = 0
        self.attention = 0  # products of queries with keys, and of shares with values

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("linear", "mm", "addmm", "addmm_"):
            left, right = args[-2:] if name.startswith("addmm") else args[:2]
            outer = right.shape[0] if name == "linear" else right.shape[1]
            self.calls += 1
            self.steps += outer == VOCAB
            self.multiplications += left.numel() * outer
        self.attention += name == "matmul"
        return func(*args, **(kwargs or {}))


@contextmanager
def kept_bytes() -> Iterator[Callable[[], int]]:
    """Of what is saved for a backward pass; each storage once, weights not at all."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sum(storages.values())


@pytest.fixture
def decoder() -> Decoder:
    arch = Architecture(
        family="llama",
        vocab=VOCAB,
        hidden=HIDDEN,
        layers=LAYERS,
        heads=4,
        kv_heads=2,
        head_dim=8,
        value_dim=8,
        inner=INNER,
        norm_eps=1e-5,
        context=256,
        tied=True,
        rope=DefaultRope(),
        rope_dim=8,
    )
    decoder = Decoder(arch)
    torch.manual_seed(0)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return decoder


def test_an_engine_computes_a_prompt_once_and_each_token_once(decoder: Decoder) -> None:
    begin, ends = [1, 2, 3, 4], ([5, 6, 7], [8, 9, 10, 11])
    rule = Sampling(max_tokens=6)
    requests = [Request(str(i), begin + end, 4, rule, 0) for i, end in enumerate(ends)]
    engine = PortableEngine(decoder, Endless(), slots=8)
    with Products() as products:
        engine.generate(requests)
    prompts = 4 + 3 + 4  # what both begin with once
    decoded = 8 * 5  # the last token of a completion is not computed
    assert products.multiplications == (prompts + decoded) * LAYER_WEIGHTS + 8 * 6 * HEAD_WEIGHTS
    assert products.calls == (1 + 5) * PRODUCTS + 6


@pytest.mark.parametrize(
    ("length", "completions", "attentions"),
    [(LONE_PROMPT, 1, 1), (LONE_PROMPT + 1, 1, 2), (LONE_PROMPT, 2, 2)],
    ids=["in its own row", "too long for that", "shared"],
)
def test_a_step_attends_once_to_a_prompt_in_its_own_row(
    decoder: Decoder, length: int, completions: int, attentions: int
) -> None:
    """To a prompt apart and to a completion's own tokens it attends twice."""

    def products(new_tokens: int) -> int:
        request = Request("0", [1] * length, completions, Sampling(max_tokens=new_tokens), 0)
        with Products() as products:
            PortableEngine(decoder, Endless(), slots=2).generate([request])
        return products.attention

    assert products(6) - products(1) == 5 * LAYERS * 2 * attentions


def test_a_freed_slot_is_filled_before_the_next_step(decoder: Decoder) -> None:
    lengths = [2, 7, 3, 5, 2, 2, 6, 4, 3, 2, 5, 7]
    requests = [
        Request(str(i), [i, 1, 2], 1, Sampling(max_tokens=n), 0) for i, n in enumerate(lengths)
    ]
    with Products() as products:
        PortableEngine(decoder, Endless(), slots=4).generate(requests)
    waiting, running, steps = list(lengths), list[int](), 0
    while waiting or running:
        while waiting and len(running) < 4:
            running.append(waiting.pop(0))
        steps += 1
        running = [left - 1 for left in running if left > 1]
    assert products.steps == steps
    computed = sum(3 + length - 1 for length in lengths)
    assert products.multiplications == computed * LAYER_WEIGHTS + sum(lengths) * HEAD_WEIGHTS


def groups(count: int, completions: int, prompt: int, length: int) -> list[TrainingGroup]:
    rows = [list(range(first, first + length)) for first in range(completions)]
    weights = [[0.1 * (-1) ** row] * length for row in range(completions)]
    return [
        TrainingGroup(list(range(prompt)), rows, weights, [[-5.0] * length] * completions)
        for _ in range(count)
    ]


def test_a_learner_computes_a_prompt_once_forward_and_once_back(decoder: Decoder) -> None:
    learner = Learner(decoder, LearnerSettings(dtype="float32"), OptimizerSettings(), 10)
    with Products() as products:
        learner.step(groups(2, 4, prompt=7, length=5), LossSettings())
    stream = 2 * (7 + 4 * 4)  # the last token of a completion predicts nothing
    targets = 2 * 4 * 5
    # Backward takes two products for one of forward: by the input, and by the weights.
    assert products.multiplications == 3 * (stream * LAYER_WEIGHTS + targets * HEAD_WEIGHTS)
    assert products.calls == 3 * (PRODUCTS + 1)


def test_a_learner_keeps_few_numbers_of_a_token(decoder: Decoder) -> None:
    """Of a token in a layer: seven of the hidden size (what enters the norms and products), gate
    and up and their product, and what attention reads: queries, keys and values as it pads them.
    In its loss, one number more of a token that is learned.
    """
    learner = Learner(decoder, LearnerSettings(dtype="float32"), OptimizerSettings(), 10)
    kept = []
    for count in (2, 6):
        with kept_bytes() as counted:
            learner.step(groups(count, 4, prompt=7, length=5), LossSettings())
        kept.append(counted())
    tokens = 4 * (7 + 4 * 4)  # more in the second step
    attention = 184  # of prompts and completions of these lengths
    numbers = 7 * HIDDEN + 3 * INNER + attention
    learned = 4 * 4 * 5
    assert (kept[1] - kept[0]) / 4 <= tokens * LAYERS * numbers + learned
