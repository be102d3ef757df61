"""Routes of a micro-batch: what the sampler's router chose for each token of the stream.

    of the group   prompt[0 … P-2]             of an answer   the token before each of its own
    stream         prompt[0 … P-1]  answer[0 … n-2]  answer …

So a row of an answer's first token is the prompt's last token's, which of several answers in one
stream the first one tells. -1 stands where nothing is told: there the learner's own router chooses.

Legend: P tokens of a prompt, n of an answer, N of the stream, L layers with experts, k experts per
        token
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from interlock.errors import TrainingError
from interlock.models.routes import problem, unpacked
from interlock.records.replay import RouteShape

# Of one prompt with some of its completions: prompt, completions, and what is told of them.
RoutedTexts = tuple[Sequence[int], Sequence[Sequence[int]], bytes, Sequence[bytes]]


def check_routes(texts: RoutedTexts, shape: RouteShape | None, name: str) -> None:
    """Raise TrainingError where what is told cannot be of these texts."""
    prompt, completions, of_prompt, routes = texts
    told = [(len(prompt) - 1, of_prompt)] if of_prompt else []
    if len(routes) not in (0, len(completions)):
        raise TrainingError(f"{name}: {len(routes)} routes for {len(completions)} completions")
    told += [(len(text), own) for text, own in zip(completions, routes, strict=False) if own]
    if told and shape is None:
        raise TrainingError(f"{name} has routes, and the model has no experts")
    for tokens, own in told:
        if shape is not None and (why := problem(own, tokens, shape)) is not None:
            raise TrainingError(f"{name}: {why}")


def stream_routes(parts: Iterable[RoutedTexts], shape: RouteShape | None) -> Tensor | None:
    """[N, L, k] int16 of the stream of these parts; None: nothing is told of any token."""
    if shape is None:
        return None
    rows: list[np.ndarray] = []
    for prompt, completions, of_prompt, routes in parts:
        rows.append(_rows(of_prompt, len(prompt) - 1, shape))
        each = [
            _rows(own, len(text), shape)
            for text, own in zip(completions, routes or [b""] * len(completions), strict=True)
        ]
        rows.append(each[0][:1])
        rows += [own[1:] for own in each]
    stream = np.concatenate(rows)
    return torch.from_numpy(stream) if (stream >= 0).any() else None


def _rows(routes: bytes, tokens: int, shape: RouteShape) -> np.ndarray:
    if routes:
        return unpacked(routes, shape)
    return np.full((tokens, shape.layers, shape.per_token), -1, np.int16)
