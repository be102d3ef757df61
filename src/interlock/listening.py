"""The socket that a server of ours listens at."""

import socket

from interlock.errors import ConfigError


def bound(host: str, port: int) -> socket.socket:
    """Bound, and not listening yet. Raises ConfigError when it cannot be had."""
    if not 0 <= port < 2**16:
        raise ConfigError(f"--port {port} is no port; give one from 0 to 65535")
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
