"""The KL's reference is replaced by the weights of now, and a checkpoint holds which it is."""

from pathlib import Path

from learning import LENGTHS, Sampled, Tiny, assert_same, masters

from interlock.config.losses import LossSettings
from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.learner.checkpoint import load, save
from interlock.learner.learner import Learner
from interlock.models.decoder import Decoder

LOSS = LossSettings(kl_beta=0.1, kl_estimate="unbiased", correction="off")


def make(decoder: Decoder, dtype: str) -> Learner:
    settings = LearnerSettings(dtype=dtype, logits_chunk=4)  # type: ignore[arg-type]
    return Learner(decoder, settings, OptimizerSettings(lr=0.01), 20, keep_reference=True)


def advance(learner: Learner, sampled: Sampled, steps: range, every: int) -> list[float | None]:
    """The KL of each step."""
    found = []
    for step in steps:
        found.append(learner.step(sampled(LENGTHS, seed=step, kl=True), LOSS).kl)
        if step % every == 0:
            learner.renew_reference()
    return found


def test_after_it_the_kl_is_nothing(tiny: Tiny, sampled: Sampled) -> None:
    kl = advance(make(tiny(), "float32"), sampled, range(1, 8), every=3)
    at_zero = [step for step, value in enumerate(kl, 1) if value == 0.0]
    assert at_zero == [1, 4, 7]
    assert all(value is not None and value > 1e-6 for value in (kl[1], kl[2], kl[4], kl[5]))


def test_resumed_between_two_replacements_it_is_the_same(
    tiny: Tiny, sampled: Sampled, tmp_path: Path
) -> None:
    through = make(tiny(), "bfloat16")
    expected = advance(through, sampled, range(1, 9), every=3)
    for stop in (2, 3, 4):
        stopped = make(tiny(), "bfloat16")
        before = advance(stopped, sampled, range(1, stop + 1), every=3)
        directory = tmp_path / str(stop)
        directory.mkdir()
        save(stopped, directory, {})
        resumed = make(tiny(seed=9), "bfloat16")
        load(resumed, directory)
        assert before + advance(resumed, sampled, range(stop + 1, 9), every=3) == expected
        assert_same(masters(resumed.decoder), masters(through.decoder))
