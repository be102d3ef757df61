"""Rows of a ledger as older versions wrote them, turned into those of today; as plain trees.

Format 2 had a completion in one piece, and of a verdict only the reward or what went wrong.
"""

from typing import Any

from interlock.records.rl import VerdictStatus

Tree = dict[str, Any]
_SAID = {  # how the errors of format 2 began
    "no verdict within": VerdictStatus.TIMEOUT,
    "the verifier's process ended": VerdictStatus.CRASHED,
    "the verifier of task": VerdictStatus.UNAVAILABLE,
}


def scored_group(tree: Tree) -> Tree:
    return {
        "group": group(tree["group"]),
        "verdicts": [_verdict(verdict) for verdict in tree["verdicts"]],
    }


def group(tree: Tree) -> Tree:
    return tree | {"completions": [_completion(each) for each in tree["completions"]]}


def _completion(tree: Tree) -> Tree:
    segment = {name: tree[name] for name in ("tokens", "logprobs", "weight_version")}
    return {"segments": [segment], "finish": tree["finish"], "text": tree["text"]}


def _verdict(tree: Tree) -> Tree:
    cause = tree.get("error")
    if cause is None:
        return {"reward": tree["reward"]}
    known = (status for said, status in _SAID.items() if cause.startswith(said))
    status = next(known, VerdictStatus.ERROR)
    return {"reward": tree["reward"], "status": status, "cause": cause}
