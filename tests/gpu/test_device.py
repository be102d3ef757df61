"""What Interlock computes on an accelerator, against the CPU: `pytest -m gpu`.

INTERLOCK_TEST_DEVICE names the device, as settings do ("cuda:0"); `interlock preflight` sets it.
"""

import os

import pytest
import torch

from interlock.chips import device
from interlock.config.losses import LossSettings
from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup
from interlock.models.decoder import Decoder
from interlock.preflight.decode import BareVocabulary
from interlock.preflight.shapes import SHAPES
from interlock.records.rl import Sampling

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")
TOKENS = list(range(5, 45))


@pytest.fixture(scope="module")
def place() -> torch.device:
    name = os.environ.get("INTERLOCK_TEST_DEVICE")
    if name is None:
        pytest.skip("INTERLOCK_TEST_DEVICE names no device")
    return device.claim(name)


def decoder(place: torch.device) -> Decoder:
    made, noise = Decoder(SHAPES["tiny"]), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            drawn = torch.randn(parameter.shape, generator=noise)
            parameter.copy_(1 + 0.1 * drawn if parameter.ndim == 1 else 0.1 * drawn)
    return made.to(place)


def engine(place: torch.device) -> PortableEngine:
    return PortableEngine(decoder(place), BareVocabulary(), slots=4)


def test_an_engine_scores_as_the_cpu_does(place: torch.device) -> None:
    expected, found = engine(CPU).score(TOKENS), engine(place).score(TOKENS)
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-3)


def test_an_engine_gives_the_same_bits_twice(place: torch.device) -> None:
    served = engine(place)
    asked = [Request(str(n), TOKENS[n:], 2, Sampling(max_tokens=9), seed=0) for n in range(2)]
    assert served.generate(asked) == served.generate(asked)


def test_an_update_moves_the_weights_as_on_the_cpu(place: torch.device) -> None:
    """Plain differences of the published weights: what AdamW makes of them is lr at most."""
    group = TrainingGroup(
        TOKENS, [[7, 8, 9], [50, 60]], [[0.3] * 3, [-0.2] * 2], [[-6.0] * 3, [-6.0] * 2]
    )

    def learn(place: torch.device) -> tuple[float, dict[str, torch.Tensor]]:
        learner = Learner(
            decoder(place), LearnerSettings(dtype="float32"), OptimizerSettings(lr=1e-3), 9
        )
        norm = learner.step([group], LossSettings(correction="off")).grad_norm
        return norm, {name: tensor.cpu() for name, tensor in learner.publish()[1].items()}

    (expected, ours), (found, theirs) = learn(CPU), learn(place)
    assert found == pytest.approx(expected, rel=1e-3)
    for name, tensor in ours.items():
        # A gradient at zero may have either sign, so single weights may be 2 lr apart.
        assert (theirs[name] - tensor).abs().mean() < 1e-4, name
