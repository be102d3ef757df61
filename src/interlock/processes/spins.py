"""How long torch's threads spin while they wait for one another.

libgomp, which torch brings, looks 300,000 times by itself whether the other threads are done before
it sleeps: beside as many busy processes as there are cores it holds a core while the thread it
waits for has none. It reads this setting when torch is imported, and never again.
"""

import os

_VARIABLE, _SPINS = "GOMP_SPINCOUNT", "10000"
_USERS = (_VARIABLE, "OMP_WAIT_POLICY")  # where one of these is set, it is taken


def few_spins() -> dict[str, str]:
    """Environment variables to be set before torch is imported."""
    return {} if any(name in os.environ for name in _USERS) else {_VARIABLE: _SPINS}
