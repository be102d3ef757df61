"""Run by test_sharding.py as each rank of a learner: `python ranks.py equal|die DIRECTORY`.

`equal`: rank 0 does everything several times and writes down all: alone, at the head of the others,
and alone with the micro-batches of a step in other orders, which shows what rounding does.
`die`: rank 0 trains until another rank is killed, and writes down how it ended.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from msgspec import to_builtins

from interlock.config.losses import LossSettings
from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.errors import TrainingError
from interlock.learner import checkpoint
from interlock.learner.distributed import ranks, sharding
from interlock.learner.distributed.rank_loop import run_rank
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup
from interlock.learner.step_result import StepResult
from interlock.models.architecture import Architecture, DefaultRope, Routing
from interlock.models.decoder import Decoder

VOCAB, STEPS = 61, 5
OPTIMIZER = OptimizerSettings(
    lr=1e-2, warmup_steps=2, schedule="cosine", weight_decay=0.01, clip_norm=0.5, eps=1e-3
)
ROUTING = Routing(
    layers=frozenset({1}),
    experts=4,
    per_token=2,
    inner=8,
    shared_inner=8,
    gate="sigmoid",
    corrected=True,
    groups=1,
    kept_groups=1,
    group_top=1,
    normalize=True,
    scale=1.0,
)
# Lengths of completions, group after group, at 16 tokens per micro-batch: from one to five of them.
LENGTHS = [
    [[5, 1, 3], [4, 4], [7]],
    [[2]],
    [[9, 9], [9, 9], [1]],
    [[3, 3, 3], [8, 2], [6, 6]],
    [[12], [12], [12], [12], [12]],
]


def make_decoder(seed: int = 0, **kind: Any) -> Decoder:
    arch = Architecture(
        family="llama",
        vocab=VOCAB,
        hidden=16,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=4,
        value_dim=4,
        inner=24,
        norm_eps=1e-5,
        context=64,
        rope=DefaultRope(),
        rope_dim=4,
        **{"tied": True} | kind,
    )
    decoder = Decoder(arch)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=noise) * 0.3)
            if parameter.ndim == 1 and parameter.requires_grad:
                parameter += 1
    return decoder


def make_groups(step: int, sampler: bool = True, kl: bool = False) -> list[TrainingGroup]:
    noise = torch.Generator().manual_seed(step)

    def numbers(shape: list[int], scale: float, shift: float = 0.0) -> list[list[float]]:
        return [(torch.randn(n, generator=noise) * scale + shift).tolist() for n in shape]

    def tokens(count: int) -> list[int]:
        return torch.randint(0, VOCAB, (count,), generator=noise).tolist()

    return [
        TrainingGroup(
            prompt=tokens(3 + index),
            completions=[tokens(length) for length in members],
            weights=numbers(members, 0.1),
            sampler_logprobs=numbers(members, 0.3, -4.0) if sampler else None,
            kl_weights=[[0.05] * length for length in members] if kl else None,
            label=f"worker {index % 2}",
        )
        for index, members in enumerate(LENGTHS[step])
    ]


class Reordered(ranks.Ranks):
    """One process that adds up the micro-batches of a step in another order."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order

    def shard(self, batches: Sequence[Any]) -> Sequence[Any]:
        return ORDERS[self.order](batches)


# Rounding shows in few of them by chance: a + b is b + a.
ORDERS: dict[str, Callable[[Sequence[Any]], Sequence[Any]]] = {
    "reversed": lambda batches: batches[::-1],
    "turned": lambda batches: [*batches[1:], *batches[:1]],
    "turned twice": lambda batches: [*batches[2:], *batches[:2]],
    "even before odd": lambda batches: [*batches[::2], *batches[1::2]],
}
EACH = ("alone", "together", *ORDERS)


class Runs:
    """Learners of one kind: alone, at the head of all ranks, and alone in another order."""

    def __init__(self, together: ranks.Ranks, settings: LearnerSettings, **kind: Any) -> None:
        self.together, self.settings, self.kind = together, settings, kind

    def learner(self, who: str, seed: int = 0, reference: bool = False) -> Learner:
        decoder = make_decoder(seed, **self.kind)
        found = self.together if who == "together" else ranks.Ranks()
        found = Reordered(who) if who in ORDERS else found
        decoder = sharding.shard(decoder, self.settings, found)
        return Learner(
            decoder, self.settings, OPTIMIZER, STEPS, keep_reference=reference, ranks=found
        )


def masters(learner: Learner) -> dict[str, list[float]]:
    with learner.ranks.broadcast(checkpoint.GatherState("masters")):
        found = checkpoint.gather_state(learner, "masters")
    return {name: tensor.flatten().tolist() for name, tensor in found.items()}


def written(results: list[StepResult]) -> list[dict[str, Any]]:
    return [to_builtins(result) for result in results]


def train(learner: Learner, sft: bool, kl: bool, loss: LossSettings) -> list[StepResult]:
    steps = range(learner.steps, STEPS)
    if sft:
        return [learner.step(make_groups(step, sampler=False), None) for step in steps]
    return [learner.step(make_groups(step, kl=kl), loss, 0.8) for step in steps]


def same_steps(
    runs: Runs, sft: bool = False, kl: bool = False, loss: LossSettings | None = None
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for who in EACH:
        learner = runs.learner(who, reference=kl)
        score = learner.score([3, 1, 4, 1, 5, 9, 2, 6])
        results = train(learner, sft, kl, loss or LossSettings())
        found[who] = {
            "score": score,
            "results": written(results),
            "masters": masters(learner),
            "rescore": learner.score([3, 1, 4, 1, 5, 9, 2, 6]),
        }
    return found


def stages(runs: Runs) -> dict[str, Any]:
    """Two stages on one decoder: the second's reference is what the first made."""
    found: dict[str, Any] = {}
    for who in EACH:
        first = runs.learner(who)
        results = train(first, True, False, LossSettings())
        second = Learner(
            first.decoder,
            runs.settings,
            OPTIMIZER,
            STEPS,
            keep_reference=True,
            version=first.version + first.unpublished,
            ranks=first.ranks,
        )
        results += train(second, False, True, LossSettings())
        found[who] = {"results": written(results), "masters": masters(second)}
    return found


def updates(runs: Runs) -> dict[str, Any]:
    """Several updates per step, each against the log-probabilities before the first."""
    found: dict[str, Any] = {}
    for who in EACH:
        learner = runs.learner(who)
        batches = [make_groups(step) for step in range(STEPS)]
        old = [learner.logprobs(batch, 0.8) for batch in batches]
        results = [
            learner.step(batch, LossSettings(), 0.8, logprobs)
            for batch, logprobs in zip(batches, old, strict=True)
        ]
        flat = [part.tolist() for batch in old for group in batch for part in group]
        found[who] = {"logprobs": flat, "results": written(results), "masters": masters(learner)}
    return found


def renewed(runs: Runs) -> dict[str, Any]:
    """Two updates per step by whole answers' ratios, and another reference after two steps."""
    loss = LossSettings(
        rule="gspo", gspo_low=0.9, gspo_high=9.0, kl_beta=0.05, kl_estimate="unbiased"
    )
    found: dict[str, Any] = {}
    for who in EACH:
        learner = runs.learner(who, reference=True)
        results = []
        for step in range(STEPS):
            groups = make_groups(step, kl=True)
            old = learner.logprobs(groups, 0.8)
            results += [learner.step(groups, loss, 0.8, old) for _ in range(2)]
            if step == 1:
                learner.renew_reference()
        found[who] = {"results": written(results), "masters": masters(learner)}
    return found


def skipped(runs: Runs) -> dict[str, Any]:
    """A step that is not finite changes nothing on any rank, also where only one rank meets it."""
    found: dict[str, Any] = {}
    for who in ("alone", "together"):
        learner = runs.learner(who)
        train(learner, False, False, LossSettings())
        before, groups = masters(learner), make_groups(4, sampler=False)
        groups[1].weights[0][0] = 1e38
        groups[1].weights[0][1] = -1e38
        results = written([learner.step(groups, None)])
        found[who] = {
            "changed": masters(learner) != before,
            "skipped": results[0]["skipped"],
            "counted": [learner.steps, learner.bad_steps, learner.bad_in_row],
        }
    return found


def crossed(runs: Runs, directory: Path) -> dict[str, Any]:
    """Saved by one kind of learner after two steps, gone on with by the other."""
    found: dict[str, Any] = {}
    for writer in EACH:
        first = runs.learner(writer, reference=True)
        for step in range(2):
            first.step(make_groups(step, kl=True), LossSettings(), 0.8)
        first.publish()
        path = directory / writer
        path.mkdir()
        checkpoint.save(first, path, {"step": 2})
        found[f"{writer}-on"] = {
            "results": written(train(first, False, True, LossSettings())),
            "masters": masters(first),
        }
        for reader in (writer,) if writer in ORDERS else ("alone", "together"):
            # Other weights, and a reference made of them: all must come from the file.
            learner = runs.learner(reader, seed=9, reference=True)
            learner.score([3, 1, 4])
            extra = checkpoint.load(learner, path)
            number, tensors = learner.publish()
            again = directory / f"{writer}-{reader}"
            again.mkdir()
            checkpoint.save(learner, again, {"step": 2})
            equal = [
                (path / file.name).read_bytes() == file.read_bytes() for file in again.iterdir()
            ]
            results = train(learner, False, True, LossSettings())
            found[f"{writer}-{reader}"] = {
                "extra": extra,
                "score": learner.score([3, 1, 4]),
                "number": number,
                "tensors": {name: tensor.tolist() for name, tensor in tensors.items()},
                "equal": equal,
                "results": written(results),
                "masters": masters(learner),
            }
    return found


def published(runs: Runs) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for who in ("alone", "together"):
        number, tensors = runs.learner(who).publish()
        found[who] = {
            "number": number,
            "tensors": {
                name: [str(tensor.dtype), list(tensor.shape), tensor.tolist()]
                for name, tensor in tensors.items()
            },
        }
    return found


def equal(together: ranks.Ranks, directory: Path) -> dict[str, Any]:
    fp32 = LearnerSettings(dtype="float32", micro_batch_tokens=16, logits_chunk=8)
    bf16 = LearnerSettings(dtype="bfloat16", micro_batch_tokens=16, logits_chunk=8)
    again = LearnerSettings(
        dtype="float32", micro_batch_tokens=16, logits_chunk=8, activation_checkpointing=True
    )
    tied, untied = Runs(together, fp32), Runs(together, fp32, tied=False, qk_norm=True)
    experts = Runs(together, fp32, routing=ROUTING)
    half = Runs(together, bf16, routing=ROUTING, tied=False)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "tied": lambda: same_steps(tied, kl=True),
        "tied sft": lambda: same_steps(tied, sft=True),
        "untied": lambda: same_steps(untied),
        "untied geometric": lambda: same_steps(untied, loss=LossSettings(correction="geometric")),
        "experts": lambda: same_steps(experts),
        "recomputed": lambda: same_steps(Runs(together, again, routing=ROUTING)),
        "bfloat16": lambda: same_steps(half, kl=True),
        "stages": lambda: stages(tied),
        "updates": lambda: updates(untied),
        "renewed": lambda: renewed(untied),
        "skipped": lambda: skipped(experts),
        "published": lambda: published(half),
        "crossed": lambda: crossed(experts, directory),
    }
    start = {"start": masters(experts.learner("alone"))}
    return start | {name: part() for name, part in parts.items()}


def die(together: ranks.Ranks, directory: Path) -> dict[str, Any]:
    """Steps without end. When the file `training` is there, some are behind, and a checkpoint."""
    learner = Runs(together, LearnerSettings(dtype="float32")).learner("together")
    learner.step(make_groups(0), LossSettings())
    (directory / "saved").mkdir()
    checkpoint.save(learner, directory / "saved", {"step": 1})
    time.sleep(float(os.environ.get("IDLE_S", "0")))
    learner.step(make_groups(1), LossSettings())
    (directory / "training").touch()
    try:
        while True:
            learner.logprobs(make_groups(0))
    except TrainingError as error:
        try:
            learner.score([1, 2])
        except TrainingError as again:
            return {"error": str(error), "again": str(again)}
        raise


def wait_for_all(directory: Path, rank: int, size: int) -> None:
    """So that slow starts do not count against the timeout of the ranks' own meeting."""
    (directory / f"ready-{rank}").touch()
    while len(list(directory.glob("ready-*"))) < size:
        time.sleep(0.02)


def main() -> None:
    kind, directory = sys.argv[1], Path(sys.argv[2])
    wait_for_all(directory, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    with ranks.join("cpu", timeout_s=float(os.environ["TIMEOUT_S"])) as together:
        if together.rank:
            run_rank(together)
            return
        found = {"equal": equal, "die": die}[kind](together, directory)
        (directory / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
