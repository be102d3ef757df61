"""Every error that Interlock raises on purpose.

    InterlockError
    ├── UserError           the user can mend it: one line, the bad value, the remedy; exit code 2
    │   ├── ConfigError     a recipe, a setting or a command-line value
    │   ├── ModelError      a model that is missing, unsafe, damaged or of an unknown family
    │   ├── TaskError       a task, its data or its verifier cannot be set up
    │   │   └── TooFewProblems  to hold out as many as asked
    │   ├── SandboxError    nothing here isolates what a model wrote
    │   └── RunError        a run directory: locked, not empty, unreadable, read-only, disk full
    ├── VoidResult          it ran to its end, and nothing was learned or judged; exit code 3
    ├── BudgetSpent         a run used what [budget] lets it, and can be resumed; exit code 4
    ├── Overloaded          no room for a request now; whoever asked may ask again
    │   └── Unserved        as nobody serves, or is let to
    ├── Unavailable         what judges an answer is not there: it says nothing of the answer
    ├── MoveRefused         a device did not prove that a run may go on there; exit code 1
    ├── SyncError           a weight version is missing, torn or not what it says; exit code 1
    └── TrainingError       the run cannot go on (bad steps, no generator left, …); exit code 1

Anything else that escapes is a bug and keeps its traceback.
"""


class InterlockError(Exception):
    """Base of everything raised on purpose."""


class UserError(InterlockError):
    """The user can mend it; the message is one line that names the bad value and the remedy."""


class ConfigError(UserError):
    """A recipe, a setting or a command-line value is wrong."""


class ModelError(UserError):
    """A model directory is missing, unsafe, damaged or of a family the decoder does not know."""


class TaskError(UserError):
    """A task, its data or its verifier cannot be set up."""


class TooFewProblems(TaskError):
    """A task has fewer problems than are to be held out; at most `most` can be.

    The remedy is that of a recipe; a verb that was told the number has its own.
    """

    def __init__(self, what: str, most: int, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what, self.most, self.remedy = what, most, remedy

    def of(self, task: str) -> "TooFewProblems":
        """The same of one of several tasks."""
        return TooFewProblems(f"{task}: {self.what}", self.most, self.remedy)


class RunError(UserError):
    """A run directory is locked, occupied, unreadable, read-only or out of space."""


class VoidResult(InterlockError):
    """What was asked for ran to its end, but nothing was learned, or no answer could be judged."""


class BudgetSpent(InterlockError):
    """A run has used what its budget lets it: a checkpoint is kept, and `--resume` goes on."""


class SandboxError(UserError):
    """Nothing on this machine isolates what a model wrote, or a sandbox does not start."""


class Unavailable(InterlockError):
    """What judges an answer is not there: a service that is down, a process that does not start.

    A verifier raises it for what no answer can have caused. The answer is then judged again, and at
    last left out of every figure, never scored 0 (docs/recipes.md).
    """


class Overloaded(InterlockError):
    """There is no room for a request now: the same one may be served in `retry_s` seconds."""

    def __init__(self, message: str, retry_s: float) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class Unserved(Overloaded):
    """Nobody serves now, or everybody who does is to take nothing more."""


class SyncError(InterlockError):
    """A weight version is missing, torn, out of order or not what its manifest says."""


class MoveRefused(InterlockError):
    """A device has not proved that a run may go on there; nothing of the run was changed."""


class TrainingError(InterlockError):
    """The run cannot go on, though the settings were well formed."""
