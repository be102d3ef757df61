"""The first code that runs in a sandbox: takes the last rights away, then becomes the program.

    python -I -S inside.py RIGHTS [COMMAND …]      without a command: Python source from stdin

RIGHTS are the arguments of `give_up`, marshalled, in hexadecimal. The source is 8 bytes of length
and the text; what follows on stdin is the program's own. It is on the way of every start: of the
standard library it imports only what costs nothing.
"""

import marshal
import os
import resource
import sys


def main() -> None:
    give_up(**marshal.loads(bytes.fromhex(sys.argv[1])))
    command = sys.argv[2:]
    os.closerange(3, 1 << 16)
    if command:
        os.execvp(command[0], command)
    source = _exactly(int.from_bytes(_exactly(8), "big"))
    sys.argv = ["program"]
    code = compile(source, "program", "exec", dont_inherit=True)
    sys.modules["__main__"] = main_module = type(sys)("__main__")
    exec(code, vars(main_module))


def give_up(
    ready: int,
    limits: list[tuple[int, int]],
    uid: int | None = None,
    alone: bool = False,
    still: bool = False,
    opens: dict[str, list[str]] | None = None,
) -> None:
    """Keep only these rights.

    Args:
        ready: a file that is told when all is done.
        limits: (limit of `resource`, value); set by who has no right to raise them again.
        uid: to become; None: it stays who it is.
        opens: what Landlock lets it, see landlock.restrict; None: bubblewrap has seen to that, and
            to seccomp.
        alone, still: see seccomp.program.
    """
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    for kind, value in limits:
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    if opens is not None:
        sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
        from interlock.sandbox import landlock, seccomp

        del sys.path[0]
        seccomp.die_with_parent()
        seccomp.drop_capabilities()
        landlock.restrict(**opens)
        seccomp.install(seccomp.program(alone, still))
    os.write(ready, b"1")


def _exactly(size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = os.read(0, size - len(found))
        if not piece:
            raise SystemExit("the source is cut off")
        found += piece
    return found


if __name__ == "__main__":
    main()
