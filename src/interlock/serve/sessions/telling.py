"""What clients are told of a session: an overview, and the whole record.

RecordedSession ──overview──> a tree of figures ──with turns and branches──> told
"""

from typing import Any

import msgspec

from interlock.serve.sessions.record import Branch, Turn, TurnTree
from interlock.serve.sessions.session import RecordedSession


def overview(session: RecordedSession) -> dict[str, Any]:
    """Without a token."""
    terms, record = session.terms, session.record
    return {
        "id": session.id,
        "object": "session",
        "created_at": session.created,
        "base_url": f"/sessions/{session.id}/v1",
        "seed": terms.seed,
        "past_thinking": terms.past_thinking,
        "limits": {"turns": terms.most_turns, "tokens": terms.most_tokens},
        "metadata": terms.metadata,
        "open": session.open,
        "turns_recorded": len(record.turns),
        "branches_recorded": sum(1 for _ in record.leaves),
        "branches_by_cause": record.origins,
        "broken": record.broken,
        "tokens_recorded": record.tokens,
    }


def told(session: RecordedSession) -> dict[str, Any]:
    """All of it: `branches` has every sampled token once, with what was given between."""
    tree, branches = session.snapshot()
    versions = {v for branch in branches for v in branch.completion.weight_versions}
    return overview(session) | {
        "weight_versions": sorted(versions),
        "usage": _usage(tree),
        "turns": [_turn(turn) for turn in tree.turns],
        "branches": [branch_tree(branch) for branch in branches],
    }


def branch_tree(branch: Branch) -> dict[str, Any]:
    """`completion` is a records.rl.Completion as JSON has it."""
    return {
        "prompt_tokens": branch.prompt_tokens,
        "completion": msgspec.to_builtins(branch.completion),
        "turns": branch.turns,
        "cause": branch.origin,
    }


def _turn(turn: Turn) -> dict[str, Any]:
    parent = turn.parent
    return {
        "number": turn.number,
        "parent": None if parent is None else [parent.turn.number, parent.number],
        "cause": turn.origin,
        "given_tokens": len(turn.given),
        "cached_tokens": turn.cached,
        "answers": [
            {
                "choice": answer.number,
                "message": answer.message,
                "finish": answer.finish,
                "tokens": answer.count,
                "weight_versions": [run.version for run in answer.runs],
                "replicas": answer.replicas,
            }
            for answer in turn.answers
        ],
    }


def _usage(tree: TurnTree) -> dict[str, int]:
    """As clients were told it, summed over the turns."""
    prompts = sum(turn.prompt_count for turn in tree.turns)
    sampled = sum(answer.count for turn in tree.turns for answer in turn.answers)
    return {
        "prompt_tokens": prompts,
        "completion_tokens": sampled,
        "total_tokens": prompts + sampled,
        "cached_tokens": sum(turn.cached for turn in tree.turns),
    }
