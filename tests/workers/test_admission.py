"""Workers whose chip has no valid certificate: the run stops, or says that it uses them."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace
from scripted_pool import (
    CPU,
    NPU,
    WALL,
    Scene,
    make_certificate,
)

from interlock.config.schema import GeneratorSettings
from interlock.errors import ConfigError
from interlock.records.metrics import WorkerState
from interlock.records.trust import Trust
from interlock.workers.admission import admission, verdict
from interlock.workers.protocol import (
    Open,
    Opened,
    Qualified,
)

Make = Callable[..., Scene]

GOOD = Opened("torch 2", "npu", "bfloat16", NPU, make_certificate())


RUN = "; run: interlock qualify --device npu"


REFUSED = {
    "none": (replace(GOOD, certificate=None), "there is no certificate for npu (Chip 1, "),
    "changed": (
        replace(GOOD, certificate=replace(make_certificate(), device="npu:7")),
        "changed or damaged",
    ),
    "other stack": (
        replace(GOOD, stack=replace(NPU, torch="2.14.0")),
        f"torch '2.13.0', and here it is '2.14.0'{RUN}",
    ),
    "rejected": (
        replace(GOOD, certificate=make_certificate(trust=Trust.REJECT, failed="forward")),
        f"says reject, which is not enough to generate (forward failed: forward is off){RUN}",
    ),
    "older": (replace(GOOD, stack=None), "does not say what it runs on"),
    "a lie": (replace(GOOD, stack=CPU, certificate=None), "it runs on 'cpu' instead of 'npu'"),
}


def opens(s: Scene, name: str, said: Opened) -> None:
    """The worker answers what it was asked last with this."""
    s.hear(name, replace(said, id=s.pool._workers[name].asked))


@pytest.mark.parametrize("case", REFUSED)
def test_a_chip_without_a_valid_certificate_stops_the_run(scene: Make, case: str) -> None:
    reply, words = REFUSED[case]
    s = scene("a", "b", device="npu")
    with pytest.raises(ConfigError, match=r"^a may not generate on npu: ") as error:
        opens(s, "a", reply)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("case", REFUSED)
def test_unqualified_it_is_used_and_noted_once(scene: Make, case: str) -> None:
    reply, words = REFUSED[case]
    s = scene("a", device="npu", unqualified=True)
    opens(s, "a", reply)
    assert s.state("a") is WorkerState.READY and s.pool.facts()["a"].trust == "unqualified"
    (kind, message, worker), _ = s.events
    assert (kind, worker) == ("unqualified", "a") and words in message
    assert message.startswith("a generates unqualified on npu: ")
    s.lose("a")
    s.wait(1)
    opens(s, "a", reply)
    assert s.kinds().count("unqualified") == 1


def test_a_chip_that_loses_its_certificate_later_is_retired_alone(scene: Make) -> None:
    """On a cluster a worker may come up on another machine."""
    s = scene("a", "b", device="npu").ready()
    s.lose("a")
    s.wait(1, "b")
    opens(s, "a", replace(GOOD, certificate=None))
    assert s.state("a") is WorkerState.RETIRED and "there is no certificate" in s.events[-1][1]
    s.order(0)
    assert s.unit("b") == (0,)


def test_what_a_worker_is_trusted_with_is_told(scene: Make) -> None:
    trusted = scene("a", "b", device="npu")
    trusted.answer("a")
    opens(trusted, "b", replace(GOOD, certificate=make_certificate(trust=Trust.TRAIN)))
    assert [f.trust for f in trusted.pool.facts().values()] == ["generate", "train"]
    on_cpu = scene("a")
    on_cpu.answer("a")
    assert on_cpu.pool.facts()["a"].trust == "cpu"


def test_who_has_not_shown_a_certificate_yet_is_waited_for(scene: Make) -> None:
    s = scene("a", "b", device="npu")
    s.answer("a")
    assert not s.pool.admitted
    s.lose("b")  # it may never come up: no reason to wait for longer
    assert s.pool.admitted
    s.wait(1, "a")
    assert s.state("b") is WorkerState.STARTING and s.pool.admitted
    assert scene("a", "b").pool.admitted  # the CPU needs none


@pytest.mark.parametrize(
    ("options", "world_size", "why"),
    [
        ({}, 1, None),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 3, "seed": 9}, 6, None),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 3}, 5, "proven with 5"),
        ({"pipeline_parallel_size": 2}, 1, "proven with 1"),
    ],
)
def test_an_engine_over_several_devices_needs_their_collectives_proven(
    options: dict[str, Any], world_size: int, why: str | None
) -> None:
    asked = GeneratorSettings(engine="vllm", device="npu", options=options)
    certificate = make_certificate(world_size=world_size)
    said = replace(GOOD, certificate=certificate)
    found = admission(Open("a", "", asked), said).why
    assert (found is None) if why is None else (found is not None and why in found)
    assert verdict(Qualified(certificate), asked, NPU, WALL) is None  # which does not try them
