import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interlock.config.losses import LossSettings
from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.errors import RunError
from interlock.learner.checkpoint import load, save
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup
from interlock.learner.step_result import StepResult
from interlock.models.decoder import Decoder

Tiny = Callable[..., Decoder]
Sampled = Callable[..., list[TrainingGroup]]

LENGTHS = [[5, 1, 3], [4, 4]]
OPTIMIZER = OptimizerSettings(lr=1e-2, warmup_steps=2, schedule="cosine", weight_decay=0.01)


def make(decoder: Decoder, keep_reference: bool = False) -> Learner:
    settings = LearnerSettings(logits_chunk=4, dtype="bfloat16")
    return Learner(decoder, settings, OPTIMIZER, 8, keep_reference=keep_reference)


def advance(learner: Learner, sampled: Sampled, steps: range) -> list[StepResult]:
    kl = learner.reference is not None
    return [learner.step(sampled(LENGTHS, seed=s, kl=kl), LossSettings()) for s in steps]


def state(learner: Learner) -> dict[str, Tensor]:
    """Masters and moments."""
    found = {name: value.detach() for name, value in learner.decoder.named_parameters()}
    for name, parameter in learner.parameters.items():
        for kind, value in learner.optimizer.state[parameter].items():
            found[f"{name}.{kind}"] = value
    return found


@pytest.mark.parametrize("keep_reference", [False, True])
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_going_on_is_the_same_as_never_having_stopped(
    tiny: Tiny, sampled: Sampled, tmp_path: Path, stop: int, keep_reference: bool
) -> None:
    through = make(tiny(), keep_reference)
    expected = advance(through, sampled, range(7))

    stopped = make(tiny(), keep_reference)
    before = advance(stopped, sampled, range(stop))
    stopped.publish()
    save(stopped, tmp_path, {"stage": 0, "step": stop})
    # A resumed process starts from other weights, and from a reference made of them.
    resumed = make(tiny(seed=9), keep_reference)
    assert load(resumed, tmp_path) == {"stage": 0, "step": stop}
    assert resumed.publish()[0] == stopped.publish()[0]
    after = advance(resumed, sampled, range(stop, 7))

    assert before + after == expected
    left, right = state(through), state(resumed)
    assert left.keys() == right.keys()
    assert not [name for name in left if not torch.equal(left[name], right[name])]


def test_counters_and_version_are_kept(tiny: Tiny, sampled: Sampled, tmp_path: Path) -> None:
    learner = make(tiny())
    learner.publish()
    advance(learner, sampled, range(2))
    learner.bad_steps, learner.bad_in_row = 5, 2
    save(learner, tmp_path, {})
    resumed = make(tiny())
    load(resumed, tmp_path)
    assert (resumed.steps, resumed.bad_steps, resumed.bad_in_row) == (2, 5, 2)
    version, other = resumed.publish()[0], learner.publish()[0]
    assert version == other == 1


@pytest.fixture
def saved(tiny: Tiny, sampled: Sampled, tmp_path: Path) -> Path:
    learner = make(tiny())
    advance(learner, sampled, range(1))
    save(learner, tmp_path, {})
    return tmp_path


def test_damage_is_found_and_nothing_is_loaded(tiny: Tiny, saved: Path) -> None:
    file = saved / "exp_avg.safetensors"
    whole = file.read_bytes()
    learner = make(tiny(seed=3))
    before = {name: value.clone() for name, value in state(learner).items()}
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    for content in (whole[:-10], bytes(flipped), b""):
        file.write_bytes(content)
        with pytest.raises(RunError, match=r"exp_avg.safetensors is not what was saved"):
            load(learner, saved)
    file.unlink()
    with pytest.raises(RunError, match=r"exp_avg.safetensors is unreadable"):
        load(learner, saved)
    os.mkfifo(file)  # which nobody writes to
    with pytest.raises(RunError, match=r"exp_avg.safetensors is unreadable .*a pipe"):
        load(learner, saved)
    (saved / "state.json").write_text("{")
    with pytest.raises(RunError, match=r"state.json is unreadable"):
        load(learner, saved)
    after = state(learner)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert learner.steps == 0


def test_a_checkpoint_of_another_kind_is_refused(tiny: Tiny, saved: Path) -> None:
    with pytest.raises(RunError, match=r"masters.safetensors is of another model.* unembed"):
        load(make(tiny(tied=False)), saved)
    with pytest.raises(RunError, match="resume with the recipe that wrote it"):
        load(make(tiny(), keep_reference=True), saved)
    content = json.loads((saved / "state.json").read_text()) | {"format": 99}
    (saved / "state.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match="checkpoint format 99, not 1"):
        load(make(tiny()), saved)
