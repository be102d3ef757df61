"""Log-probabilities of the learner and the engine against the reference, as weights change.

    weights ─┬─> learner or engine on the device ──────────> d  = its log-probs - the exact ones
             ├─> the same on the CPU, in the same dtype ───> d' = likewise: what rounding alone does
             └─> decoder in float64 on the CPU: the exact ones        d beyond MARGIN * d' ──> FAIL

Tokens are forced: both sides score the same ones. An engine that decodes chooses its own, which are
then scored exactly. That a chosen token is the right one is for sampling.py to say, and whether a
model learns for training.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from interlock.chips import device, rounding
from interlock.config.schema import Dtype, LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup
from interlock.mismatch import mismatch
from interlock.qualify import tiny_model
from interlock.qualify.check import Evidence, Subject, judged, short
from interlock.records.rl import Completion
from interlock.records.trust import Measure
from interlock.sync.identity import tensor_digest

# How many times the CPU's own error in the same dtype a device may be off.
MARGIN = {device.dtype(name): margin for name, margin in rounding.MARGIN.items()}
CPU = torch.device("cpu")
_VOCAB = 509  # a prime: no tile divides it
# Weights that are stale in one matrix move log-probabilities by more than this share of what a
# whole update moves them; rounding in bfloat16, by less.
_STALE = 0.02

Texts = Sequence[tuple[list[int], list[list[int]]]]  # prompt and completions


class LogprobGap(NamedTuple):
    """How far `pi` is from `mu` on the same tokens: a Mismatch, and the mean difference."""

    k3: float  # nats per token
    mean: float  # of |log pi - log mu|
    max: float  # likewise
    share_above_2: float  # share of tokens with pi / mu > 2


def logprob_gap(pi: Tensor, mu: Tensor) -> LogprobGap:
    """pi and mu: log-probabilities [tokens]. Not a number anywhere: infinitely far."""
    found = mismatch(pi.double().tolist(), mu.double().tolist())
    mean = (pi.double() - mu.double()).abs().nan_to_num(torch.inf).mean().item()
    return LogprobGap(found.k3, mean, found.max, found.share_above_2)


_NAMES = {
    "k3": "k3",
    "mean": "mean difference",
    "max": "largest difference",
    "share_above_2": "share of ratios above 2",
}


def measured(
    case: str, found: LogprobGap, own: LogprobGap, dtype: torch.dtype
) -> Iterator[Measure]:
    """One measure per figure of `found`, held against MARGIN times the CPU's `own`.

    k3 grows with the square of the difference, and so does its margin. Rounding never doubles a
    probability.
    """
    margin = MARGIN[dtype]
    limits = LogprobGap(margin**2 * own.k3, margin * own.mean, margin * own.max, own.share_above_2)
    for figure, value, limit, reference in zip(LogprobGap._fields, found, limits, own, strict=True):
        yield Measure(f"{case}: {_NAMES[figure]}", value, limit, reference)


def learner_parity(subject: Subject) -> Evidence:
    """Its log-probabilities before and after updates, under the weights that it publishes."""
    arch = tiny_model.architecture(hidden=64, vocab=_VOCAB)
    start = tiny_model.weights(arch, subject.seed)
    groups = _groups()
    texts = [(group.prompt, group.completions) for group in groups]
    measures: list[Measure] = []
    for dtype in MARGIN:
        learner = _learner(start, subject.device, dtype)
        before: dict[str, Tensor] = {}
        for update in range(1 + subject.at(1, 3)):
            if update:
                learner.step(groups, None)
            number, published = learner.publish()
            tensors = {name: tensor.cpu() for name, tensor in published.items()}
            case = f"{short(dtype)}, after {update} updates"
            still = sum(torch.equal(tensors[name], old) for name, old in before.items())
            measures += [
                Measure(f"{case}: tensors that did not change", still, 0),
                Measure(f"{case}: publications left out", update - number, 0),
                _broken(case, tensors),
            ]
            before = tensors
            truth = _exact(arch, tensors, texts)
            found = logprob_gap(_flat(learner.logprobs(groups)), truth)
            own = logprob_gap(_flat(_learner(tensors, CPU, dtype).logprobs(groups)), truth)
            measures += measured(case, found, own, dtype)
    return judged(
        measures,
        "the learner's log-probabilities are the reference's up to rounding, before and after "
        "updates",
        "the learner's log-probabilities are not the reference's: {count} of {total} figures are "
        "beyond rounding, worst: {worst}",
        {"tokens": sum(map(len, chain.from_iterable(completions for _, completions in texts)))},
    )


def engine_parity(subject: Subject) -> Evidence:
    """Prefill and decode under two sets of weights, and the bits of the weights themselves."""
    arch = tiny_model.architecture(hidden=64, vocab=_VOCAB)
    lengths = (512, 513, 511, 640)[: subject.at(2, 4)]
    texts = [(text[:1], [text[1:]]) for text in _prompts(*lengths)]
    # In several length classes; the last one decodes across 512 tokens.
    requests = _requests({17: 4, 33: 3, 600: 2, 508: 4}, subject.at(10, 40))
    measures: list[Measure] = []
    for dtype in MARGIN:
        sets = [_cast(tiny_model.weights(arch, subject.seed + number), dtype) for number in (0, 1)]
        engines = [
            tiny_model.engine(arch, sets[0], place, dtype) for place in (subject.device, CPU)
        ]
        for number, tensors in enumerate(sets):
            case = f"{short(dtype)}, {('first', 'second')[number]} weights"
            if number:
                for engine in engines:
                    engine.load(tensors, number)
            measures.append(_loaded_bits(case, engines[0], tensors))
            measures.append(_broken(case, dict(engines[0].held())))
            truth = _exact(arch, tensors, texts)
            found, own = (logprob_gap(truth, _scores(engine, texts)) for engine in engines)
            measures += measured(f"{case}, prefill", found, own, dtype)
            found, own = (logprob_gap(*_decoded(engine, requests, tensors)) for engine in engines)
            measures += measured(f"{case}, decode", found, own, dtype)
    return judged(
        measures,
        "the engine's log-probabilities are the reference's up to rounding, through prefill and "
        "decode, before and after an update",
        "the engine's log-probabilities are not the reference's: {count} of {total} figures are "
        "beyond rounding, worst: {worst}",
    )


def stale_weights(subject: Subject) -> Evidence:
    """Load unlike weights one after the other, and see which of them generation follows.

    The figure is the distance to the log-probabilities of the weights loaded last, as a share of
    the distance between those and the ones loaded before: 0 is fresh, 1 is stale. Decoding can be
    stale where prefill is not, and where the weights that the engine shows are right:
    vllm-ascend#7473, NeMo-RL#2895.
    """
    arch = tiny_model.architecture(hidden=64, vocab=_VOCAB)
    # Scaled apart, the sets disagree by nats on every token.
    sets = [tiny_model.weights(arch, subject.seed + n, 1.0 + 0.5 * (n % 2)) for n in range(5)]
    requests = _requests({17: 4, 33: 3, 100: 2}, subject.at(6, 16))
    # The third is overwritten by the fourth before anything has used it.
    orders = {"one by one": [1, 2, 4], "two at once": [1, 3, 4]}
    chosen = dict(list(orders.items())[: subject.at(1, 2)])
    measures: list[Measure] = []
    for dtype in MARGIN:
        given = [_cast(tensors, dtype) for tensors in sets]
        for how, order in chosen.items():
            engine, own = (
                tiny_model.engine(arch, given[0], place, dtype) for place in (subject.device, CPU)
            )
            _answers(engine, requests)  # warm: a cache of packed weights is filled by now
            for previous, number in zip([0, *order], order, strict=False):
                for version in range(previous + 1, number + 1):
                    engine.load(_placed(given[version], subject.device, version), version)
                own.load(given[number], number)
                case = f"{short(dtype)}, {how}, version {number} after {previous}"
                measures += _staleness(
                    case, engine, own, requests, given[previous], given[number], dtype
                )
    return judged(
        measures,
        "after every update, decoding and prefill both follow the weights that were loaded last",
        "generation does not follow the weights that were loaded last: {count} of {total} figures "
        "are off, worst: {worst} (1 is wholly stale)",
    )


def _staleness(
    case: str,
    engine: PortableEngine,
    own: PortableEngine,
    requests: Sequence[Request],
    old: dict[str, Tensor],
    new: dict[str, Tensor],
    dtype: torch.dtype,
) -> Iterator[Measure]:
    """Of what `engine` decodes now; `own` is the CPU's engine with the same weights."""
    arch = engine.decoder.arch
    answers = _answers(engine, requests)
    late = sum(a.weight_version != engine.version for group in answers for a in group)
    yield Measure(f"{case}: completions of another version", late, 0)
    texts = _texts(requests, answers)
    decoded = _logprobs(answers)
    fresh, stale = _exact(arch, new, texts), _exact(arch, old, texts)
    way = logprob_gap(fresh, stale).mean
    prefilled, rounding = _scores(engine, texts), logprob_gap(fresh, _scores(own, texts)).mean / way
    limit = max(_STALE, MARGIN[dtype] * rounding)
    for name, one, other in (
        ("decode", decoded, fresh),
        ("prefill", prefilled, fresh),
        ("decode against prefill", decoded, prefilled),
    ):
        yield Measure(f"{case}: {name}", logprob_gap(one, other).mean / way, limit, rounding)


def _placed(tensors: dict[str, Tensor], device: torch.device, version: int) -> dict[str, Tensor]:
    """From the host as a worker loads them, or from the device as a learner hands them over."""
    return tensors if version % 2 else {name: t.to(device) for name, t in tensors.items()}


def _prompts(*lengths: int) -> list[list[int]]:
    return [tiny_model.prompt(length, _VOCAB) for length in lengths]


def _requests(prompts: Mapping[int, int], length: int) -> list[Request]:
    """Groups that share a prompt; `prompts`: completions by the prompt's length."""
    return [
        tiny_model.request(tiny_model.prompt(size, _VOCAB), f"p{size}", completions, length)
        for size, completions in prompts.items()
    ]


def _groups() -> list[TrainingGroup]:
    """What a step learns: completions that share a prompt, in spans on both sides of 512 keys."""
    shapes = [(40, (16, 1, 31)), (496, (17, 16, 15)), (511, (8, 2)), (600, (24,))]
    total = sum(length for _, lengths in shapes for length in lengths)
    groups = []
    for prompt, lengths in shapes:
        completions = [
            tiny_model.prompt(length, _VOCAB, seed=1 + place)
            for place, length in enumerate(lengths)
        ]
        weights = [[1 / total] * length for length in lengths]
        groups.append(TrainingGroup(_prompts(prompt)[0], completions, weights))
    return groups


def _learner(tensors: dict[str, Tensor], device: torch.device, dtype: torch.dtype) -> Learner:
    """On these weights. Its rate moves every tensor by more than a unit of bfloat16."""
    arch = tiny_model.architecture(hidden=64, vocab=_VOCAB)
    compute: Dtype = "float32" if dtype == torch.float32 else "bfloat16"
    masters = tiny_model.decoder(arch, tensors, device, torch.float32)
    settings = LearnerSettings(dtype=compute)
    return Learner(masters, settings, OptimizerSettings(lr=2e-2), total_steps=10)


def _broken(case: str, tensors: Mapping[str, Tensor]) -> Measure:
    """What is not finite must not become the truth that it is then held against."""
    broken = sum(int((~tensor.isfinite()).sum()) for tensor in tensors.values())
    return Measure(f"{case}: weights that are not finite", broken, 0)


def _loaded_bits(case: str, engine: PortableEngine, given: Mapping[str, Tensor]) -> Measure:
    wrong = sum(tensor_digest(view) != tensor_digest(given[name]) for name, view in engine.held())
    return Measure(f"{case}: tensors held in other bits than loaded", wrong, 0)


def _answers(engine: PortableEngine, requests: Sequence[Request]) -> list[list[Completion]]:
    """All together, and the last request once more alone: chips have a product of their own for
    few rows."""
    return engine.generate(requests) + engine.generate(requests[-1:])


def _decoded(
    engine: PortableEngine, requests: Sequence[Request], tensors: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The exact log-probabilities of the tokens that `engine` draws, and its own."""
    answers = _answers(engine, requests)
    texts = _texts(requests, answers)
    return _exact(engine.decoder.arch, tensors, texts), _logprobs(answers)


def _exact(arch: tiny_model.Architecture, tensors: dict[str, Tensor], texts: Texts) -> Tensor:
    model = tiny_model.exact(arch, tensors)
    return torch.cat([tiny_model.logprobs(model, prompt, tokens) for prompt, tokens in texts])


def _scores(engine: PortableEngine, texts: Texts) -> Tensor:
    """Through prefill."""
    found = [
        engine.score([*prompt, *tokens]).logprobs[len(prompt) - 1 :]
        for prompt, completions in texts
        for tokens in completions
    ]
    return torch.tensor([value for values in found for value in values], dtype=torch.float64)


def _texts(requests: Sequence[Request], answers: Sequence[Sequence[Completion]]) -> Texts:
    asked = [*requests, requests[-1]]
    return [
        (request.prompt_tokens, [answer.tokens for answer in group])
        for request, group in zip(asked, answers, strict=True)
    ]


def _logprobs(answers: Sequence[Sequence[Completion]]) -> Tensor:
    found = [value for group in answers for answer in group for value in answer.logprobs]
    return torch.tensor(found, dtype=torch.float64)


def _flat(nested: Sequence[Sequence[Tensor]]) -> Tensor:
    return torch.cat([part for group in nested for part in group])


def _cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}
