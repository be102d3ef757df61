"""A program and what comes of it, where it does nothing wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from interlock.errors import SandboxError
from interlock.sandbox import canary, ways
from interlock.sandbox.canary import open_sandbox, retried
from interlock.sandbox.running import EndedBy, NotStarted, Ran, run
from interlock.sandbox.slots import Slot
from interlock.sandbox.ways import Bubblewrap, Way

SOURCE = Path(__file__).parents[2] / "src"


def test_source_has_its_stdin_output_and_exit_code(way: Way, slot: Slot) -> None:
    source = "import sys\nprint(sys.stdin.read()[::-1])\nprint('no', file=sys.stderr)\nsys.exit(3)"
    assert run(way, source, slot=slot, stdin=b"abc") == Ran(EndedBy.ITSELF, 3, b"cba\n", b"no\n")
    assert run(way, "print('\\u00e9')", slot=slot).output == "é\n".encode()


def test_large_input_and_output_pass_each_other(way: Way, slot: Slot) -> None:
    source = "import sys\nfor line in sys.stdin: print(line, end='')"
    lines = b"x" * 99 + b"\n"
    ran = run(way, source, slot=slot, stdin=lines * 20_000, most_bytes=3_000_000, deadline_s=60)
    assert ran.well and ran.output == lines * 20_000


def test_a_command_and_what_was_made_visible(way: Way, slot: Slot, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("42")
    (tmp_path / "hidden").write_text("43")
    visible = [tmp_path / "data"]
    ran = run(way, ["/bin/cat", str(tmp_path / "data")], slot=slot, visible=visible)
    assert (ran.code, ran.output) == (0, b"42")
    ran = run(way, ["/bin/cat", str(tmp_path / "hidden")], slot=slot, visible=visible)
    assert ran.code == 1 and not ran.output


def test_a_signal_reads_as_in_a_shell(way: Way, slot: Slot) -> None:
    assert run(way, "import ctypes\nctypes.string_at(0)", slot=slot).code == 128 + 11


def test_what_does_not_start_is_no_verdict_on_the_program(slot: Slot) -> None:
    broken = Bubblewrap()
    broken._program = "/bin/false"
    with pytest.raises(NotStarted):
        run(broken, "print(1)", slot=slot)
    broken._program = "/no/such/program"
    with pytest.raises(NotStarted, match="No such file"):
        run(broken, "print(1)", slot=slot)


def test_a_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "_PAUSES_S", (0.0, 0.0))
    tries = []

    def third() -> Ran:
        tries.append(1)
        if len(tries) < 3:
            raise NotStarted("can't fork for pid 1")
        return Ran(EndedBy.ITSELF, 0, b"", b"")

    assert retried(third).well and len(tries) == 3


class Leaky(Bubblewrap):
    """Starts everything, isolates nothing."""

    name = "leaky"

    def around(self, slot: Slot, *arguments: object, **more: object) -> ways.Around:
        slot.uid = None
        found = super().around(slot, *arguments, **more)  # type: ignore[arg-type]
        found.command = found.command[found.command.index("--") + 1 :]
        return found


def test_a_way_that_does_not_isolate_is_found_out() -> None:
    why = canary.fault(Leaky())
    assert why is not None
    for escaped in ("connects", "reads", "writes", "sees other processes"):
        assert escaped in why
    # Where we are an ordinary user, as many processes as it is allowed run already.
    assert "outlives" in why or os.geteuid() != 0


def test_where_nothing_isolates_it_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "WAYS", (Leaky,))
    with pytest.raises(SandboxError) as caught:
        open_sandbox.__wrapped__()
    assert "leaky: what runs in it connects" in str(caught.value)
    assert 'sandbox = "none"' in str(caught.value) and "\n" not in str(caught.value)


NOBODY = """
import os, subprocess
os.setgroups([]); os.setgid(65534); os.setuid(65534)
os.environ["HOME"] = "/nonexistent"
from interlock.sandbox import landlock
from interlock.sandbox.canary import fault
from interlock.sandbox.limits import ResourceLimits
from interlock.sandbox.running import run
from interlock.sandbox.slots import Slot
from interlock.sandbox.ways import WAYS
BOMB = "import os\\nwhile True:\\n    try: os.fork()\\n    except OSError: pass"
new = ["unshare", "--user", "--map-root-user", "--mount", "--net", "--pid", "--fork"]
allowed = [subprocess.run([*new, "true"], stderr=-3).returncode == 0, landlock.version() > 0]
for kind, kernel_allows in zip(WAYS, allowed):
    if not kernel_allows:
        continue
    way = kind()
    why = way.why_not() or fault(way)
    with Slot() as slot:
        if why is None:
            run(way, BOMB, slot=slot, limits=ResourceLimits(processes=8), deadline_s=0.5)
            why = run(way, "import os; print(os.getuid())", slot=slot).output.decode().strip()
    print(way.name, slot.uid, why)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_ordinary_user_has_a_sandbox_too() -> None:
    python = next((p for p in (sys.executable, "/usr/bin/python3") if _for_everybody(p)), None)
    if python is None:
        pytest.skip("no interpreter of this version that an ordinary user may read")
    packages = [path for path in sys.path if path.endswith("site-packages")]
    path = os.pathsep.join([str(SOURCE), *packages])
    done = subprocess.run(
        [python, "-c", NOBODY], env={"PYTHONPATH": path}, capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    found = done.stdout.splitlines()
    if not found:
        pytest.skip("the kernel has no Landlock, and no namespaces for ordinary users")
    assert set(found) <= {"bubblewrap None 65534", "Landlock None 65534"}


def _for_everybody(python: str) -> bool:
    code = "import os; os.setgid(65534); os.setuid(65534); import sys, json; print(sys.version)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd="/")
    return done.returncode == 0 and done.stdout.split(".")[:2] == sys.version.split(".")[:2]


def test_slots_of_two_processes_differ() -> None:
    code = "import sys; from interlock.sandbox.slots import Slot; print(Slot().uid); input()"
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with (
        subprocess.Popen([sys.executable, "-c", code], env=env, stdin=-1, stdout=-1) as other,
        Slot() as ours,
        Slot() as second,
    ):
        assert other.stdin and other.stdout
        theirs = other.stdout.readline().decode().strip()
        other.stdin.close()
    if os.geteuid() == 0:
        assert len({theirs, str(ours.uid), str(second.uid)}) == 3
    else:
        assert (theirs, ours.uid) == ("None", None)
