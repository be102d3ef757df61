"""The rules of trust, against a plain reading of them."""

from hypothesis import given
from hypothesis import strategies as st

from interlock.chips.verdict import NEEDED, judge
from interlock.qualify.checks import CHECKS
from interlock.records.trust import Finding, Result, Role, Trust


def findings(**results: Result) -> list[Finding]:
    """All passed, but for those named (with _ for -)."""
    named = {name.replace("_", "-"): result for name, result in results.items()}
    assert named.keys() <= CHECKS.keys()
    return [Finding(name, named.get(name, Result.PASS), f"of {name}") for name in CHECKS]


def test_all_passed_may_train() -> None:
    assert judge(findings()) == (Trust.TRAIN, [])


def test_wrong_gradients_forbid_training_alone() -> None:
    trust, reasons = judge(findings(backward=Result.FAIL))
    assert trust is Trust.GENERATE
    assert reasons == ["backward failed: of backward"]


def test_wrong_numbers_are_rejected_whatever_did_not_run() -> None:
    trust, reasons = judge(findings(forward=Result.FAIL, sampler=Result.UNKNOWN))
    assert trust is Trust.REJECT
    assert reasons == ["forward failed: of forward", "sampler did not run: of sampler"]


def test_what_did_not_run_never_certifies() -> None:
    assert judge([])[0] is Trust.UNKNOWN
    assert judge(findings(sampler=Result.UNKNOWN))[0] is Trust.UNKNOWN
    assert judge(findings(collectives=Result.UNKNOWN))[0] is Trust.GENERATE
    one = judge([Finding("forward", Result.PASS, "fine")])
    assert one[0] is Trust.UNKNOWN
    others = ", ".join(name for name in CHECKS if name != "forward")
    assert one[1] == [f"{others} did not run"]
    assert judge([Finding("forward", Result.FAIL, "wrong")])[0] is Trust.REJECT


def test_every_check_has_its_roles() -> None:
    assert list(CHECKS) == list(NEEDED)


def test_training_needs_all_that_generation_needs_and_more() -> None:
    assert all(Role.TRAIN in check.needed for check in CHECKS.values())
    assert any(Role.GENERATE not in check.needed for check in CHECKS.values())
    assert all(check.classes for check in CHECKS.values())
    assert {number for check in CHECKS.values() for number in check.classes} == set(range(1, 12))


@given(st.lists(st.sampled_from(Result), min_size=len(CHECKS), max_size=len(CHECKS)))
def test_the_rules_read_plainly(results: list[Result]) -> None:
    by_name = dict(zip(CHECKS, results, strict=True))
    trust, reasons = judge([Finding(name, result, "") for name, result in by_name.items()])
    generation = [by_name[n] for n, check in CHECKS.items() if Role.GENERATE in check.needed]
    if any(result is Result.FAIL for result in generation):
        assert trust is Trust.REJECT
    elif any(result is Result.UNKNOWN for result in generation):
        assert trust is Trust.UNKNOWN
    else:
        assert trust is (Trust.TRAIN if set(results) == {Result.PASS} else Trust.GENERATE)
    failed = [f"{name} failed: " for name, result in by_name.items() if result is Result.FAIL]
    unknown = [name for name, result in by_name.items() if result is Result.UNKNOWN]
    assert reasons == failed + ([f"{', '.join(unknown)} did not run"] if unknown else [])
