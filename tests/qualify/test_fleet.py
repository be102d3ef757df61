"""Whole fleets of processes: real nodes, real links, real faults."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from remains import descendants, gone

from interlock.processes.child import UNASKED_BYTES, Child, inherited
from interlock.processes.deadline import Deadline
from interlock.qualify.fleet import link
from interlock.qualify.fleet.talk import LinkBroken, LinkMeasured, LinkPlan, LinkWord, Listening
from interlock.records.coding import from_bytes, to_bytes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Reaches only nodes that are called so; in a session of their own, as sshd has them.
SHELL = """#!/bin/sh
name=$1; shift
case $name in
    node*) exec setsid -w "$@" ;;
    *) echo "ssh: Could not resolve hostname $name" >&2; exit 255 ;;
esac
"""
HOSTS = """
[[host]]
name = "node1"
address = "127.0.0.1"
devices = ["sim", "sim:wrong-plugin"]

[[host]]
name = "node2"
address = "127.0.0.1"

[[host]]
name = "nowhere"
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    shell, hosts = tmp_path / "shell", tmp_path / "hosts.toml"
    shell.write_text(SHELL)
    shell.chmod(0o700)
    hosts.write_text(HOSTS)
    words = [sys.executable, "-m", "interlock.cli", "qualify", "--fleet", str(hosts)]
    words += ["--remote-shell", str(shell), "--remote-python", sys.executable]
    return [*words, "--devices", "cpu", "--out", str(tmp_path / "out")]


def test_a_fleet_of_processes(command: list[str], tmp_path: Path) -> None:
    environment = os.environ | {"INTERLOCK_CERTIFICATES": str(tmp_path / "filed")}
    done = subprocess.run(
        [*command, "--only", "versions"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 1, done.stderr
    found: dict[str, Any] = json.loads((tmp_path / "out" / "fleet.json").read_text())
    named = {trouble["name"]: trouble["line"] for trouble in found["troubles"]}
    # Two processes of a busy machine are no measure of a link: whether it is slow is not asked.
    named.pop("node1 – node2", None)
    assert named.keys() == {"node1 sim:wrong-plugin", "nowhere"}
    assert "Could not resolve hostname nowhere" in named["nowhere"]
    (tried,) = found["links"]
    assert tried["off"] == 0 and tried["up"] > 0 and tried["down"] > 0 and not tried["error"]
    assert "node1 sim:wrong-plugin" in (tmp_path / "out" / "fleet.html").read_text()
    assert len(list((tmp_path / "filed").glob("*.json"))) == 3


def test_nothing_is_left_on_nodes_when_the_command_is_killed(command: list[str]) -> None:
    with subprocess.Popen([*command, "--only", "forward"], stdout=subprocess.PIPE) as head:
        deadline = Deadline(120.0)
        while len(started := descendants(head.pid)) < 8 and not deadline.over:
            time.sleep(0.1)
        assert len(started) >= 8
        head.kill()
    assert gone(*started)


@pytest.mark.parametrize(
    ("device", "wrong"), [("sim", False), ("sim:allreduce-wrong", True), ("cpu", False)]
)
def test_sums_over_a_link_are_exact_or_found_wrong(device: str, wrong: bool) -> None:
    plan = LinkPlan("a – b", device, 0, 2, "127.0.0.1", None, 4 << 20, 60)
    first, second = Child(link.__name__, inherited()), Child(link.__name__, inherited())
    first.send(to_bytes(plan))
    port = next(word.port for word in words(first) if isinstance(word, Listening))
    second.send(to_bytes(replace(plan, rank=1, store=("127.0.0.1", port))))
    ends = [
        next(word for word in words(each) if isinstance(word, LinkMeasured | LinkBroken))
        for each in (first, second)
    ]
    first.close()
    second.close()
    assert all(isinstance(end, LinkMeasured) for end in ends), ends
    assert [end.off > 0 for end in ends if isinstance(end, LinkMeasured)] == [wrong, wrong]
    assert isinstance(ends[0], LinkMeasured) and ends[0].up > 0 and ends[0].latency_s > 0


def words(child: Child) -> Any:
    while True:
        word: LinkWord = from_bytes(child.receive(120.0, UNASKED_BYTES), LinkWord)
        yield word
