"""Landlock: what a process may open, and that it signals and connects to nobody outside.

The kernel's own, for any user and without namespaces (Linux 5.13, networks 6.7, signals 6.12).
Standard library only: it is used inside the sandbox.
"""

import ctypes
import os
import struct
from collections.abc import Iterable

_CREATE, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same number on every machine
_VERSION, _PATH_BENEATH = 1, 1
_FILES = {1: 13, 2: 14, 3: 15, 5: 16}  # how many rights to files there are, from a version on
_NETWORK, _SCOPES = 0b11, 0b11  # bind and connect TCP; abstract sockets and signals
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIRECTORY = 1, 2, 4, 8


def version() -> int:
    """Of the kernel's Landlock; 0: there is none."""
    found: int = ctypes.CDLL(None).syscall(_CREATE, None, ctypes.c_size_t(0), _VERSION)
    return max(0, found)


def restrict(
    readable: Iterable[str], writable: Iterable[str] = (), listed: Iterable[str] = ()
) -> None:
    """From now on, and for all that this process starts, only these can be opened.

    Each is a file, or a directory with all below it. `readable` ones can be executed too, in
    `writable` ones anything can be done, of `listed` ones the names can be seen. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    abi = version()
    rights = max((count for since, count in _FILES.items() if since <= abi), default=0)
    if not rights:
        raise OSError("this kernel has no Landlock")
    handled = (1 << rights) - 1
    attributes = struct.pack("QQQ", handled, _NETWORK, _SCOPES)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _call(libc, _CREATE, attributes, ctypes.c_size_t(size), 0)
    allowed = [(path, _EXECUTE | _READ_FILE | _READ_DIRECTORY) for path in readable]
    allowed += [(path, handled) for path in writable]
    allowed += [(path, _READ_DIRECTORY) for path in listed]
    for path, access in allowed:
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        if not os.path.isdir(path):
            access &= _EXECUTE | _WRITE_FILE | _READ_FILE
        _call(libc, _ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", access, opened), 0)
        os.close(opened)
    if libc.prctl(38, ctypes.c_ulong(1), *[ctypes.c_ulong(0)] * 3):  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "no_new_privs is refused")
    _call(libc, _RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _call(libc: ctypes.CDLL, *arguments: object) -> int:
    result: int = libc.syscall(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "Landlock: the kernel refuses")
    return result
