"""What a verifier returned, as a Verdict: verifiers are written by users, and say it in many ways.

1.0 · True · numpy and torch scalars ─────────────────────────┐
{"reward": …, "correct": …, "parts": {…}}, or such an object ─┴─ verdict_of ──> Verdict
"""

import math
import numbers
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from interlock.records.rl import Verdict

_FIELDS = ("reward", "correct", "parts")
_MOST_PARTS = 64
_NUMBER = (numbers.Real, Decimal)  # Python does not count the latter as real
_LONGEST_NAME = 100  # characters of a part's name


def verdict_of(value: Any) -> Verdict:
    """Read what a verifier returned.

    Args:
        value: a finite number, the reward; a bool, that the answer is right (reward 1) or not (0);
            or a dict or object with `reward`, `correct` and `parts`, of which all but one of the
            first two may be missing. Without a reward it is 1 or 0, as `correct` says. Scalars and
            arrays of one element of numpy and torch, and sympy's true, are what they hold. Or a
            Verdict that failed.

    Raises:
        TypeError, ValueError: it is none of these.
    """
    if isinstance(value, Verdict) and not value.status.judged:
        return value  # one that tells why there is none
    value = _held(value)
    if isinstance(value, bool):
        return Verdict(float(value), value)
    if isinstance(value, _NUMBER):
        return Verdict(_finite(value, "the verifier returned"))
    if isinstance(value, Mapping):
        fields = dict(value)
    elif hasattr(value, "reward") or hasattr(value, "correct"):
        fields = {name: getattr(value, name) for name in _FIELDS if hasattr(value, name)}
    else:
        raise TypeError(f"the verifier returned a {type(value).__name__}, not a number")
    return _verdict(fields)


def is_sound(verdict: Verdict) -> bool:
    """Whether it is one that `verdict_of` gives, or a failure; it may come from who forged it."""
    names, numbers_of_it = verdict.parts, [verdict.reward, *verdict.parts.values()]
    return (
        all(map(math.isfinite, numbers_of_it))
        and len(names) <= _MOST_PARTS
        and all(0 < len(name) <= _LONGEST_NAME for name in names)
        and (verdict.cause is None if verdict.status.judged else verdict.reward == 0)
    )


def _verdict(fields: dict[Any, Any]) -> Verdict:
    if strange := [name for name in fields if name not in _FIELDS]:
        raise ValueError(
            f"the verifier returned {strange[0]!r}; it may return {', '.join(_FIELDS)}"
        )
    reward, correct = _held(fields.get("reward")), _held(fields.get("correct"))
    if not isinstance(correct, bool | None):
        raise TypeError(f"the verifier returned correct = {correct!r}, not true or false")
    if reward is None:
        if correct is None:
            raise ValueError("the verifier returned neither reward nor correct")
        reward = correct
    return Verdict(_finite(reward, "the verifier returned reward ="), correct, _parts(fields))


def _parts(fields: dict[Any, Any]) -> dict[str, float]:
    parts = fields.get("parts")
    if parts is None:
        return {}
    if not isinstance(parts, Mapping):
        raise TypeError(f"the verifier returned parts that are a {type(parts).__name__}, no dict")
    if len(parts) > _MOST_PARTS:
        raise ValueError(f"the verifier returned {len(parts)} parts, more than {_MOST_PARTS}")
    for name in parts:
        if not isinstance(name, str) or not (0 < len(name) <= _LONGEST_NAME and name.isprintable()):
            raise ValueError(f"the verifier returned a part named {str(name)[:_LONGEST_NAME]!r}")
    return {name: _finite(_held(part), f"part {name!r} is") for name, part in parts.items()}


def _held(value: Any) -> Any:
    """What a scalar of numpy or torch, or an array of one element, holds."""
    if getattr(value, "is_Boolean", False) and hasattr(value, "__bool__"):
        return bool(value)  # of sympy: what Eq(a, b) is where it can be told
    item = getattr(value, "item", None)
    if not callable(item):
        return value
    if bool(getattr(value, "mask", False)):  # of numpy: what was masked holds a number all the same
        raise ValueError("the verifier returned a masked value")
    try:
        return item()
    except (RuntimeError, ValueError):  # of torch, of numpy
        shape = list(getattr(value, "shape", ()))
        raise ValueError(
            f"the verifier returned an array of shape {shape}, not one value"
        ) from None


def _finite(value: Any, what: str) -> float:
    if not isinstance(value, _NUMBER):
        raise TypeError(f"{what} a {type(value).__name__}, not a number")
    try:
        number = float(value)
    except OverflowError:  # of an integer or a fraction; a decimal becomes infinite
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{what} {number}")
    return number
