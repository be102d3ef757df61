"""Routes of a mixture as bytes: what was recorded, and whether what somebody sends can be one.

    tensor [N, L, k] ─ packed ─> a row of bytes per token ─ unpacked ─> tensor, for Decoder.forward

Legend: N tokens, L layers with experts, k experts per token
"""

import numpy as np

from interlock.models.architecture import Architecture
from interlock.records.replay import RouteShape


def route_shape(arch: Architecture) -> RouteShape | None:
    """Of what the model tells of a token; None: it has no experts."""
    if (routing := arch.routing) is None:
        return None
    return RouteShape(len(routing.layers), routing.per_token, routing.experts)


def packed(choice: np.ndarray, shape: RouteShape) -> bytes:
    """Of expert numbers [N, L, k]."""
    return choice.astype(_dtype(shape)).tobytes()


def unpacked(routes: bytes, shape: RouteShape) -> np.ndarray:
    """Expert numbers [N, L, k] int16; they are below 2^15."""
    numbers = np.frombuffer(routes, _dtype(shape))
    return numbers.reshape(-1, shape.layers, shape.per_token).astype(np.int16)


def problem(routes: bytes, tokens: int, shape: RouteShape) -> str | None:
    """Why these cannot be the routes of so many tokens; None when they can."""
    if len(routes) != tokens * shape.token_bytes:
        return f"routes of {len(routes)} bytes where {tokens} tokens have {shape.token_bytes} each"
    numbers = np.frombuffer(routes, _dtype(shape)).reshape(-1, shape.per_token)
    if numbers.size and numbers.max() >= shape.experts:
        return f"a route through expert {numbers.max()}, where there are {shape.experts}"
    ordered = np.sort(numbers, axis=1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        return "a route through one expert twice"
    return None


def _dtype(shape: RouteShape) -> str:
    return f"<u{shape.number_bytes}"
