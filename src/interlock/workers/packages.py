"""The packages that engines need beside ours, looked up without importing any."""

import importlib.util

_NEEDS: dict[str, str] = {"vllm": "vllm"}


def missing_package(engine: str) -> str | None:
    """What `engine` would lack in a process of this environment."""
    package = _NEEDS.get(engine)
    return package if package and importlib.util.find_spec(package) is None else None
