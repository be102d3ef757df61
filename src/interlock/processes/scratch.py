"""Directories that do not outlive the process that made them, however it ends."""

import secrets
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from interlock.processes.reaper import reaper


class Scratch:
    """A new, empty directory of its owner's alone, removed by `cleanup`, or by the reaper.

        with Scratch("interlock-qualify-") as directory:
            (directory / "log").touch()

    It lies in `where`, else where temporary files do (TMPDIR). Raises OSError.
    """

    def __init__(self, prefix: str, where: str | None = None) -> None:
        self._path = Path(where or tempfile.gettempdir(), prefix + secrets.token_hex(8)).absolute()
        reaper.add(self._path)  # before it is there: no kill comes between
        try:
            self._path.mkdir(mode=0o700)
        except OSError:
            reaper.remove(self._path)
            raise

    @property
    def name(self) -> str:
        """Its path."""
        return str(self._path)

    def cleanup(self) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
        reaper.remove(self._path)

    def __enter__(self) -> Path:
        return self._path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cleanup()
