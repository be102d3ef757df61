"""The run directory: everything a run leaves behind. What each file is stands in `run.py`.

`files` writes so that no kill leaves a thing half done, `ledger` keeps the groups, `lines` reads
metrics and events, `run` ties them.
"""

from interlock.rundir.files import JsonLines, atomic_directory, storage_errors, write_atomically
from interlock.rundir.ledger import Ledger
from interlock.rundir.run import Checkpoint, Manifest, RunDir, RunView, Session

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
