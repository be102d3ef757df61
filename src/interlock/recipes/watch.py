"""What a run tells whoever watches it live. The command line draws it; by default nobody looks."""

from typing import Any


class Watch:
    """Every method may be overridden; none may raise or take long."""

    def stage(self, index: int, kind: str, done: int, steps: int) -> None:
        """A stage of `steps` begins; `done` of them are behind it when it is resumed."""

    def phase(self, name: str, total: int = 0) -> None:
        """The run now does `name`, made of `total` parts (0: unknown)."""

    def advance(self) -> None:
        """One part of the phase is done."""

    def evaluated(self, step: int, accuracy: float, problems: int) -> None:
        """Held-out accuracy after `step` updates."""

    def step(self, metrics: dict[str, Any]) -> None:
        """One step is done and logged."""

    def workers(self, facts: dict[str, dict[str, Any]]) -> None:
        """What every generator is doing, by name, about once a second; "workers" of the metrics."""

    def note(self, message: str) -> None:
        """Something worth a line: a skipped step, a verifier that crashed, a checkpoint."""
