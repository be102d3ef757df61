"""Pools of real worker processes: what they draw is what an undisturbed engine draws."""

import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from live_pool import EXACT
from msgspec.structs import replace

from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.errors import ConfigError, Unserved
from interlock.models.checkpoint import load_decoder
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import Sampling
from interlock.records.serving import Ended, EndKind, ReplicaState, Rules
from interlock.sync.store import Publisher
from interlock.workers.replicas import opening

pytestmark = pytest.mark.slow


def engine_of(model: Path, scale: float = 1.0) -> PortableEngine:
    decoder = load_decoder(model, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(scale)
    return PortableEngine(decoder, Tokenizer.load(model), 16)


def undisturbed(engine: PortableEngine, seed: int, max_tokens: int) -> list[int]:
    prompt = [1 + seed % 200, 2, 3]
    asked = Request(
        "", prompt, 1, Sampling(max_tokens=max_tokens), seed, rules=Rules(ignore_eos=True)
    )
    return engine.generate([asked])[0][0].tokens


def kill(pool: Any, name: str) -> None:
    os.kill(pool.pool._fleet.pid(name), signal.SIGKILL)


def test_streams_of_a_killed_replica_go_on_with_the_same_tokens(
    live: Callable[..., Any], endless: Path
) -> None:
    pool = live("a", "b").ready("a", "b")
    streams = [pool.ask(seed, 200) for seed in range(8)]
    pool.until(lambda: all(len(each.pieces) >= 10 for each in streams))
    victims = [each for each in streams if each.pieces[-1].replica == "a"]
    assert victims
    kill(pool, "a")
    pool.until(lambda: all(each.end for each in streams))
    engine = engine_of(endless)
    for seed, stream in enumerate(streams):
        assert stream.tokens() == undisturbed(engine, seed, 200)
    moved = [each for each in streams if each.end.moved]
    assert set(moved) <= set(victims)
    assert all(each.end.kind is EndKind.DONE for each in streams)
    assert moved, "all were done before it was killed"
    for stream in moved:
        assert [p.replica for p in stream.pieces] == sorted(p.replica for p in stream.pieces)
    pool.ready("a")
    assert pool.facts("a").restarts == 1


def test_the_only_replica_is_killed_and_the_streams_wait_for_it(
    live: Callable[..., Any], endless: Path
) -> None:
    pool = live("a").ready("a")
    stream = pool.ask(3, 300)
    pool.until(lambda: len(stream.pieces) >= 5)
    kill(pool, "a")
    pool.until(lambda: stream.end)
    assert stream.tokens() == undisturbed(engine_of(endless), 3, 300)
    assert stream.end == Ended(EndKind.DONE, moved=1)


def test_every_answer_is_of_one_version_while_versions_come(
    live: Callable[..., Any], endless: Path, tmp_path: Path
) -> None:
    store = tmp_path / "sync"
    publisher = Publisher(str(store), 5)
    own = dict(load_decoder(endless, torch.float32, torch.device("cpu")).tensors())

    def publish(number: int) -> None:
        scale = 1 + 0.05 * number
        publisher.publish(number, {name: own[name] * scale for name in own})

    publish(1)
    pool = live("a", "b", follow=str(store), poll_s=0.05).ready("a", "b")
    assert pool.pool.version == 1
    streams = [pool.ask(seed, 120) for seed in range(6)]
    pool.until(lambda: all(each.pieces for each in streams))
    for number in (2, 3):
        publish(number)
        streams += [pool.ask(100 * number + seed, 120) for seed in range(6)]
    while pool.pool.version != 3:
        streams.append(pool.ask(1000 + len(streams), 60))
        pool.until(lambda: streams[-1].end)
    last = pool.ask(7, 30)
    pool.until(lambda: all(each.end for each in [*streams, last]))
    assert [each for each in streams if len(each.versions) != 1] == []
    assert last.versions == {3}
    assert all(each.end.kind is EndKind.DONE for each in streams)
    engines = {number: engine_of(endless, 1 + 0.05 * number) for number in (1, 2, 3)}
    for seed in range(6):
        (version,) = streams[seed].versions
        assert streams[seed].tokens() == undisturbed(engines[version], seed, 120)
    pool.pool.pin(2)
    pool.until(lambda: [f.version for f in pool.pool.facts()] == [2, 2])
    rolled = pool.ask(7, 30)
    pool.until(lambda: rolled.end)
    assert rolled.versions == {2}
    with pytest.raises(ConfigError, match="version 99 cannot be had"):
        pool.pool.pin(99)
    pool.pool.pin(None)
    pool.until(lambda: [f.version for f in pool.pool.facts()] == [3, 3])


def test_cancel_storms_leave_no_slot_taken(live: Callable[..., Any]) -> None:
    pool = live("a").ready("a")
    for storm in range(5):
        streams = [pool.ask(storm * 100 + n, 500, choices=1 + n % 3) for n in range(30)]
        if storm % 2:
            pool.until(lambda: any(each.pieces for each in streams))  # noqa: B023
        for stream in streams:
            pool.pool.cancel(stream.ticket)
        facts = pool.facts("a")
        assert (facts.running, facts.outstanding_tokens, pool.pool.waiting) == (0, 0, 0)
    last = pool.ask(1, 20)
    pool.until(lambda: last.end)
    assert last.end.kind is EndKind.DONE
    assert pool.facts("a").restarts == 0


def test_a_replica_with_other_weights_is_refused(
    live: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_WORKER", "scaled_worker")
    off = replace(EXACT, env={**EXACT.env, "SCALE": "1.05"})
    pool = live(replicas={"a": EXACT, "off": off}).ready("a")
    pool.until(lambda: pool.facts("off").state is ReplicaState.REFUSED)
    facts = pool.facts("off")
    assert facts.parity["k3"] > 1e-2
    assert "more than 0.01" in facts.reason
    stream = pool.ask(1)
    pool.until(lambda: stream.end)
    assert {piece.replica for piece in stream.pieces} == {"a"}


def test_closing_waits_for_what_runs_and_takes_nothing_more(live: Callable[..., Any]) -> None:
    pool = live("a").ready("a")
    stream = pool.ask(1, 100)
    pool.pool.drain("a", True)
    with pytest.raises(Unserved, match="all replicas are drained"):
        pool.ask(2)
    pool.pool.drain("a", False)
    pool.pool.close(60.0)
    assert stream.end == Ended(EndKind.DONE)
    with pytest.raises(Unserved, match="closing"):
        pool.ask(2)


def test_what_is_left_when_the_time_is_over_is_told_so(live: Callable[..., Any]) -> None:
    pool = live("a").ready("a")
    stream = pool.ask(1, 1900)
    pool.pool.close(0.0)
    assert stream.end is not None
    assert stream.end.kind is EndKind.LOST


def test_replicas_are_killed_one_after_another_and_no_stream_notices(
    live: Callable[..., Any], endless: Path
) -> None:
    names = ("a", "b", "c")
    pool = live(*names).ready(*names)
    streams: dict[int, Any] = {}

    def ended() -> int:
        return sum(each.end is not None for each in streams.values())

    for life in range(6):
        for _ in range(12):
            streams[len(streams)] = pool.ask(len(streams), 50 + 37 * (len(streams) % 5))
        pool.until(lambda: ended() > 12 * life)  # noqa: B023
        pool.ready(names[life % 3])
        kill(pool, names[life % 3])
    pool.until(lambda: ended() == len(streams))
    engine = engine_of(endless)
    for seed, stream in streams.items():
        assert stream.end.kind is EndKind.DONE
        assert stream.tokens() == undisturbed(engine, seed, 50 + 37 * (seed % 5))
    assert sum(stream.end.moved for stream in streams.values()) > 0
    pool.ready(*names)
    facts = pool.pool.facts()
    assert sum(each.restarts for each in facts) == 6
    assert [(each.running, each.outstanding_tokens) for each in facts] == [(0, 0)] * 3


def test_a_run_is_followed_into_the_session_that_resumes_it(
    live: Callable[..., Any], endless: Path, tmp_path: Path
) -> None:
    own = dict(load_decoder(endless, torch.float32, torch.device("cpu")).tensors())
    sync = tmp_path / "sync"
    Publisher(str(sync / "session-1"), 5).publish(7, {name: own[name] * 1.1 for name in own})
    pool = live("a", follow=str(sync), poll_s=0.05).ready("a")
    assert pool.pool.version == 7
    shutil.rmtree(sync / "session-1")
    Publisher(str(sync / "session-2"), 5).publish(2, {name: own[name] * 1.2 for name in own})
    pool.until(lambda: pool.facts("a").version == 2)
    stream = pool.ask(5, 30)
    pool.until(lambda: stream.end)
    assert stream.versions == {2}
    assert stream.tokens() == undisturbed(engine_of(endless, 1.2), 5, 30)


def test_a_log_that_takes_no_more_stops_nobody(
    live: Callable[..., Any], endless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_WORKER", "talkative_worker")
    pool = live("a").ready("a")
    pid = pool.pool._fleet.pid("a")
    log = tmp_path / "logs" / "a.log"
    written = log.stat().st_size
    assert written > 0
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))  # a full disk, for one process
    written = log.stat().st_size
    streams = [pool.ask(seed, 100) for seed in range(4)]
    pool.until(lambda: all(each.end for each in streams))
    engine = engine_of(endless)
    for seed, stream in enumerate(streams):
        assert stream.tokens() == undisturbed(engine, seed, 100)
    assert (pool.facts("a").restarts, log.stat().st_size) == (0, written)
