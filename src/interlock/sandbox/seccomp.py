"""System calls that nothing in a sandbox may make, as a filter that the kernel runs (seccomp).

What may do harm that namespaces, Landlock and rlimits do not stop: memory that no limit counts,
other processes of the same user, the terminal, kernel interfaces with a history of holes. A call
that is denied fails with EPERM. Standard library only: it is used inside the sandbox.
"""

import ctypes
import errno
import os
import struct

# name: number on x86_64, on aarch64; None: there is no such call.
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89), "add_key": (248, 217), "bpf": (321, 280), "chmod": (90, None),
    "chown": (92, None), "chroot": (161, 51), "clone": (56, 220), "clone3": (435, 435),
    "creat": (85, None), "execve": (59, 221), "execveat": (322, 281), "fallocate": (285, 47),
    "fanotify_init": (300, 262), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "fchown": (93, 55), "fchownat": (260, 54), "fcntl": (72, 25), "file_setattr": (469, 469),
    "fork": (57, None), "fremovexattr": (199, 16), "fsconfig": (431, 431), "fsetxattr": (190, 7),
    "fsmount": (432, 432), "fsopen": (430, 430), "fspick": (433, 433), "ftruncate": (77, 46),
    "futimesat": (261, None), "io_setup": (206, 0), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "io_uring_setup": (425, 425), "ioctl": (16, 29),
    "ioprio_set": (251, 30), "kcmp": (312, 272), "kexec_file_load": (320, 294),
    "kexec_load": (246, 104), "keyctl": (250, 219), "kill": (62, 129), "lchown": (94, None),
    "link": (86, None), "linkat": (265, 37), "lremovexattr": (198, 15), "lsetxattr": (189, 6),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "migrate_pages": (256, 238),
    "mkdir": (83, None), "mkdirat": (258, 34), "mknod": (133, None), "mknodat": (259, 33),
    "modify_ldt": (154, None), "mount": (165, 40), "mount_setattr": (442, 442),
    "move_mount": (429, 429), "move_pages": (279, 239), "mq_open": (240, 180), "msgget": (68, 186),
    "name_to_handle_at": (303, 264), "open": (2, None), "open_by_handle_at": (304, 265),
    "open_tree": (428, 428), "openat": (257, 56), "openat2": (437, 437),
    "perf_event_open": (298, 241), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41), "prctl": (157, 167), "prlimit64": (302, 261),
    "process_madvise": (440, 440), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "ptrace": (101, 117), "quotactl": (179, 60), "reboot": (169, 142), "removexattr": (197, 14),
    "removexattrat": (466, 466), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "request_key": (249, 218), "rmdir": (84, None),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "semget": (64, 190), "setns": (308, 268), "setpriority": (141, 140), "setxattr": (188, 5),
    "setxattrat": (463, 463), "shmget": (29, 194), "socket": (41, 198), "swapon": (167, 224),
    "symlink": (88, None), "symlinkat": (266, 36), "sync": (162, 81), "syncfs": (306, 267),
    "syslog": (103, 116), "tgkill": (234, 131), "tkill": (200, 130), "truncate": (76, 45),
    "umount2": (166, 39), "unlink": (87, None), "unlinkat": (263, 35), "unshare": (272, 97),
    "userfaultfd": (323, 282), "utime": (132, None), "utimensat": (280, 88), "utimes": (235, None),
    "vfork": (58, None),
}  # fmt: skip
_STARTS = ("clone", "fork", "vfork")
_SIGNALS = (
    "kill", "pidfd_send_signal", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "tgkill", "tkill"
)  # fmt: skip
_PROGRAMS = ("execve", "execveat")
_CHANGES = (
    "chmod", "chown", "creat", "fallocate", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchownat",
    "file_setattr", "fremovexattr", "fsetxattr", "ftruncate", "futimesat", "lchown", "link",
    "linkat", "lremovexattr", "lsetxattr", "mkdir", "mkdirat", "mknod", "mknodat", "openat2",
    "removexattr", "removexattrat", "rename", "renameat", "renameat2", "rmdir", "setxattr",
    "setxattrat", "symlink", "symlinkat", "truncate", "unlink", "unlinkat", "utime", "utimensat",
    "utimes",
)  # fmt: skip
_OPEN_TO_CHANGE = 0x400243  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, and O_TMPFILE's own bit
# What is denied for some arguments only, or when it is asked for.
_CONDITIONAL = {*_STARTS, *_SIGNALS, *_PROGRAMS, *_CHANGES, "clone3", "ioctl", "prlimit64"}
_CONDITIONAL |= {"open", "openat", "fcntl", "prctl"}
_TERMINAL = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: type into the terminal that one was started from
# FIOSETOWN, SIOCSPGRP, F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE: have the kernel send a signal
# to somebody when a file can be read, or keep others from opening one.
_OWNER = (0x8901, 0x8902)
_OWNER_OF_FILE = (8, 10, 15, 1024)
_FLAGS = (0x40086602, 0x40047602, 0x401C5820)  # FS_IOC_SETFLAGS, …SETVERSION, …FSSETXATTR
_PARENT_DEATH = 1  # PR_SET_PDEATHSIG: see `die_with_parent`
_NEW_NAMESPACES = 0x7E020080  # any CLONE_NEW… flag
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000  # the second set of numbers on x86_64

_NUMBER_AT, _ARCH_AT, _ARGUMENT_AT = 0, 4, 16  # of struct seccomp_data; arguments of 8 bytes
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_DENY = _ERRNO | errno.EPERM
_SET_NO_NEW_PRIVS, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2


def supported() -> bool:
    """Whether this machine's numbers are known."""
    return os.uname().machine in _AUDIT_ARCH


def program(alone: bool, still: bool = False, bare: bool = False) -> bytes:
    """The filter: an array of struct sock_filter.

    `alone`: it starts no process and no thread, signals none, and dies with its parent. `still`: it
    changes nothing of what files are called, whose they are, what they are about. `bare`: both,
    and it neither becomes another program nor opens a file to write.
    """
    alone, still = alone or bare, still or bare
    machine = os.uname().machine
    column = list(_AUDIT_ARCH).index(machine)
    # `then` and `no`: how many steps are left out when the test holds, and when it does not.
    code = [
        _op(_LOAD, _ARCH_AT),
        _op(_EQUAL, _AUDIT_ARCH[machine], then=1),
        _op(_RETURN, _KILL),
        _op(_LOAD, _NUMBER_AT),
    ]
    if machine == "x86_64":
        code += [_op(_AT_LEAST, _X32, no=1), _op(_RETURN, _DENY)]
    denied = sorted(set(_NUMBERS) - _CONDITIONAL)
    denied += [*_STARTS, *_SIGNALS] if alone else []
    denied += _CHANGES if still else []
    denied += _PROGRAMS if bare else []
    for name in denied:
        if (number := _NUMBERS[name][column]) is not None:
            code += [_op(_EQUAL, number, no=1), _op(_RETURN, _DENY)]

    def where(name: str, argument: int, *tests: bytes) -> None:
        """Deny a call when one of the tests of an argument's low half falls through."""
        if (number := _NUMBERS[name][column]) is not None:
            for test in tests:
                body = [_op(_LOAD, _ARGUMENT_AT + 8 * argument), test, _op(_RETURN, _DENY)]
                body.append(_op(_LOAD, _NUMBER_AT))
                code.extend([_op(_EQUAL, number, no=len(body)), *body])

    def equal(*values: int) -> list[bytes]:
        return [_op(_EQUAL, value, no=1) for value in values]

    # glibc takes clone3 where it is there, whose flags are out of a filter's sight.
    clone3 = _NUMBERS["clone3"][column]
    assert clone3 is not None
    code += [_op(_EQUAL, clone3, no=1), _op(_RETURN, _ERRNO | errno.ENOSYS)]
    where("clone", 0, _op(_ANY_BIT, _NEW_NAMESPACES, no=1))
    where("ioctl", 1, *equal(*_TERMINAL, *_OWNER, *(_FLAGS if still else ())))
    where("fcntl", 1, *equal(*_OWNER_OF_FILE))
    # The limits of others: argument 0 is the process, 0 the caller itself.
    where("prlimit64", 0, _op(_EQUAL, 0, then=1))
    if alone:
        where("prctl", 0, *equal(_PARENT_DEATH))
    if bare:
        where("open", 1, _op(_ANY_BIT, _OPEN_TO_CHANGE, no=1))
        where("openat", 2, _op(_ANY_BIT, _OPEN_TO_CHANGE, no=1))
    return b"".join([*code, _op(_RETURN, _ALLOW)])


def install(filter_program: bytes) -> None:
    """Put this thread, and all that it starts, under the filter for good. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    held = ctypes.create_string_buffer(filter_program, len(filter_program))
    described = struct.pack("HxxxxxxP", len(filter_program) // 8, ctypes.addressof(held))
    zero = ctypes.c_ulong(0)
    for arguments in (
        (_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero),
        (_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), described, zero, zero),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "seccomp: the kernel takes no filter")


def die_with_parent() -> None:
    """Have this process killed when the thread that started it is gone."""
    ctypes.CDLL(None).prctl(1, ctypes.c_ulong(9))  # PR_SET_PDEATHSIG, SIGKILL


def drop_capabilities() -> None:
    """Leave root nothing but its name, whatever it starts. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0:
        libc.prctl(28, ctypes.c_ulong(0x2F))  # PR_SET_SECUREBITS: a program gives root none back
    nothing = struct.pack("Ii", 0x20080522, 0), struct.pack("6I", *[0] * 6)
    if libc.capset(*nothing):
        raise OSError(ctypes.get_errno(), "capabilities cannot be dropped")


def hide_memory() -> None:
    """Let no process of the same user look into this one's memory, files and environment."""
    ctypes.CDLL(None).prctl(4, ctypes.c_ulong(0))  # PR_SET_DUMPABLE


def _op(code: int, value: int, then: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, no, value)
