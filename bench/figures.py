"""What a benchmark keeps of its rounds."""

import statistics
from typing import Any


def summary(values: list[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "rounds": values,
    }
