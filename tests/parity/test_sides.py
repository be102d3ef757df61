"""Sides as real processes: one with a bad chip, one that dies, one that hangs, one that is none."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from interlock.config.schema import GuardSettings
from interlock.errors import ConfigError, TrainingError
from interlock.parity.compare import Question, compare
from interlock.parity.outcome import Agreement
from interlock.parity.sides import SideFailed, Sides, parse
from interlock.records.rl import Problem, Sampling
from interlock.workers import protocol
from interlock.workers.protocol import Failed, Failure, Scored, ScoreTexts, Text, Trace, Traced

EPS = torch.finfo(torch.float32).eps


def test_a_chip_that_ignores_masks_is_found_in_attention(
    long_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = Problem("long", [{"role": "user", "content": "one, two, three; " * 40}], "")
    monkeypatch.setattr("interlock.parity.compare.prompts", lambda: [long])
    sides = parse("a", "torch:cpu", "float32"), parse("b", "torch:sim:mask-512", "float32")
    limits = Sampling(max_tokens=2)
    band = GuardSettings(warn=1e-4, quarantine=1e-3)
    question = Question(long_model, *sides, samples=1, sampling=limits, bisect=True, band=band)
    found = compare(question, tmp_path, lambda note: None)
    assert found.verdict is Agreement.DIFFERENT and found.left_out == 0
    assert not found.weights.wrong_a and not found.weights.wrong_b
    where = found.bisection
    assert where is not None
    assert (where.side, where.point) == ("b", "layers.0.attention.attended")
    (guilty,) = [each for each in where.operators if each.parts]
    assert guilty.title.startswith("aten.scaled_dot_product_attention.default [1, 4, ")
    assert guilty.error > 0.1 and guilty.own < 50 * EPS
    assert where.depths[5].a < 50 * EPS  # nothing of side a


def test_a_killed_side_is_named(bare_model: Path, tmp_path: Path) -> None:
    with Sides(tmp_path, answer_s=60) as sides:
        sides.start("b", "torch:cpu")
        pid = sides._children["b"].pid
        threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
        with pytest.raises(TrainingError, match=r"side b \(torch:cpu, log: .*b\.log\) is gone: s"):
            sides.ask({"b": ScoreTexts([[1, 2]])}, Scored)


def test_a_silent_side_is_given_up(tmp_path: Path) -> None:
    with Sides(tmp_path, answer_s=0.5) as sides:
        sides.start("a", "torch:cpu")
        os.kill(sides._children["a"].pid, signal.SIGSTOP)
        begun = time.monotonic()
        late = r"side a .* gave no answer within 0\.5 s; allow more with --timeout"
        with pytest.raises(TrainingError, match=late):
            sides.ask({"a": ScoreTexts([[1, 2]])}, Scored)
        assert time.monotonic() - begun >= 0.5
        with pytest.raises(TrainingError, match=late):  # an engine's start is bounded likewise
            sides.open({"a": (tmp_path, parse("a", "torch:cpu").settings)})


def test_wrong_devices_and_pythons_are_the_users_to_mend(long_model: Path, tmp_path: Path) -> None:
    with Sides(tmp_path) as sides:
        with pytest.raises(ConfigError, match=r"--b-python .no/such/python. cannot be started"):
            sides.start("b", "torch:cpu", "no/such/python")
        sides.start("a", "torch:warp")
        with pytest.raises(ConfigError, match=r"side a \(torch:warp\): device 'warp' cannot be"):
            sides.open({"a": (long_model, parse("a", "torch:warp").settings)})


def test_a_python_without_interlock_is_a_lost_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    with Sides(tmp_path, answer_s=60) as sides:
        sides.start("b", "torch:cpu", str(bare))
        with pytest.raises(TrainingError, match=r"side b .* is gone: exit code 1: .*interlock"):
            sides.ask({"b": ScoreTexts([[1, 2]])}, Scored)


def test_nonsense_is_no_reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noise.py").write_text("def serve(channel):\n    channel.send(b'\\xc1 nothing')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("interlock.parity.sides._MODULE", "noise")
    with Sides(tmp_path, answer_s=60) as sides:
        sides.start("a", "torch:cpu")
        with pytest.raises(TrainingError, match="sent what is no reply"):
            sides.ask({"a": ScoreTexts([[1]])}, Scored)


def test_a_side_sends_no_more_than_the_reference_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what nobody can say beforehand how long it is: sketches, and operators' outputs."""
    (tmp_path / "large.py").write_text(
        "from interlock.workers import protocol\n"
        "def serve(channel):\n"
        "    asked = protocol.ask(channel.receive())\n"
        "    reply = protocol.Traced(['x'], bytes(3 << 20), id=asked.id)\n"
        "    channel.send(protocol.encode(reply))\n    channel.receive()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("interlock.parity.sides._MODULE", "large")
    asked = Trace(Text([1], [], False), "", "")
    with Sides(tmp_path, answer_s=60) as sides:
        for name in ("a", "b"):
            sides.start(name, "torch:cpu")
        whole = sides.ask({"a": asked}, Traced)["a"]
        assert len(whole.sketches) == 3 << 20
        small = Traced(["x"], bytes(1 << 20))
        with pytest.raises(TrainingError, match=r"side b .* is gone: sent a message of 3,1"):
            sides.ask({"b": asked}, Traced, like=small)


def test_a_side_that_says_nothing_but_that_it_lives_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it says so: there is always another sign of life to be read."""
    (tmp_path / "chatter.py").write_text(
        "from interlock.workers.protocol import Alive, encode\n"
        "def serve(channel):\n    while True:\n        channel.send(encode(Alive()))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("interlock.parity.sides._MODULE", "chatter")
    with Sides(tmp_path, answer_s=0.5) as sides:
        sides.start("a", "torch:cpu")
        while sides._take("a", 100) is None:
            time.sleep(0.01)
        with pytest.raises(TrainingError, match=r"gave no answer within 0\.5 s"):
            sides.ask({"a": ScoreTexts([[1]])}, Scored)


def test_what_a_side_says_does_not_act_on_a_terminal(tmp_path: Path) -> None:
    """Escape sequences, 8-bit ones, carriage returns and reordering marks; one line in all."""
    bad = "\x1b]0;x\x07 \x9b2J\r\nSAME: all is well\u202e"
    said = r"\u241b]0;x\u2407 ⟨U\+009B⟩2J SAME: all is well⟨U\+202E⟩$"
    with Sides(tmp_path) as sides:
        sides._labels["a"] = "torch:cpu"
        for kind, error in ((Failure.MISTAKE, ConfigError), (Failure.FAULT, SideFailed)):
            with pytest.raises(error, match=said):
                sides._checked("a", Failed(bad, kind, []), Scored)


@pytest.mark.parametrize(
    ("devices", "at_once"),
    [
        ("cpu cpu", ["a", "b"]),
        ("sim:mask-512 cpu", ["a", "b"]),
        ("npu:0 cpu", ["ab"]),
        ("cuda npu", ["ab"]),
        ("cpu cpu cuda", ["ca", "b"]),
    ],
)
def test_what_the_host_computes_takes_turns(
    devices: str, at_once: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen at what is sent before the next answer is read."""
    heard: list[str] = [""]

    class Scripted(Sides):
        def _send(self, name: str, message: bytes) -> None:
            heard[-1] += name

        def _take(self, name: str, most: int) -> bytes:
            if heard[-1]:
                heard.append("")
            return protocol.encode(Scored([[0.0]], id=self._asked))

        def _pids(self, names: Iterable[str]) -> list[int]:
            return []

    sides = Scripted(tmp_path)
    names = "abc"[: len(devices.split())]
    sides._labels |= {n: f"torch:{d}" for n, d in zip(names, devices.split(), strict=True)}
    assert sides.ask({name: ScoreTexts([[1]]) for name in names}, Scored).keys() == set(names)
    assert heard == [*at_once, ""]
