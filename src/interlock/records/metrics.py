"""What is measured of a run while it goes on."""

from enum import StrEnum

import msgspec


class WorkerState(StrEnum):
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    GENERATING = "generating"
    RESTARTING = "restarting"
    QUARANTINED = "quarantined"  # its numbers are off: not used, unless it is qualified anew
    QUALIFYING = "qualifying"  # in quarantine, and its device is being qualified
    RETIRED = "retired"  # failed too often


OUT_OF_USE = frozenset({WorkerState.QUARANTINED, WorkerState.QUALIFYING})


class WorkerMetrics(msgspec.Struct):
    """One worker's present and past, as shown and logged. Counts and sums are over the session."""

    state: WorkerState = WorkerState.STARTING
    engine: str | None = None
    device: str | None = None
    dtype: str | None = None
    trust: str | None = None  # of its certificate; "cpu", which needs none; or "unqualified"
    weight_version: int | None = None
    groups: int = 0  # given
    tokens: int = 0
    seconds_generating: float = 0.0
    seconds_loading: float = 0.0  # fetched, loaded and proven
    fetched_bytes: int = 0
    dropped: int = 0  # groups too old, or of a worker in quarantine
    redispatched: int = 0  # units taken from it and given out again
    refused: int = 0  # answers that were garbage
    restarts: int = 0
    requalified: int = 0  # times that its device was qualified anew
    canary_k3: float | None = None  # learner against prefill, same text and weights
