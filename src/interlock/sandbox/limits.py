"""How much of the machine a program in a sandbox may use."""

import resource

import msgspec

_TIMERS = 64  # and signals that wait: memory of the kernel


class ResourceLimits(msgspec.Struct, frozen=True):
    """0 is no limit, but where it says otherwise.

    The memory of a sandbox is at most processes × memory_mb + scratch_mb.
    """

    memory_mb: int = 512  # address space of each process
    cpu_s: int = 10  # of each process
    scratch_mb: int = 16  # of all of /tmp, and of a file; 0: nothing at all can be written
    processes: int = 1  # and threads, at a time; 1: it starts none, 0: only code of ours runs
    open_files: int = 64

    def resources(self) -> list[tuple[int, int]]:
        """As (limit of `resource`, value)."""
        found = [
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, max(1, self.scratch_mb) << 20),
            (resource.RLIMIT_MSGQUEUE, 0),
            (resource.RLIMIT_MEMLOCK, 0),
            (resource.RLIMIT_SIGPENDING, _TIMERS),
            (resource.RLIMIT_NOFILE, self.open_files),
        ]
        if self.memory_mb:
            found.append((resource.RLIMIT_AS, self.memory_mb << 20))
        if self.cpu_s:
            found.append((resource.RLIMIT_CPU, self.cpu_s))
        return found
