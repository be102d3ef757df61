"""Recorded decoding steps against those that are not: the same tokens and logprobs, to the bit.

Run with a stand-in for an accelerator's graphs (support/recorder.py); none was run on one.
"""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import torch
from expert_models import ROUTING
from recorder import Recorder, recording

from interlock.engine.base import Progress, Request
from interlock.engine.portable import recorded_steps
from interlock.engine.portable.engine import PortableEngine
from interlock.errors import ConfigError
from interlock.models.decoder import Decoder
from interlock.records.rl import Sampling

Tiny = Callable[..., Decoder]
Prompt = Callable[[int], list[int]]


@pytest.fixture
def recorded() -> Iterator[list[Recorder]]:
    with recording() as made:
        yield made


def _engines(tiny: Tiny, letters: Any, slots: int, family: str) -> list[PortableEngine]:
    return [
        PortableEngine(tiny(family), letters(), slots, "torch", graphs=graphs)
        for graphs in (False, True)
    ]


def _requests(prompt: Prompt) -> list[Request]:
    """Groups of three length classes and lone ones; completions of all lengths, past one block."""
    sizes = [(5, 4, 40), (90, 3, 20), (7, 1, 33), (40, 2, 9), (150, 1, 25), (12, 4, 18)]
    return [
        Request(f"p{number}", prompt(length), count, Sampling(max_tokens=most), seed=number)
        for number, (length, count, most) in enumerate(sizes)
    ]


@pytest.mark.parametrize("family", ["llama", "deepseek_v3"])
@pytest.mark.parametrize("slots", [3, 6, 64])
def test_tokens_and_logprobs_are_the_same_to_the_bit(
    family: str, slots: int, tiny: Tiny, prompt: Prompt, letters: Any, recorded: list[Recorder]
) -> None:
    """Slots are refilled, groups shrink, rows grow: each a kind of its own."""
    eager, ours = _engines(tiny, letters, slots, family)
    assert ours.generate(_requests(prompt)) == eager.generate(_requests(prompt))
    assert len(recorded) > 3
    assert sum(each.replays for each in recorded) > 2 * len(recorded)


def test_weights_that_change_under_what_runs_are_those_of_the_recorded_step(
    tiny: Tiny, prompt: Prompt, letters: Any, recorded: list[Recorder]
) -> None:
    asked = Request("p", prompt(9), 4, Sampling(max_tokens=14), seed=1)
    new = {name: 0.9 * tensor for name, tensor in tiny().tensors().items()}
    told: list[list[Progress]] = []
    for engine in _engines(tiny, letters, 4, "llama"):
        engine.add("p", asked)
        steps = [engine.step() for _ in range(6)]
        before = {name: view.data_ptr() for name, view in engine.held()}
        engine.load(new, 1)
        assert before == {name: view.data_ptr() for name, view in engine.held()}
        steps += [engine.step() for _ in range(8)]
        assert not engine.pending
        told.append([each for step in steps for each in step])
    assert told[0] == told[1]
    assert any(each.replays for each in recorded)
    # Nor do steps that were recorded with the old weights, on caches in the same places, keep them.
    eager, ours = _engines(tiny, letters, 4, "llama")
    ours.generate([asked])
    for engine in (eager, ours):
        engine.load(new, 1)
    assert ours.generate([asked]) == eager.generate([asked])


def test_one_step_of_a_kind_is_not_recorded_and_no_more_are_kept_than_so_many(
    tiny: Tiny,
    prompt: Prompt,
    letters: Any,
    recorded: list[Recorder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorded_steps, "MOST", 2)
    eager, ours = _engines(tiny, letters, 6, "llama")
    ours.generate([Request("p", prompt(5), 4, Sampling(max_tokens=2), seed=0)])
    assert not recorded  # the first token is of the prefill, the second of the one step
    assert ours.generate(_requests(prompt)) == eager.generate(_requests(prompt))
    assert len(recorded) > 4
    pools = [each.pool() for each in recorded]
    # Two by two they share memory, and after two a new one begins.
    assert pools == [recorded[index - index % 2] for index in range(len(pools))]


def test_what_cannot_be_recorded_is_told_with_the_remedy(
    tiny: Tiny, prompt: Prompt, letters: Any, recorded: list[Recorder]
) -> None:
    engine = _engines(tiny, letters, 2, "llama")[1]
    plain, calls = engine.decoder.norm.forward, []

    def asks_the_host(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append(x.sum().item())
        return plain(x, *rest)

    engine.decoder.norm.forward = asks_the_host  # type: ignore[method-assign]
    engine.add("p", Request("p", prompt(5), 2, Sampling(max_tokens=9), seed=0))
    with pytest.raises(ConfigError, match=r"cannot be recorded on cpu: .*generator.graphs = false"):
        for _ in range(4):
            engine.step()
    assert not engine.pending and len(calls) == 2  # the prefill's and the first step's


def test_experts_decide_on_the_host_and_are_not_recorded(
    tiny: Tiny, prompt: Prompt, letters: Any, recorded: list[Recorder]
) -> None:
    decoder = Decoder(msgspec.structs.replace(tiny().arch, routing=ROUTING))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.fill_(0.1)
    engine = PortableEngine(decoder, letters(), 2, graphs=True)
    engine.generate([Request("p", prompt(5), 2, Sampling(max_tokens=9), seed=0)])
    assert not recorded
