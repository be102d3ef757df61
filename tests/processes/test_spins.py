import pytest

from interlock.processes.child import inherited


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_children_spin_little_though_nobody_told_us(
    given: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a run is started from a program, and not from the command line."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert inherited().get("GOMP_SPINCOUNT") == spins
    assert inherited({"GOMP_SPINCOUNT": "0"})["GOMP_SPINCOUNT"] == "0"
