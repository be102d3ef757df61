"""What was drawn for the steps of a stage, and which problems were retired: in the ledger, before
any of it is asked.

A stage that draws by pass rate has its stream of problems from here. Its table is made with the
first draw, so that the ledger of any other run is as it was.
"""

from interlock.errors import RunError
from interlock.records.rl import DrawnProblems
from interlock.rundir.ledger import Ledger, sealed

_TABLE = (
    "CREATE TABLE IF NOT EXISTS draws (stage INTEGER NOT NULL, number INTEGER NOT NULL, "
    "payload BLOB NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (stage, number))"
)
_THERE = "SELECT 1 FROM sqlite_schema WHERE name = 'draws'"


class Draws:
    """Those of one stage, numbered from 1 without a gap."""

    def __init__(self, ledger: Ledger, stage: int) -> None:
        self._ledger, self._stage = ledger, stage

    def record(self, number: int, draw: DrawnProblems) -> None:
        """Durable on return. What is drawn is drawn: recording another one is a RunError."""
        row = self._stage, *sealed(draw, "draws", self._stage, number)
        with self._ledger.transaction() as database:
            database.execute(_TABLE)
            database.execute("INSERT OR IGNORE INTO draws VALUES (?, ?, ?, ?)", row)
            (digest,) = database.execute(
                "SELECT sha256 FROM draws WHERE stage = ? AND number = ?", row[:2]
            ).fetchone()
            if digest != row[3]:
                raise RunError(
                    f"{self._ledger.path} holds another draw {number} of stage {self._stage}; "
                    "start again in another directory"
                )

    def forget_after(self, step: int) -> None:
        """Drop what was drawn by what later steps had shown, and all draws of later stages."""
        kept = [draw for draw in self.read() if draw.known <= step]
        with self._ledger.transaction() as database:
            if not database.execute(_THERE).fetchone():
                return
            later = "DELETE FROM draws WHERE stage > ? OR (stage = ? AND number > ?)"
            database.execute(later, (self._stage, self._stage, len(kept)))

    def read(self) -> list[DrawnProblems]:
        """All of them. Raises RunError when one is damaged, or lost."""
        with self._ledger.access() as database:
            there = database.execute(_THERE).fetchone()
            rows = (
                database.execute(
                    "SELECT number, payload, sha256 FROM draws WHERE stage = ? ORDER BY number",
                    (self._stage,),
                ).fetchall()
                if there
                else []
            )
        found = []
        for expected, (number, payload, digest) in enumerate(rows, start=1):
            where = f"{self._ledger.path}: draws, stage {self._stage} number {number}"
            if number != expected:
                raise RunError(f"{where}: the one before it is lost; restore the ledger")
            key = "draws", self._stage, number
            found.append(self._ledger.unsealed(where, DrawnProblems, key, payload, digest))
        return found
