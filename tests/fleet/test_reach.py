"""Workers behind a remote shell: real processes, and shells that do what ssh does."""

import sys
from pathlib import Path
from typing import Any

import pytest
from remains import gone, runs

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def shell(tmp_path: Path) -> Any:
    """Makes the words that reach a machine: a script, which is given the machine's name first."""

    def make(script: str) -> list[str]:
        path = tmp_path / "shell"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        return [str(path), "machine"]

    return make


# The worker is in a session of its own: that it ends is its own doing.
ELSEWHERE = 'shift; exec setsid -w "$@"'


def test_messages_go_both_ways(hands: Any, shell: Any) -> None:
    sizes = [0, 1, 8, 4096, (1 << 18) + 1, 5_000_000]
    hands.start("w", "echo", python=sys.executable, reach=shell(ELSEWHERE))
    sent = [bytes([index + 1]) * size for index, size in enumerate(sizes)]
    for message in sent:
        hands.fleet.send("w", message, reply_bytes=max(sizes))
    events = hands.collect(lambda events: len(events) >= len(sent))
    assert [message for _, message in events] == sent


def test_a_shell_that_reads_its_words_again_changes_nothing(hands: Any, shell: Any) -> None:
    hands.start("w", "echo", python=sys.executable, reach=shell('shift; exec sh -c "$*"'))
    hands.fleet.send("w", b"hello")
    assert hands.next() == ("w", b"hello")


def test_what_is_printed_there_is_no_message(hands: Any, shell: Any) -> None:
    hands.start("w", "obeys", python=sys.executable, reach=shell(ELSEWHERE))
    assert hands.ask("w", "print('a library says something') or 7") == 7
    assert "a library says something" in hands.log("w")


def test_the_process_there_ends_with_the_fleet(hands: Any, shell: Any) -> None:
    hands.start("w", "obeys", python=sys.executable, reach=shell(ELSEWHERE))
    pid = hands.ask("w", "os.getpid()")
    hands.fleet.send("w", b"time.sleep(1000)")
    assert runs(pid)
    hands.fleet.kill("w")
    assert gone(pid)


def test_why_a_machine_is_not_reached_is_told(hands: Any, shell: Any) -> None:
    words = "ssh: connect to host machine port 22: No route to host"
    hands.start("w", "echo", python=sys.executable, reach=shell(f"echo {words!r} >&2; exit 255"))
    assert hands.lost("w") == f"exit code 255: {words}"


def test_a_shell_that_prints_something_first_is_no_worker(hands: Any, shell: Any) -> None:
    hands.start(
        "w",
        "echo",
        python=sys.executable,
        reach=shell(f"echo Welcome to this machine; {ELSEWHERE}"),
    )
    assert "sent a message of" in hands.lost("w")
