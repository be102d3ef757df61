"""RayFleet on a cluster of its own, with real actors and real faults."""

import ipaddress
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from remains import gone

from interlock.errors import ConfigError
from interlock.fleet.base import Lost
from interlock.fleet.ray import RayFleet
from interlock.processes.deadline import Deadline

# Not imported here: the fleet sets what Ray reads at its import.
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'interlock[ray]'"),
]

CLIENT = """
import sys
from pathlib import Path
from interlock.errors import ConfigError
from interlock.fleet.base import Spec
from interlock.fleet.ray import RayFleet

try:
    fleet = RayFleet(sys.argv[1])
except ConfigError as error:
    sys.exit(f"refused: {error}")
fleet.start(Spec("w", "echo", Path(sys.argv[2]) / "w.log", env={"PYTHONPATH": sys.argv[3]}))
fleet.send("w", b"hello")
print(fleet.poll(60.0))
fleet.close()
"""
COORDINATOR = """
import sys, time
from pathlib import Path
from interlock.fleet.base import Spec
from interlock.fleet.ray import RayFleet

fleet = RayFleet()
fleet.start(Spec("w", "obeys", Path(sys.argv[1]) / "w.log", env={"PYTHONPATH": sys.argv[2]}))
fleet.send("w", b"os.getpid(), child()")
((_, pids),) = fleet.poll(60.0)
print(pids.decode(), flush=True)
time.sleep(1000)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayFleet]:
    with pytest.MonkeyPatch.context() as environment:
        # Else Ray hands it on, rather than the number of CPUs that an actor asked for.
        environment.delenv("OMP_NUM_THREADS", raising=False)
        fleet = RayFleet()
        yield fleet
        fleet.close()


@pytest.fixture
def hands(hands: Any, cluster: RayFleet) -> Iterator[Any]:
    """On the Ray fleet, in place of the local one."""
    mine = type(hands)(cluster, hands.directory)
    yield mine
    for name in list(cluster._workers):
        cluster.kill(name)


def test_messages_come_back_whole_and_in_order(hands: Any) -> None:
    sizes = [0, 1, 99_999, 100_001, 5_000_000, 3, *range(2000, 2100)]
    sent = [bytes([index % 251 + 1]) * size for index, size in enumerate(sizes)]
    hands.start("w", "echo")
    for message in sent:
        hands.fleet.send("w", message, reply_bytes=max(sizes))
    events = hands.collect(lambda events: len(events) >= len(sent))
    assert [who for who, _ in events] == ["w"] * len(sent)
    assert [message for _, message in events] == sent


def test_a_killed_worker_is_lost_once_with_what_it_started(hands: Any) -> None:
    hands.start("w", "obeys")
    hands.start("other", "obeys")
    pid, child = hands.ask("w", "os.getpid(), child()")
    hands.ask("w", "print('these are my', 'last words')")
    hands.fleet.send("other", b"time.sleep(1000)")
    os.kill(pid, signal.SIGKILL)
    assert hands.lost("w") == "its worker process has died: these are my last words"
    assert gone(pid, child)
    hands.fleet.send("w", b"1")  # to nobody
    hands.start("w", "obeys")
    assert hands.ask("w", "1 + 1") == 2


def test_a_worker_that_fails_says_why_after_its_last_message(hands: Any) -> None:
    hands.start("w", "fails")
    assert hands.lost("w") == "exit code 1: RuntimeError: no such chip"
    assert hands.log("w").startswith("loading\nTraceback")
    hands.start("v", "obeys")
    hands.fleet.send("v", b"channel.send(b'last'), sys.exit(3)")
    events = hands.collect(lambda events: len(events) >= 2)
    assert events == [("v", b"last"), ("v", Lost("exit code 1: SystemExit: 3"))]


def test_a_worker_sends_no_more_than_it_was_asked_for(hands: Any) -> None:
    hands.start("w", "obeys")
    hands.fleet.send("w", b"channel.send(bytes(5_000_000))", reply_bytes=5_000_000)
    assert len(hands.collect(lambda events: len(events) >= 2)[0][1]) == 5_000_000
    hands.fleet.send("w", b"channel.send(b'fine'), channel.send(bytes(1001))", reply_bytes=1000)
    events = hands.collect(lambda events: len(events) >= 2)
    lost = Lost("sent a message of 1,001 bytes, where 1,000 are the most")
    assert events == [("w", b"fine"), ("w", lost)]


def test_kill_ends_a_stopped_worker_without_an_event(hands: Any) -> None:
    hands.start("w", "obeys")
    pid, child = hands.ask("w", "os.getpid(), child()")
    os.killpg(pid, signal.SIGSTOP)
    hands.fleet.kill("w")
    hands.start("w", "obeys")
    assert hands.ask("w", "1 + 1") == 2
    assert gone(pid, child)
    assert hands.fleet.poll(0.2) == []


def test_resources_that_no_node_has_are_refused(hands: Any) -> None:
    with pytest.raises(ConfigError, match=r"no node of .* has NPU 1; the most are CPU"):
        hands.start("w", "echo", resources={"NPU": 1})
    with pytest.raises(ConfigError, match=r"'w': .*memory"):
        hands.start("w", "echo", resources={"memory": 1})


def test_resources_that_stay_taken_lose_the_worker(
    hands: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = hands.fleet._ray.cluster_resources()["CPU"]
    hands.start("w", "obeys", resources={"CPU": everything})
    assert hands.ask("w", "os.environ['OMP_NUM_THREADS']") == f"{everything:g}"
    monkeypatch.setattr(hands.fleet, "_start_s", 1.0)
    hands.start("late", "echo", resources={"CPU": 1})
    assert hands.lost("late") == "not started in 1 s: waited for CPU 1"


def test_another_interpreter_and_environment(hands: Any, tmp_path: Path) -> None:
    script = tmp_path / "it's my own python"
    script.write_text(f'#!/bin/sh\nOWN=yes exec {sys.executable} "$@"\n')
    script.chmod(0o755)
    hands.start("w", "obeys", python=str(script), env={"CHIP": "npu:3", "PYTHONUNBUFFERED": ""})
    line = "[os.environ[name] for name in ('OWN', 'CHIP', 'PYTHONUNBUFFERED')]"
    assert hands.ask("w", line) == ["yes", "npu:3", ""]
    with pytest.raises(ConfigError, match="'/no/such/python' of generator 'v': no such program"):
        hands.start("v", "echo", python="/no/such/python")


def test_what_a_worker_prints_is_bounded_and_its_owner_s_alone(hands: Any) -> None:
    hands.start("w", "obeys")
    hands.ask("w", "setattr(__import__('interlock').processes.logs, '_MOST_BYTES', 0)")
    hands.ask("w", "os.write(1, b'x' * 1_000_000 + b' the end')")
    deadline = Deadline(60)
    while len(log := hands.log("w")) > 20_000:
        assert not deadline.over
        hands.ask("w", "1")  # and asks on
    assert log.startswith("[what was printed before is cut off]\n") and "x the end" in log
    assert (hands.directory / "w.log").stat().st_mode & 0o777 == 0o600


def test_what_ray_writes_lies_in_a_private_directory(cluster: RayFleet) -> None:
    assert cluster._directory is not None
    private = Path(cluster._directory.name)
    assert private.stat().st_mode & 0o777 == 0o700
    session = Path(cluster._ray._private.worker.global_worker.node.get_session_dir_path())
    assert session.resolve().is_relative_to(private)


def test_wake_ends_a_poll(hands: Any) -> None:
    hands.fleet.wake()
    hands.fleet.wake()
    assert hands.fleet.poll(100.0) == []
    assert hands.fleet.poll(0.0) == []


def test_a_cluster_that_is_not_there_is_refused() -> None:
    for address in ("127.0.0.1:1", "nonsense", "ray://127.0.0.1"):
        with pytest.raises(ConfigError, match=f"no Ray cluster at '{address}' .* give host:port"):
            RayFleet(address)


def _members(directory: str) -> list[Path]:
    """Processes of the cluster that writes there: by their command line, or a parent's."""
    parents, found = {}, set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[process] = (process / "stat").read_text().rpartition(") ")[2].split()[1]
            if directory.encode() in (process / "cmdline").read_bytes():
                found.add(process)
        except OSError:
            continue
    while more := {
        each for each in parents.keys() - found if Path("/proc", parents[each]) in found
    }:
        found |= more
    return sorted(found)


def test_the_cluster_listens_on_the_loopback_interface_only(hands: Any) -> None:
    hands.start("w", "obeys")
    pid = hands.ask("w", "os.getpid()")
    members = _members(hands.fleet._directory.name)
    assert Path("/proc", str(pid)) in members
    owners = {}
    for process in members:
        with suppress(OSError):
            for link in (process / "fd").iterdir():
                with suppress(OSError):
                    owners[os.readlink(link)] = (process / "cmdline").read_bytes()[:80]
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            row = line.split()
            if row[3] == "0A" and (owner := owners.get(f"socket:[{row[9]}]")):
                listening.append((_address(row[1].split(":")[0]), owner))
    assert len(listening) >= 3
    assert [each for each in listening if not each[0].is_loopback] == []


def _address(kernel: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The kernel writes words of 32 bits in the machine's own order."""
    words = [bytes.fromhex(kernel[i : i + 8])[::-1] for i in range(0, len(kernel), 8)]
    if len(words) == 1:
        return ipaddress.IPv4Address(words[0])
    address = ipaddress.IPv6Address(b"".join(words))
    return address.ipv4_mapped or address


def _client(hands: Any, **changes: str) -> tuple[int, str]:
    """What becomes of another coordinator that comes to the same cluster."""
    address = hands.fleet._ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", CLIENT, address, str(hands.directory), hands.modules]
    run = subprocess.run(
        command, env={**os.environ, **changes}, capture_output=True, text=True, timeout=100
    )
    return run.returncode, run.stdout + run.stderr


def test_the_token_opens_the_cluster(hands: Any) -> None:
    code, output = _client(hands)
    assert (code, output.splitlines()[0]) == (0, "[('w', b'hello')]"), output


def test_without_a_token_the_cluster_is_closed(hands: Any, tmp_path: Path) -> None:
    code, output = _client(hands, RAY_AUTH_TOKEN="", HOME=str(tmp_path))
    assert code == 1 and "no authentication token was found" in output


def test_no_cluster_is_started_that_would_listen_everywhere() -> None:
    code = """
import ray
from interlock.errors import ConfigError
from interlock.fleet.ray import RayFleet

try:
    RayFleet()
except ConfigError as error:
    print(error)
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "token"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=100
    )
    assert "would listen on every interface: set RAY_ENABLE_" in run.stdout, run.stderr


@pytest.mark.slow
def test_a_wrong_token_does_not_open_the_cluster(hands: Any) -> None:
    """The same holds for a client that does without authentication. Ray tries for 20 s."""
    for changes in ({"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}):
        code, output = _client(hands, **changes)
        assert code == 1 and "is it the right token?" in output


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_a_cluster_of_its_own_dies_with_a_killed_coordinator(
    hands: Any, tmp_path: Path, stopped: bool
) -> None:
    command = [sys.executable, "-c", COORDINATOR, str(tmp_path), hands.modules]
    env = os.environ | {"RAY_AUTH_TOKEN": "0" * 64}  # Ray's own agents end a minute later
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as coordinator:
        assert coordinator.stdout is not None
        worker, child = map(int, coordinator.stdout.readline().strip("()\n").split(", "))
        if stopped:
            os.killpg(worker, signal.SIGSTOP)
        (directory,) = Path("/tmp").glob(f"interlock-ray-*/ray/session_*_{coordinator.pid}")
        coordinator.kill()
    assert gone(worker, child)
    deadline = Deadline(20)
    while directory.exists():
        assert not deadline.over
        time.sleep(0.1)


def test_close_ends_the_cluster(hands: Any) -> None:
    """Closes the fleet that the tests above share: the last of this file."""
    hands.start("w", "obeys")
    pid, child = hands.ask("w", "os.getpid(), child()")
    members = {int(process.name) for process in _members(hands.fleet._directory.name)}
    assert {pid, child} < members
    hands.fleet.close()
    assert gone(*members)
