"""Forks of a real child: they answer, die, hang and leave nothing behind."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from remains import gone

from interlock.processes.child import Child, ChildEnded, ChildLate

pytestmark = pytest.mark.timeout(60)
Forking = Callable[[str], Child]


@pytest.fixture
def forking(start: Callable[..., Child], tmp_path: Path) -> Forking:
    """`forking(source)`: a child that has forks do the work of `source`, one for each message."""

    def make(source: str) -> Child:
        module = f"import ctypes, os, signal, sys, time\ndef serve(channel):\n    {source}\n"
        (tmp_path / "answers.py").write_text(module)
        return start("""
            from interlock.processes.fork import in_fork
            import answers
            while (message := channel.receive()) is not None:
                channel.send(in_fork("answers", message))
            """)

    return make


def test_each_message_has_a_process_of_its_own_and_what_was_imported(forking: Forking) -> None:
    child = forking(
        "sys.seen = getattr(sys, 'seen', 0) + 1; "
        "told = [channel.receive().decode(), sys.seen, os.getpid(), os.getppid()]; "
        "channel.send(repr(told).encode()); time.sleep(1000)"  # whoever has answered is not needed
    )
    answers = [eval(child.ask(message, 30, 100)) for message in (b"one", b"two")]
    assert [told[:2] for told in answers] == [["one", 1], ["two", 1]]
    forks = {told[2] for told in answers}
    assert len(forks) == 2 and {told[3] for told in answers} == {child.pid}
    assert gone(*forks)


@pytest.mark.parametrize(
    ("source", "how", "words"),
    [
        ("os.kill(os.getpid(), 9)", "signal 9", ""),
        ("ctypes.string_at(8)", "signal 11", "Fatal Python error: Segmentation fault"),
        ("os.abort()", "signal 6", "Fatal Python error: Aborted"),
        ("print('my last', flush=True); os._exit(7)", "exit code 7: my last", "my last"),
        ("raise RuntimeError('no chip')", "exit code 1: RuntimeError: no chip", "answers.py"),
        ("pass", "exit code 0", ""),
    ],
)
def test_without_an_answer_the_child_ends_as_its_fork_did(
    forking: Forking, source: str, how: str, words: str
) -> None:
    child = forking(source)
    with pytest.raises(ChildEnded) as caught:
        child.ask(b"", 30, 100)
    assert str(caught.value) == how
    assert words in child.last_words()
    assert child.last_words().count("Fatal Python error") <= 1


def test_a_fork_that_hangs_is_killed_with_the_child(forking: Forking) -> None:
    child = forking("print(os.getpid(), flush=True); 9**9**9**9")  # no other thread of it runs
    with pytest.raises(ChildLate):
        child.ask(b"", 2, 100)
    fork = int(child.last_words())
    assert child.close() == "signal 9"
    assert gone(fork)


def test_a_fork_ends_soon_after_the_child(forking: Forking) -> None:
    child = forking("print(os.getpid(), flush=True); time.sleep(1000)")
    with pytest.raises(ChildLate):
        child.ask(b"", 2, 100)
    fork = int(child.last_words())
    os.kill(child.pid, signal.SIGKILL)  # it alone
    assert gone(fork)


def test_last_words_are_of_the_last_fork(forking: Forking) -> None:
    child = forking("print(channel.receive().decode(), flush=True); channel.send(b'')")
    for message in (b"first", b"second"):
        child.forget_words()
        child.ask(message, 30, 0)
        assert child.last_words() == f"{message.decode()}\n"
