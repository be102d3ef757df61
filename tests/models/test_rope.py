"""Rotary frequencies of real sizes against transformers."""

import math
from typing import Any

import msgspec
import pytest
import torch
from rounding import assert_close
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from interlock.models.architecture import Rope, YarnRope
from interlock.models.rope import Rotary, both_halves, frequencies, rotate, rotate_interleaved

DIM = 64
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_type": "linear", "factor": 4.0},
        LLAMA3,
        YARN,
        YARN | {"truncate": False},
        YARN | {"beta_fast": 16, "beta_slow": 2},
        YARN | {"mscale": 0.9, "mscale_all_dim": 0.7},
        YARN | {"attention_factor": 1.3, "mscale": 0.9, "mscale_all_dim": 0.7},
        YARN | {"mscale": 0.9},
        YARN | {"factor": 1.0},
        YARN | {"beta_fast": 1e-9, "beta_slow": 1e-9},
    ],
)
def test_frequencies_and_magnitude_are_those_of_transformers(settings: dict[str, Any]) -> None:
    settings = settings | {"rope_theta": 50_000.0}
    config = LlamaConfig(hidden_size=2 * DIM, num_attention_heads=2, rope_parameters=dict(settings))
    theirs = ROPE_INIT_FUNCTIONS[settings["rope_type"]]
    expected, magnitude = theirs(config, torch.device("cpu"))
    rope = msgspec.convert(settings, Rope)
    found, few = frequencies(rope, DIM), 16 * torch.finfo(torch.float32).eps
    # A power, some products and, of a ramp between 0 and 1, a sum.
    torch.testing.assert_close(found, expected, rtol=few, atol=0)
    positions = torch.tensor([0, 5000])
    cos, sin = Rotary(rope, DIM)(positions)
    angles = positions[:, None, None] * found  # fp32; what cos makes of them is exact elsewhere
    assert_close(cos[..., : DIM // 2], angles.double().cos() * magnitude, angles.cos() * magnitude)
    assert_close(sin[..., DIM // 2 :], angles.double().sin() * magnitude, angles.sin() * magnitude)
    torch.testing.assert_close((cos**2 + sin**2).sqrt(), torch.full_like(cos, magnitude))


def test_a_ramp_without_width_is_a_step() -> None:
    rope = YarnRope(factor=2.0, original_max_position_embeddings=10, beta_fast=5.0, beta_slow=5.0)
    assert frequencies(rope, DIM).isfinite().all()


def test_rotation_by_hand() -> None:
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    angles = both_halves(torch.tensor([[[math.pi / 2, 0.0]]]))
    found = rotate(x, angles).flatten()
    torch.testing.assert_close(found, torch.tensor([-3.0, 2.0, 1.0, 4.0]))
    found = rotate_interleaved(x, angles).flatten()
    torch.testing.assert_close(found, torch.tensor([-2.0, 3.0, 1.0, 4.0]))
