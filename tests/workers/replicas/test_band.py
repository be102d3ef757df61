"""Which replicas are admitted: who is compared with whom, and what becomes of one that is off."""

import math

import msgspec
import pytest
from scripted_replicas import TERMS, Replicas, answer_of

from interlock.config.schema import GeneratorSettings
from interlock.fleet.base import Lost
from interlock.records.serving import Ended, EndKind, ReplicaState

DONE = Ended(EndKind.DONE)


def test_a_named_replica_is_the_reference() -> None:
    terms = msgspec.structs.replace(TERMS, reference="b")
    r = Replicas("a", "b", terms=terms)
    r.texts["b"] = 0.3
    r.up("a", "b")
    assert r.facts("b").state is ReplicaState.READY
    assert r.facts("a").state is ReplicaState.REFUSED
    assert r.facts("a").parity["reference"] == "b"


def test_one_outside_of_the_band_is_refused_and_says_why() -> None:
    r = Replicas("a", "b")
    r.texts["b"] = 0.3  # k3 = e^0.3 - 1 - 0.3 = 0.0499
    r.up("a", "b")
    facts = r.facts("b")
    assert facts.state is ReplicaState.REFUSED
    assert facts.parity["k3"] == pytest.approx(math.expm1(0.3) - 0.3)
    assert facts.parity["reference"] == "a"
    assert facts.parity["band"] == [1e-3, 1e-2]
    assert "k3 0.05 against a on 2 tokens, more than 0.01" in facts.reason
    assert "b" not in r.fleet.alive
    assert r.facts("a").state is ReplicaState.READY


def test_one_near_the_edge_serves_with_a_warning() -> None:
    r = Replicas("a", "b")
    r.texts["b"] = 0.1  # k3 0.0052
    r.up("a", "b")
    assert r.facts("b").state is ReplicaState.READY
    assert r.kinds().count("worker_mismatch") == 1


def test_the_reference_is_awaited_and_is_torch_in_float32() -> None:
    r = Replicas("fast", "plain", fast=GeneratorSettings(dtype="bfloat16", slots=4))
    r.texts["fast"] = 0.3
    r.up("fast")
    assert r.facts("fast").state is ReplicaState.STARTING
    assert "waits for plain" in r.facts("fast").reason
    r.up("plain")
    assert r.facts("plain").state is ReplicaState.READY
    assert r.facts("fast").state is ReplicaState.REFUSED


def test_a_reference_that_does_not_come_up_is_not_awaited() -> None:
    r = Replicas("plain", "fast", fast=GeneratorSettings(dtype="bfloat16", slots=4))
    r.up("fast")
    assert r.facts("fast").state is ReplicaState.STARTING
    r.hear("plain", Lost("exit code 1"))
    assert r.facts("fast").state is ReplicaState.READY


def test_canaries_while_serving_and_what_ran_moves_when_they_fail() -> None:
    r = Replicas("a", "b", terms=msgspec.structs.replace(TERMS, examine_s=100.0))
    r.up("a", "b")
    r.wait(90, "a", "b")
    r.crew.replicas[0].put_aside = True
    ticket = r.ask(seed=3, max_tokens=4)
    r.draw("b")
    r.crew.replicas[0].put_aside = False
    r.texts["b"] = 0.3
    r.wait(20, "a", "b")
    r.canary("a", "b")
    assert r.facts("b").state is ReplicaState.REFUSED
    assert r.facts("a").state is ReplicaState.READY
    r.draw("a", 3)
    assert r.tokens(ticket) == answer_of(3, 0, 4)
    assert r.ended(ticket) == Ended(EndKind.DONE, moved=1)


def test_without_a_certificate_it_is_refused_or_serves_unqualified() -> None:
    chip = GeneratorSettings(device="npu:0", dtype="bfloat16", slots=4)
    r = Replicas("a", "chip", chip=chip)
    r.up("a")
    r.open("chip")
    assert r.facts("chip").state is ReplicaState.REFUSED
    assert "it may not serve on npu:0: it runs on 'cpu' instead of 'npu'" in r.facts("chip").reason
    r = Replicas("a", "chip", chip=chip, terms=msgspec.structs.replace(TERMS, unqualified=True))
    r.up("a", "chip")
    assert (r.facts("chip").state, r.facts("chip").trust) == (ReplicaState.READY, "unqualified")
    assert r.kinds().count("unqualified") == 1
