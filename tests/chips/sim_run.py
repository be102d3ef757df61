"""Run by test_simulated_run.py in a process of its own: a learner and an engine give the same bits
on the sound device and on the CPU.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from expert_models import ROUTING
from msgspec.structs import replace
from torch import Tensor

from interlock.chips import device
from interlock.config.losses import LossSettings
from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup
from interlock.models.architecture import Architecture, DefaultRope, Latent
from interlock.models.attention import FUSED_ABOVE
from interlock.models.decoder import Decoder
from interlock.records.rl import Sampling

CPU = torch.device("cpu")
SIM = device.claim("sim")
VOCAB = 150
MOE = replace(ROUTING, shared_inner=8, gate="sigmoid", corrected=True)
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama"},
    "moe": {"family": "deepseek_v3", "routing": MOE, "tied": False},
    "latent": {
        "family": "deepseek_v3",
        "latent": Latent(q_rank=None, kv_rank=6, interleaved=True),
        "kv_heads": 4,
        "value_dim": 6,
        "rope_dim": 4,
    },
}


class Numbers:
    """A vocabulary without text: no token ends a completion."""

    eos_ids: frozenset[int] = frozenset()

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def stream(self) -> "Numbers":
        return self

    def definition(self) -> str:
        return ""

    def push(self, token: int) -> str:
        return f"{token} "


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def made(kind: str, place: torch.device) -> Decoder:
    settings = {"kv_heads": 2, "value_dim": 8, "rope_dim": 8, "tied": True} | KINDS[kind]
    arch = Architecture(
        vocab=VOCAB,
        hidden=16,
        layers=2,
        heads=4,
        head_dim=8,
        inner=24,
        norm_eps=1e-5,
        context=2048,
        rope=DefaultRope(),
        **settings,
    )
    decoder, noise = Decoder(arch), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in decoder.parameters():
            drawn = torch.randn(parameter.shape, generator=noise)
            parameter.copy_(1 + 0.1 * drawn if parameter.ndim == 1 else 0.4 * drawn)
    return decoder.to(place)


def groups(lengths: list[list[int]]) -> list[TrainingGroup]:
    noise = torch.Generator().manual_seed(1)

    def tokens(count: int) -> list[int]:
        return torch.randint(0, VOCAB, (count,), generator=noise).tolist()

    def numbers(sizes: list[int], mean: float) -> list[list[float]]:
        return [(torch.randn(n, generator=noise) * 0.2 + mean).tolist() for n in sizes]

    return [
        TrainingGroup(
            prompt=tokens(3 + index),
            completions=[tokens(n) for n in sizes],
            weights=numbers(sizes, 0.1),
            sampler_logprobs=numbers(sizes, -4.0),
            kl_weights=[[0.05] * n for n in sizes],
        )
        for index, sizes in enumerate(lengths)
    ]


@dataclass(frozen=True)
class Case:
    kind: str
    dtype: str = "float32"
    checkpointing: bool = False
    long: bool = False


@pytest.mark.parametrize(
    "case",
    [
        Case("llama"),
        Case("llama", "bfloat16"),
        Case("moe", checkpointing=True),
        Case("latent"),
        Case("llama", long=True),  # the fused attention kernel
    ],
    ids=str,
)
def test_a_learner(case: Case) -> None:
    given = groups([[520, 3]] if case.long else [[5, 1, 7], [4, 4], [2]])

    def learn(place: torch.device) -> tuple[Any, list[Tensor], Any, dict[str, Tensor]]:
        settings = LearnerSettings(
            dtype=case.dtype,
            kernel="torch",  # another, which a CPU alone may have, rounds differently
            fused_attention_above=FUSED_ABOVE,
            micro_batch_tokens=512,
            activation_checkpointing=case.checkpointing,
        )
        rule = OptimizerSettings(lr=1e-2, weight_decay=0.1, clip_norm=0.5)
        learner = Learner(made(case.kind, place), settings, rule, 9, keep_reference=True)
        steps = [learner.step(given, LossSettings()) for _ in range(1 if case.long else 3)]
        logprobs = [part for group in learner.logprobs(given) for part in group]
        _, weights = learner.publish()
        return steps, logprobs, learner.score([1, 2, 3]), weights

    expected, found = learn(CPU), learn(SIM)
    assert found[0] == expected[0] and found[2] == expected[2]
    assert all(torch.equal(x, y) for x, y in zip(found[1], expected[1], strict=True))
    assert found[3].keys() == expected[3].keys()
    for name, tensor in found[3].items():
        assert tensor.device == SIM
        assert torch.equal(tensor.cpu(), expected[3][name]), name


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("llama", torch.bfloat16), ("moe", torch.float32), ("latent", torch.float32)],
)
def test_an_engine(kind: str, dtype: torch.dtype) -> None:
    rules = [
        Sampling(max_tokens=11),
        Sampling(max_tokens=7, temperature=0.7, top_k=9),
        Sampling(max_tokens=9, top_p=0.8),
        Sampling(max_tokens=5, temperature=0),
    ]
    requests = [
        Request(
            problem_id=str(index),
            prompt_tokens=list(range(5, 8 + 3 * index)),
            completions=2 + index % 2,
            sampling=rule,
            seed=0,
        )
        for index, rule in enumerate(rules)
    ]

    def generate(place: torch.device) -> tuple[Any, Any, Any, dict[str, Tensor]]:
        decoder = made(kind, place)
        if dtype != torch.float32:
            decoder, decoder.dtype = decoder.to(dtype), dtype
        served = PortableEngine(decoder, Numbers(), slots=4)
        first = served.generate(requests)
        new = {name: tensor.cpu().float() * 1.1 for name, tensor in served.held()}
        served.load(new, version=2)
        held = {name: tensor.cpu() for name, tensor in served.held()}
        return first, served.generate(requests), served.score([4, 5, 6, 7]).logprobs, held

    expected, found = generate(CPU), generate(SIM)
    assert found[:3] == expected[:3]
    assert found[0] != found[1]
    assert all(torch.equal(found[3][name], tensor) for name, tensor in expected[3].items())
