"""Named blobs under one URL, local or remote; knows nothing of what they are.

    path, file://           ── write ──> temporary sibling ── fsync ──> rename   (rundir)
    s3://, gs://, memory:// ── write ──> one put
    http(s)://              read only, and by name: a server need not list directories

Every wait on a network has a deadline: connecting and each silence by the protocol's own settings
where it has them, and the whole transfer, whatever the protocol, by leaving it behind in a thread.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from interlock.errors import ConfigError, RunError, SyncError
from interlock.rundir import storage_errors, write_atomically
from interlock.rundir.files import recover
from interlock.text import described, hide_credentials

_CONNECT_S = 20.0
_SILENCE_S = 60.0  # within a transfer
_SLOWEST = 64 * 1024  # bytes per second, below which a transfer is given up
_READ_ONLY = ("http", "https")
_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")  # no directories to be made

T = TypeVar("T")


class MissingError(SyncError):
    """There is no blob of this name."""


class Storage:
    """Reads, writes, lists and removes blobs. Names are the caller's own, never from outside.

    Raises ConfigError when the URL cannot be used, at once. Later errors are RunError, with the
    remedy, when a local disk cannot be written, and SyncError for everything else.
    """

    def __init__(self, url: str) -> None:
        self.url = hide_credentials(url)  # as it may be told
        if "::" in url:
            raise ConfigError(
                f"sync url {self.url!r} is a chain; give one without '::', which may cache"
            )
        protocol = url.partition("://")[0] if "://" in url else "file"
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url, **_settings(protocol))
        except ImportError as error:
            raise ConfigError(f"sync url {self.url!r} needs a package more: {error}") from None
        except Exception as error:  # every protocol has its own
            why = hide_credentials(described(error))
            raise ConfigError(f"sync url {self.url!r} cannot be used: {why}") from None
        self.writable = protocol not in _READ_ONLY
        self._flat = protocol in _BUCKETS
        self._local = Path(self._root) if isinstance(self._fs, LocalFileSystem) else None
        self._made: list[Path] = []  # the innermost first

    def check_writable(self) -> None:
        """Raise ConfigError when this kind of store can only be read."""
        if not self.writable:
            raise ConfigError(
                f"sync url {self.url!r} can only be read; publish to a path or a bucket, and set "
                "[[generator]] sync_url to this one"
            )

    def prepare(self) -> None:
        """Make the directory, and put away what a killed writer left. For the one writer only."""
        self.check_writable()
        if self._local is not None:
            with _disk(self._local):
                places = (self._local, *self._local.parents)
                self._made = [place for place in places if not place.exists()]
                self._local.mkdir(parents=True, exist_ok=True)
                recover(self._local)
        elif not self._flat:  # making a "directory" here would make a bucket of a misspelt name
            self._ask("prepare", 0, lambda: self._fs.makedirs(self._root, exist_ok=True))

    def withdraw(self) -> None:
        """Remove the local directories that `prepare` made, as far as they are empty."""
        with suppress(OSError):
            for place in self._made:
                place.rmdir()

    def write(self, name: str, data: bytes) -> None:
        """Put a blob in place of any of this name. On an error the old one stays, or none."""
        if self._local is not None:
            with _disk(self._local):
                write_atomically(self._local / name, data)
            return
        try:
            self._ask(name, len(data), lambda: self._fs.pipe_file(self._path(name), data))
        except MissingError:
            raise SyncError(f"{self.url}: there is no such bucket or directory") from None

    def read(self, name: str, limit: int) -> bytes:
        """A blob of at most `limit` bytes. Raises MissingError, or SyncError when it is longer."""
        data = self._ask(name, limit, lambda: self._read(name, limit))
        if len(data) > limit:
            raise SyncError(f"{self.url}: {name} is longer than {limit} bytes")
        return data

    def remove(self, name: str) -> None:
        """Remove a blob, if it is there."""
        try:
            if self._local is not None:
                with _disk(self._local):
                    (self._local / name).unlink(missing_ok=True)
            else:
                self._ask(name, 0, lambda: self._fs.rm_file(self._path(name)))
        except MissingError:
            pass

    def names(self) -> list[str]:
        """Of all blobs, whosever they are."""
        if self._local is not None:
            with _disk(self._local):
                return [path.name for path in self._local.iterdir()]
        self._fs.invalidate_cache()
        found = self._ask("list", 0, lambda: self._fs.ls(self._root, detail=False))
        return [path.rstrip("/").rsplit("/", 1)[-1] for path in found]

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _read(self, name: str, limit: int) -> bytes:
        # http: as a stream, for a server that cannot serve ranges and to stop at the limit.
        options = {} if self.writable else {"block_size": 0}
        parts, size = [], 0
        with self._fs.open(self._path(name), "rb", **options) as file:
            while size <= limit and (part := file.read(min(1 << 20, limit + 1 - size))):
                parts.append(part)
                size += len(part)
        return b"".join(parts)

    def _ask(self, name: str, size: int, call: Callable[[], T]) -> T:
        """The answer of `call`, or a SyncError when it fails or outlasts what `size` allows."""
        seconds = _CONNECT_S + _SILENCE_S + size / _SLOWEST
        try:
            return call() if self._local is not None else _within(seconds, call)
        except FileNotFoundError:
            raise MissingError(f"{self.url}: there is no {name}") from None
        except TimeoutError:
            raise SyncError(f"{self.url}: {name}: no answer in time") from None
        except Exception as error:  # every protocol has its own
            why = hide_credentials(described(error))
            raise SyncError(f"{self.url}: {name}: {why}") from None


@contextmanager
def _disk(directory: Path) -> Iterator[None]:
    """storage_errors, and a RunError also for what it passes on of the disk's."""
    try:
        with storage_errors(directory):
            yield
    except OSError as error:
        raise RunError(f"{directory}: {described(error)}") from error


def _settings(protocol: str) -> dict[str, Any]:
    """Deadlines in the protocol's own terms."""
    if protocol in _READ_ONLY:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
        return {"client_kwargs": {"timeout": timeout}, "use_listings_cache": False}
    if protocol in ("s3", "s3a"):
        waits = {"connect_timeout": _CONNECT_S, "read_timeout": _SILENCE_S}
        return {"config_kwargs": waits, "use_listings_cache": False}
    return {}


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Raises TimeoutError, and leaves `call` behind in a thread that ends with the process."""
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return answer.result(seconds)
