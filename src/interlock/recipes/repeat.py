"""Repeats the last updates of a run on a device, to see whether the run may go on there.

    Repeat ──> checkpoint ── updates of past.py ── exact, own, target ──> Repeated, of each

Every side is a learner of its own at the checkpoint: "exact" in float64 on the CPU, "own" on the
CPU in the run's dtype (what rounding alone does), "target" on the device. Nothing is kept of them.
It is a process of its own, whose device may hang or die. Who judges: migrate/.
"""

import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from msgspec.structs import replace
from torch import Tensor

from interlock.chips import device, heap, probe
from interlock.config.reading import parse_recipe, to_tree
from interlock.config.schema import LearnerSettings, Recipe
from interlock.config.stages import OptimizerSettings
from interlock.errors import InterlockError, RunError, UserError
from interlock.learner import checkpoint
from interlock.learner.distributed.ranks import Ranks
from interlock.learner.learner import Learner
from interlock.models.attention import FUSED_ABOVE
from interlock.models.fetch import find_model
from interlock.models.huggingface import read_architecture
from interlock.models.tokenizer import Tokenizer
from interlock.processes.channel import Channel
from interlock.recipes import learned, students
from interlock.recipes.fleet import canary
from interlock.recipes.past import PastStage, PastUpdate, PastUpdates, cut, sampled, stage_seed
from interlock.recipes.stage import update_metrics
from interlock.recipes.train import recipe_of
from interlock.records.moves import (
    DeviceOpened,
    NotRepeated,
    Repeat,
    RepeatAnswer,
    Repeated,
    RepeatedUpdate,
    Side,
)
from interlock.rundir import Checkpoint, RunDir, RunView
from interlock.text import described, error_line

CPU = torch.device("cpu")


def serve(channel: Channel) -> None:
    """Answer the one request that comes; nothing when whoever asked has gone."""
    data = channel.receive()
    if data is None:
        return
    heap.keep_freed()  # as runs do
    try:
        for answer in answers(msgspec.msgpack.decode(data, type=Repeat)):
            channel.send(msgspec.msgpack.encode(answer))
    except InterlockError as error:
        told = NotRepeated(error_line(error), isinstance(error, UserError))
        channel.send(msgspec.msgpack.encode(told))
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        channel.send(msgspec.msgpack.encode(NotRepeated(described(error, 200), users=False)))


def answers(asked: Repeat) -> Iterator[RepeatAnswer]:
    """What is sent, one after another. Raises InterlockError, and whatever the device raises."""
    with closing(RunDir.read(Path(asked.run))) as run:
        bench = _bench(run, asked)
        place = device.claim(asked.device)
        wanted = to_tree(bench.recipe.learner) | asked.settings | {"device": asked.device}
        settings = probe.settled(msgspec.convert(wanted, LearnerSettings), place)
        dtypes: list[str] = list(dict.fromkeys([settings.dtype, "float32"]))
        decided = to_tree(settings)
        yield DeviceOpened(
            device.stack(place), decided, dtypes, [*bench.steps], bench.ahead and bench.past.same
        )
        for dtype in dtypes:
            told, truth = _repeat(bench, "exact", dtype, CPU, _plain(settings, "float32"))
            yield told
            on_target = settings if dtype == settings.dtype else _plain(settings, dtype)
            own = _plain(settings, dtype)
            yield _repeat(bench, "own", dtype, CPU, own, truth)[0]
            yield _repeat(bench, "target", dtype, place, on_target, truth)[0]


class _Truth(NamedTuple):
    """Of the exact side, on the CPU, by parameter."""

    gradients: dict[str, Tensor]  # of the first update
    moves: dict[str, Tensor]  # what all updates changed


class _Bench(NamedTuple):
    """What all sides have in common."""

    recipe: Recipe
    stage: PastStage[Any]
    newest: Checkpoint
    model: Path
    steps: Sequence[int]
    ahead: bool  # they come after the checkpoint
    canary: list[int]
    tokens: int  # of an update, at most
    open_past: Callable[[PastStage[Any]], PastUpdates]

    @property
    def past(self) -> PastUpdates:
        """Afresh: it may remember what it has repeated."""
        return self.open_past(self.stage)


def _bench(run: RunView, asked: Repeat) -> _Bench:
    """Raises RunError where there is nothing to repeat."""
    newest = run.latest_checkpoint()
    if newest is None:
        raise RunError(
            f"{run.path} has no checkpoint to prove a device with; go on with it first until there "
            "is one (checkpoint_every), or begin a new run there"
        )
    recipe = parse_recipe(run.config, source=f"{run.path}/config.json")
    if newest.stage >= len(recipe.stage):
        raise RunError(f"{newest.path} is of no stage of this run; remove it")
    model = students.reached(run.path, recipe, newest.stage) or find_model(recipe.model.path)
    how = recipe.model.chat_template, recipe.model.clock
    tokenizer = Tokenizer.load(find_model(recipe.model.path), *how)
    settings = recipe.stage[newest.stage]
    stage: PastStage[Any] = PastStage(
        newest.stage,
        settings,
        run,
        tokenizer,
        read_architecture(model).context,
        stage_seed(recipe.seed, settings.name, newest.stage, 0),
        checkpoint.kept(newest.path).get("memory", {}),
    )
    opened = getattr(recipe_of(settings.kind), "past", sampled)
    if not (steps := _steps(opened(stage), newest, asked.updates)):
        opened, steps = sampled, _steps(sampled(stage), newest, asked.updates)
    if not steps:
        raise RunError(
            f"{run.path} has no update of stage {newest.stage} to repeat; go on with it first"
        )
    ahead, text = min(steps) > newest.step, canary(tokenizer).text
    return _Bench(recipe, stage, newest, model, steps, ahead, text, asked.tokens, opened)


def _steps(past: PastUpdates, newest: Checkpoint, most: int) -> list[int]:
    """The first that come after the checkpoint; where there are none, the last before it."""
    ahead = (step for step in past.steps if step > newest.step)
    found = list(islice(filter(past.teaches, ahead), most))
    if found:
        return found
    behind = (step for step in reversed(past.steps) if step <= newest.step)
    return list(islice(filter(past.teaches, behind), most))[::-1]


def _plain(settings: LearnerSettings, dtype: str) -> LearnerSettings:
    """The same in another dtype, by torch's own kernels, which every device has."""
    fixed = {"dtype": dtype, "kernel": "torch", "fused_attention_above": FUSED_ABOVE}
    return replace(settings, **fixed)


def _repeat(
    bench: _Bench,
    side: Side,
    dtype: str,
    place: torch.device,
    settings: LearnerSettings,
    truth: _Truth | None = None,
) -> tuple[Repeated, _Truth]:
    """One side. `truth`: None for the exact one, whose truth is given back."""
    began = time.perf_counter()
    learner = _learner(bench, place, settings)
    _round(learner, dtype)
    if truth is None:
        _widen(learner)
    start = _on_cpu(learner)
    first: dict[str, Tensor] = {}
    learner.optimizer.register_step_pre_hook(lambda *_: first.update(_gradients(learner, first)))
    text, past = learner.score(bench.canary), bench.past
    temperature = _temperature(bench.stage)
    updates = []
    for step in bench.steps:
        update = past.of(learner, step)
        if update.batches:
            updates.append(_updated(learner, step, update, temperature, bench.tokens))
    device.synchronize(place)
    moves = {name: tensor - start[name] for name, tensor in _on_cpu(learner).items()}
    found = _Truth(first, moves)
    against = truth or found
    told = Repeated(
        side,
        dtype,
        updates,
        _distances(first, against.gradients) if truth else {},
        _distances(moves, against.moves).get("") if truth else None,
        text,
        time.perf_counter() - began,
    )
    return told, found


def _learner(bench: _Bench, place: torch.device, settings: LearnerSettings) -> Learner:
    """At the checkpoint."""
    predict = settings.mtp_weight > 0
    decoder = learned.masters(bench.recipe, bench.model, Ranks(place), predict)
    stage = bench.stage.settings
    learner = Learner(
        decoder,
        settings,
        stage.optimizer or OptimizerSettings(),
        stage.updates,
        keep_reference=stage.keeps_reference,
    )
    checkpoint.load(learner, bench.newest.path)
    return learner


@torch.no_grad()
def _round(learner: Learner, dtype: str) -> None:
    """Let the weights be such as the dtype can hold: all sides compute from the same ones then, and
    what is between them is not the rounding of these.
    """
    for parameter in learner.parameters.values():
        parameter.copy_(parameter.to(device.dtype(dtype)))


def _widen(learner: Learner) -> None:
    """Let it compute in float64. Its norms and log-probabilities round to float32."""
    for decoder in filter(None, (learner.decoder, learner.reference)):
        decoder.double()
        decoder.dtype = torch.float64
    for moments in learner.optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name] = moments[name].double()


def _updated(
    learner: Learner, step: int, update: PastUpdate, temperature: float, most: int
) -> RepeatedUpdate:
    batches = cut(update.batches, most)
    groups = list(chain.from_iterable(batches))
    whole = len(groups) == sum(map(len, update.batches))
    parts = chain.from_iterable(learner.logprobs(groups, temperature))
    logprobs = torch.cat(list(parts)).tolist()
    weight = sum(abs(w) for group in groups for text in group.weights for w in text)
    made = update_metrics(update.make(batches))
    gap = made.mismatch
    return RepeatedUpdate(
        step,
        made.loss or 0.0,
        made.grad_norm or 0.0,
        logprobs,
        weight,
        whole,
        None if gap is None else gap.k3,
    )


def _temperature(stage: PastStage[Any]) -> float:
    """What the stage's answers were sampled at, and are scored at."""
    if not stage.settings.generates:
        return 1.0
    found: float = stage.settings.sampling.temperature
    return found


def _gradients(learner: Learner, known: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of the first update, after clipping; of later ones nothing."""
    if known:
        return {}
    return {
        name: parameter.grad.detach().cpu().clone()
        for name, parameter in learner.parameters.items()
        if parameter.grad is not None
    }


def _on_cpu(learner: Learner) -> dict[str, Tensor]:
    return {name: each.detach().cpu().clone() for name, each in learner.parameters.items()}


def _distances(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """|found - exact| / |exact| of each tensor, and under "" of all; {} where the exact is 0."""
    if not found:  # a step that was not finite makes no update
        return {"": math.inf}
    apart = {name: (found[name].double() - own.double()).norm() for name, own in exact.items()}
    sizes = {name: own.double().norm() for name, own in exact.items()}
    every = {name: (apart[name], sizes[name]) for name in exact if sizes[name] > 0}
    every[""] = _norm(apart), _norm(sizes)
    return {
        name: (distance / size).nan_to_num(torch.inf).item()
        for name, (distance, size) in every.items()
        if size > 0
    }


def _norm(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).norm()
