"""The run directory: everything a run leaves behind. What each file is stands in `run.py`.

`files` writes so that no kill leaves a thing half done, `ledger` keeps the groups, `lines` reads
metrics and events, `view` is a run that is read and `run` one that is written.
"""

from interlock.rundir.files import JsonLines, atomic_directory, storage_errors, write_atomically
from interlock.rundir.ledger import Ledger
from interlock.rundir.run import RunDir
from interlock.rundir.view import Checkpoint, Manifest, RunView, Session

__all__ = [
    "Checkpoint",
    "JsonLines",
    "Ledger",
    "Manifest",
    "RunDir",
    "RunView",
    "Session",
    "atomic_directory",
    "storage_errors",
    "write_atomically",
]
