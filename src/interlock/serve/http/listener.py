"""The socket that a server listens at, and as many files as its connections need."""

import resource
import socket

from interlock.errors import ConfigError

_OTHER_FILES = 256


def allow_files(connections: int) -> None:
    """As many open files as connections need, if this process may have them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wished = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wished:
        most = wished if hard == resource.RLIM_INFINITY else min(hard, wished)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def listen(host: str, port: int) -> socket.socket:
    """Raises ConfigError when it cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        said = f"cannot listen at {host} port {port}: {error.strerror}"
        raise ConfigError(f"{said}; give another --host or --port") from None
    made.set_inheritable(False)
    return made
