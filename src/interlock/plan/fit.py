"""Constants from published rows: least squares of logarithms, in which no row weighs too much.

    rows ──residuals: ln(predicted / published)──> a few linearised steps ──> Rates

A constant has a prior, its value in constants.toml and how far it may be from it, so that one which
the rows say nothing of stays where it was. Plain Python: some twenty constants, some fifty rows.
"""

import math
from collections.abc import Callable, Sequence

from interlock.plan.constants import Rates

Predict = Callable[[Rates], float]
_STEPS = 6
_NOISE = 0.12  # of a row's logarithm, about which half of the rows are
_TINY = 1e-3
_LARGEST = 0.5  # of a step, in the logarithm of a constant


def fit(
    rows: Sequence[tuple[Predict, float]],
    prior: Rates,
    widths: Sequence[float],
    start: Rates | None = None,
    steps: int = _STEPS,
) -> Rates:
    """The constants that give the rows' seconds best.

    `widths`: standard deviation of each constant's logarithm about its prior; 0: it is kept.
    Iteratively reweighted (Huber), Gauss-Newton with a numerical derivative.
    """
    free = [i for i, width in enumerate(widths) if width > 0]
    middle = [math.log(each) for each in prior]
    now = [math.log(each) for each in (start or prior)]
    for _ in range(steps):
        base = [_log_error(predict, seconds, now) for predict, seconds in rows]
        slopes = []
        for i in free:
            moved = now.copy()
            moved[i] += _TINY
            slopes.append(
                [
                    (_log_error(predict, seconds, moved) - at) / _TINY
                    for (predict, seconds), at in zip(rows, base, strict=True)
                ]
            )
        pulls = [middle[i] - now[i] for i in free]
        step = _solved(base, slopes, pulls, [widths[i] for i in free])
        for i, by in zip(free, step, strict=True):
            now[i] += max(-_LARGEST, min(_LARGEST, by))
        if max(map(abs, step), default=0.0) < _TINY:
            break
    return Rates(*map(math.exp, now))


def _log_error(predict: Predict, seconds: float, now: Sequence[float]) -> float:
    return math.log(predict(Rates(*map(math.exp, now))) / seconds)


def _solved(
    base: Sequence[float],
    slopes: Sequence[Sequence[float]],
    pulls: Sequence[float],
    widths: Sequence[float],
) -> list[float]:
    """The step of least squares: (J'WJ + P) x = P pull - J'W r."""
    weights = [1.0 / (_NOISE * max(_NOISE, abs(each))) for each in base]
    size = len(slopes)
    matrix = [[0.0] * (size + 1) for _ in range(size)]
    for i in range(size):
        for j in range(size):
            matrix[i][j] = sum(
                w * a * b for w, a, b in zip(weights, slopes[i], slopes[j], strict=True)
            )
        matrix[i][size] = -sum(w * a * r for w, a, r in zip(weights, slopes[i], base, strict=True))
        matrix[i][i] += 1.0 / widths[i] ** 2
        matrix[i][size] += pulls[i] / widths[i] ** 2
    return _eliminated(matrix)


def _eliminated(matrix: list[list[float]]) -> list[float]:
    """Gauss; the matrix is symmetric and positive, and has the right-hand side behind it."""
    size = len(matrix)
    for i in range(size):
        for j in range(i + 1, size):
            by = matrix[j][i] / matrix[i][i]
            for k in range(i, size + 1):
                matrix[j][k] -= by * matrix[i][k]
    found = [0.0] * size
    for i in reversed(range(size)):
        rest = sum(matrix[i][k] * found[k] for k in range(i + 1, size))
        found[i] = (matrix[i][size] - rest) / matrix[i][i]
    return found
