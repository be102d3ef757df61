"""Moves a part of a run: proof first, then one rename of the manifest.

    RUN is held ── prove ──> refused: an event, and nothing else
                      └────> the checkpoint is kept ── manifest.json ──> the run goes on there

A kill at any instant leaves the run where it was or where it goes, for `train --resume`.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from interlock.chips import certificates
from interlock.config.reading import recipe_of_run, to_tree
from interlock.config.schema import Recipe
from interlock.errors import ConfigError, MoveRefused, RunError
from interlock.migrate.proof import Proof, Tell, prove
from interlock.records.moves import Location, Move, Repeat
from interlock.records.trust import Role
from interlock.rundir import RunDir, moving
from interlock.text import one_line

# What a move decides anew: by a measurement on the device, unless it is given.
_MEASURED = {"kernel": "auto", "fused_attention_above": 0, "micro_batch_tokens": 0}
_PLACED = ("device", *_MEASURED, "logits_chunk", "activation_checkpointing")


class MoveWish(NamedTuple):
    """What whoever moves a run has said."""

    device: str = ""
    settings: Sequence[str] = ()  # "learner.micro_batch_tokens=4096": of the part alone
    updates: int = 3
    tokens: int = 8192
    side_s: float = 1800.0
    unqualified: bool = False


def move(path: Path, wish: MoveWish, tell: Tell) -> Move:
    """Let the learner go on on another device, once that has proved itself.

    Raises UserError, and MoveRefused with the device's reason; the run is then as it was.
    """
    with RunDir.held(path) as run:
        before = _before(run)
        if before.device == wish.device:
            raise ConfigError(f"the learner of {path} is on {wish.device} already; name another")
        proof = _proved(run, wish, _decided(run, wish), tell)
        return _made(run, _move(run, before, proof, wish.device))


def back(path: Path, wish: MoveWish, discard: bool, tell: Tell) -> Move:
    """Take back the last move that stands; `wish.device` is where that was made from.

    discard: go on from the checkpoint that it was made at; what came since is put aside.
    """
    with RunDir.held(path) as run:
        moves = run.manifest.moves
        number = standing(moves)
        if number is None:
            raise RunError(f"{path} has no move to take back; its report shows where it has been")
        done = moves[number - 1]
        wish = wish._replace(device=done.before.device)
        proof = _proved(run, wish, done.before.settings, tell)
        made = replace(_move(run, _before(run), proof, wish.device), undoes=number)
        if discard:
            newest = moving.discard_since(run, done, number, len(moves) + 1)
            made = replace(made, stage=newest.stage, step=newest.step, discarded=True)
        return _made(run, made)


def standing(moves: Sequence[Move]) -> int | None:
    """The number (from 1) of the last move that nothing takes back."""
    undone = {move.undoes for move in moves}
    numbers = [n for n, move in enumerate(moves, 1) if n not in undone and move.undoes is None]
    return max(numbers, default=None)


def _before(run: RunDir) -> Location:
    """Where the learner is."""
    learner = to_tree(recipe_of_run(run.config, source=f"{run.path}/config.json").learner)
    stacks = [each.learner for each in run.manifest.sessions if each.learner is not None]
    return Location({name: learner[name] for name in _PLACED}, stacks[-1] if stacks else None)


def _decided(run: RunDir, wish: MoveWish) -> dict[str, Any]:
    """The learner's settings on the new device, as far as they are not measured there."""
    for override in wish.settings:
        key = override.partition("=")[0]
        if key.removeprefix("learner.") not in _PLACED[1:] or not key.startswith("learner."):
            names = ", ".join(f"learner.{name}" for name in _PLACED[1:])
            raise ConfigError(
                f"{one_line(override, 60)} is not for a move to change; it may set {names}"
            )
    learner = {**run.config.get("learner", {}), **_MEASURED, "device": wish.device}
    recipe: Recipe = recipe_of_run(run.config | {"learner": learner}, wish.settings)
    found = to_tree(recipe.learner)
    return {name: found[name] for name in _PLACED}


def _proved(run: RunDir, wish: MoveWish, settings: dict[str, Any], tell: Tell) -> Proof:
    """Raises MoveRefused, which the run keeps as an event."""
    asked = Repeat(str(run.path), wish.device, settings, wish.updates, wish.tokens)
    proof = prove(run, asked, Role.TRAIN, wish.unqualified, wish.side_s, tell)
    if refused := proof.refused(wish.unqualified):
        why = "; ".join(refused)
        if "interlock qualify" not in why:
            why += f"; to see what is wrong with it, {certificates.remedy(wish.device)}"
        run.event("move_refused", f"the learner may not go on on {wish.device}: {why}")
        raise MoveRefused(f"{run.path} stays where it is: {wish.device}: {why}")
    return proof


def _move(run: RunDir, before: Location, proof: Proof, device: str) -> Move:
    newest = run.checkpoints()[-1]
    settings = {name: proof.opened.settings[name] for name in _PLACED} | {"device": device}
    after = Location(settings, proof.opened.stack)
    place = newest.stage, newest.step, time.time()
    return Move("learner", before, after, *place, proof.findings, proof.trust)


def _made(run: RunDir, made: Move) -> Move:
    moving.keep_checkpoint(run, run.checkpoints()[-1], len(run.manifest.moves) + 1)
    run.moved(made)
    return made
