"""What verifiers return: the ways to say it, and what is no verdict."""

import math
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy
import pytest
import sympy
import torch

from interlock.records.rl import Verdict
from interlock.tasks.returned import verdict_of


class Pair(NamedTuple):
    reward: float
    correct: bool


@dataclass
class Judged:
    correct: bool
    parts: dict[str, float] = field(default_factory=lambda: {"steps": 0.5})


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (0.25, Verdict(0.25)),
        (3, Verdict(3.0)),
        (-2.5, Verdict(-2.5)),
        (Fraction(1, 4), Verdict(0.25)),
        (Decimal("-0.5"), Verdict(-0.5)),
        (1e308, Verdict(1e308)),
        (numpy.float16(0.5), Verdict(0.5)),
        (numpy.longdouble(0.5), Verdict(0.5)),
        (numpy.isclose(1.0, 1.0), Verdict(1.0, True)),
        (torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True), Verdict(0.5)),
        (numpy.float32(0.5), Verdict(0.5)),
        (numpy.int64(2), Verdict(2.0)),
        (numpy.array(0.5), Verdict(0.5)),
        (numpy.array([0.5]), Verdict(0.5)),
        (numpy.ma.array([0.5], mask=[False]), Verdict(0.5)),
        (torch.tensor(0.5), Verdict(0.5)),
        (True, Verdict(1.0, True)),
        (False, Verdict(0.0, False)),
        (numpy.bool_(True), Verdict(1.0, True)),
        (numpy.array(False), Verdict(0.0, False)),
        (sympy.Eq(sympy.Integer(2), sympy.sqrt(4)), Verdict(1.0, True)),
        (sympy.false, Verdict(0.0, False)),
        ({"reward": sympy.Rational(1, 4), "correct": sympy.true}, Verdict(0.25, True)),
        (torch.tensor(3) > 2, Verdict(1.0, True)),
        ({"reward": 0.5}, Verdict(0.5)),
        ({"correct": True}, Verdict(1.0, True)),
        ({"correct": numpy.bool_(False)}, Verdict(0.0, False)),
        ({"reward": -1, "correct": True}, Verdict(-1.0, True)),
        ({"reward": torch.tensor(2.0), "correct": None}, Verdict(2.0)),
        (
            {
                "reward": 0.5,
                "correct": False,
                "parts": {"answer": 1, "length": numpy.float64(-0.5)},
            },
            Verdict(0.5, False, {"answer": 1.0, "length": -0.5}),
        ),
        (Pair(0.25, True), Verdict(0.25, True)),
        (Judged(False), Verdict(0.0, False, {"steps": 0.5})),
        (SimpleNamespace(reward=1.5), Verdict(1.5)),
    ],
    ids=str,
)
def test_what_a_verdict_may_be(value: Any, verdict: Verdict) -> None:
    found = verdict_of(value)
    assert found == verdict
    assert type(found.reward) is float and type(found.correct) in (bool, type(None))
    assert all(type(part) is float for part in found.parts.values())


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (None, "the verifier returned a NoneType, not a number"),
        ("1.0", "the verifier returned a str, not a number"),
        (10**400, "the verifier returned inf"),
        (Fraction(10**400), "the verifier returned inf"),
        (Decimal("nan"), "the verifier returned nan"),
        (numpy.array([]), "an array of shape [0], not one value"),
        (numpy.ma.masked, "a masked value"),
        (numpy.ma.array([1.0], mask=[True]), "a masked value"),
        (numpy.longdouble("1e4000"), "the verifier returned inf"),
        ([1.0], "the verifier returned a list, not a number"),
        (1j, "the verifier returned a complex, not a number"),
        (numpy.array([1.0, 2.0]), "an array of shape [2], not one value"),
        (math.nan, "the verifier returned nan"),
        (numpy.float64("inf"), "the verifier returned inf"),
        ({}, "neither reward nor correct"),
        ({"parts": {"a": 1.0}}, "neither reward nor correct"),
        ({"rewrad": 1.0}, "the verifier returned 'rewrad'; it may return reward, correct, parts"),
        ({"reward": "1"}, "the verifier returned reward = a str, not a number"),
        ({"reward": math.inf}, "the verifier returned reward = inf"),
        ({"reward": 1, "correct": 1}, "correct = 1, not true or false"),
        ({"reward": 1, "correct": "yes"}, "correct = 'yes', not true or false"),
        ({"reward": 1, "parts": [1.0]}, "parts that are a list, no dict"),
        ({"reward": 1, "parts": {"a": math.nan}}, "part 'a' is nan"),
        ({"reward": 1, "parts": {"a": None}}, "part 'a' is a NoneType, not a number"),
        ({"reward": 1, "parts": {1: 1.0}}, "a part named '1'"),
        ({"reward": 1, "parts": {"a\n": 1.0}}, "a part named 'a"),
        (torch.tensor([1.0, 2.0]), "an array of shape [2], not one value"),
        (sympy.Symbol("x") > 1, "a StrictGreaterThan, not a number"),
        ({"reward": 1, "parts": {"x" * 101: 1.0}}, "a part named 'xxx"),
        ({"reward": 1, "parts": {str(i): 1.0 for i in range(65)}}, "65 parts, more than 64"),
    ],
    ids=str,
)
def test_what_is_no_verdict(value: Any, complaint: str) -> None:
    with pytest.raises((TypeError, ValueError)) as told:
        verdict_of(value)
    assert complaint in str(told.value)


@pytest.mark.parametrize(
    ("verdict", "right"),
    [
        (Verdict(1.0), True),
        (Verdict(1.5), True),
        (Verdict(0.999), False),
        (Verdict(0.0, True), True),
        (Verdict(2.0, False), False),
    ],
)
def test_what_counts_as_right(verdict: Verdict, right: bool) -> None:
    assert verdict.right is right
