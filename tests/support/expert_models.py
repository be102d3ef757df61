"""How tokens find their experts in the tiny models of tests: two of four, in the second layer."""

from interlock.models.architecture import Routing

ROUTING = Routing(
    layers=frozenset([1]),
    experts=4,
    per_token=2,
    inner=8,
    shared_inner=0,
    gate="softmax",
    corrected=False,
    groups=1,
    kept_groups=1,
    group_top=1,
    normalize=True,
    scale=1.0,
)
