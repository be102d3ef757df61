"""What a plan says in words: one line for each thing that a reader would do otherwise.

Plan ──verdicts──> ["stay synchronous: …", "these generators starve the learner: …", …]
"""

from interlock.plan.plan import Plan, StagePlan

_WORTH = 1.10  # times faster, from which running ahead is worth its staleness; assumed
_STARVED = 1.5  # times longer than the learner's side; assumed
_BOUND = 0.25  # of a step, from which publication is what to mend; assumed


def verdicts(plan: Plan) -> list[str]:
    """Never none: where all is well it says so."""
    if plan.unfit:
        return [f"fits nowhere here: {why}" for why in plan.unfit]
    found: list[str] = []
    for stage in plan.stages:
        if stage.work.samples:
            said = _of_stage(plan, stage)
            found += said if len(plan.stages) == 1 else [f"{stage.work.name}: {x}" for x in said]
    return found or ["nothing stands out: no part waits much for another"]


def _of_stage(plan: Plan, stage: StagePlan) -> list[str]:
    parts, found = stage.parts, []
    if plan.roles.turns:
        found += _of_turns(stage)
    elif stage.work.learns:
        found += _of_two_roles(stage)
    step = parts.synchronous if stage.synchronous else parts.asynchronous
    over = parts.publication - parts.coding
    if not plan.roles.turns and over > _BOUND * step:
        if stage.work.whole_every == 1:
            found.append(
                f"the link is the bottleneck: whole versions take {over:.0f} s of a "
                f"step of {step:.0f} s; use deltas (sync.anchor_every = 20)"
            )
        else:
            found.append(
                f"the link is the bottleneck even with deltas: {over:.0f} s of a "
                f"step of {step:.0f} s; take a faster link, or publish less often"
            )
    elif not plan.roles.turns and parts.coding > _BOUND * step:
        found.append(
            f"making deltas and putting them in place takes {parts.coding:.0f} s of a step of "
            f"{step:.0f} s; take larger steps"
        )
    elif not plan.roles.turns and parts.whole > _BOUND * step:
        found.append(
            f"keep deltas: whole versions would take {parts.whole:.0f} s over this link, these "
            f"take {parts.publication:.0f} s of a step of {step:.0f} s"
        )
    if parts.verification > _BOUND * step:
        found.append(
            f"verification holds the step up for {parts.verification:.0f} s; give the task more "
            "workers"
        )
    return found


def _of_turns(stage: StagePlan) -> list[str]:
    parts = stage.parts
    share = parts.generation / parts.synchronous
    return [
        f"one set of chips takes turns: {share:.0%} of a step is generation; --find compares "
        "with roles of their own"
    ]


def _of_two_roles(stage: StagePlan) -> list[str]:
    parts, found = stage.parts, []
    gain = parts.synchronous / parts.asynchronous
    if gain < _WORTH:
        found.append(
            f"stay synchronous: running ahead makes a step only {gain:.2f} times as fast, and "
            "its answers are stale"
        )
    elif stage.synchronous:
        found.append(
            f"run ahead: staleness 1 or more makes a step {gain:.2f} times as fast "
            f"({parts.asynchronous:.0f} s, not {parts.synchronous:.0f} s)"
        )
    generating = max(parts.refilled, parts.verification)
    if generating > _STARVED * parts.learning:
        idle = 1 - parts.learning / generating
        found.append(
            f"these generators starve the learner: it waits {idle:.0%} of the time; about "
            f"{generating / parts.learning:.1f} times as many would keep it busy"
        )
    elif parts.learning > _STARVED * generating:
        idle = 1 - generating / parts.learning
        found.append(
            f"the learner holds the generators up: they wait {idle:.0%} of the time; "
            f"{generating / parts.learning:.0%} of them would do"
        )
    return found
