"""As many open files as the connections of a server need."""

import resource

_OTHER_FILES = 256


def allow_files(connections: int) -> None:
    """As many open files as connections need, if this process may have them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wished = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wished:
        most = wished if hard == resource.RLIM_INFINITY else min(hard, wished)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
