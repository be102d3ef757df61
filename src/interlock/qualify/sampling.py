"""Whether tokens are drawn as they should be: alone, among others, and as often as they should.

    logits, noise ── sampler on the device ──> tokens ── counts ──> chi-square
                                                 └────── logprobs ──> against float64
    one request ── engine, alone and among others ──> tokens and logprobs: the same up to rounding

A device may round otherwise when the batch is another one: products of other shapes are summed in
another order. That is healthy, and it is all that is forgiven here: an answer whose last bits
depend on its neighbours is still an answer of the same model. That the same call gives the same
bits is for endurance.py to ask (determinism), and exact logits for agreement.py.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from interlock.engine.portable.engine import PortableEngine
from interlock.engine.portable.sampler import Noise, sample
from interlock.models.architecture import Architecture
from interlock.qualify import tiny_model
from interlock.qualify.agreement import CPU, MARGIN
from interlock.qualify.check import Evidence, Subject, judged, short
from interlock.records.rl import Completion, Sampling
from interlock.records.trust import Measure

# -log10 of the probability that as large a chi-square comes from a right sampler. The noise is
# fixed, so a device that passes passes always; this is for the choice of the noise.
_IMPROBABLE = 9.0
_EXPECTED = 5.0  # draws that a cell of the chi-square needs, Cochran's rule
# Of the draws, how many may differ from the CPU's: those whose noise is within rounding, some 1e-6,
# of where one token ends and the next begins. 512 such edges make 1e-3.
_EDGES = 5e-3
# The seed of the logits: with it no top-p ends within rounding of a token.
_LOGITS = 3
_LOGPROB = 1e-6  # a logprob's rounding at the least, in nats
_DRAWS = 4096  # rows of one call
_ASKED = 24  # tokens of the prompt that is asked alone and among others
# Others in the batch, and the place among them: rows that tiles of a product divide, and not.
_CROWDS = ((32, 0), (31, 16), (38, 38))

_RULES = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.7),
    Sampling(temperature=1.0, top_k=20),
    Sampling(temperature=0.7, top_p=0.9),
    Sampling(temperature=1.3, top_k=50, top_p=0.8),
    Sampling(temperature=0.0),
]


class _Draws(NamedTuple):
    tokens: Tensor  # [draws] int64, on the CPU
    logprobs: Tensor  # [draws] fp64, on the CPU


def distribution(subject: Subject) -> Evidence:
    """Draw many tokens of one row of logits under several rules, alone and mixed in one batch."""
    draws = subject.at(4096, 20480)
    measures: list[Measure] = []
    for dtype, vocab, count, rules in (
        (torch.float32, 509, draws, _RULES[:1]),
        (torch.float32, 509, draws * len(_RULES), _RULES),
        (torch.bfloat16, 509, draws, _RULES[1:2]),
        (torch.float32, 32003, subject.at(64, 512), _RULES[:1]),
    ):
        noise = torch.Generator().manual_seed(_LOGITS)
        logits = (2 * torch.randn(vocab, generator=noise)).to(dtype)
        found = _draw(logits.to(subject.device), count, rules, subject.seed)
        own = _draw(logits, count, rules, subject.seed)
        for place, rule in enumerate(rules):
            case = f"{_described(rule)}, {vocab} tokens, {short(dtype)}"
            case += ", mixed" if len(rules) > 1 else ""
            mine, its = (
                _Draws(*(column[place :: len(rules)] for column in drawn)) for drawn in (own, found)
            )
            measures += _judged(case, its, mine, logits.double(), rule)
    return judged(
        measures,
        "tokens are drawn as often as their probabilities say, and reported with them",
        "tokens are not drawn as their probabilities say: {count} of {total} figures are off, "
        "worst: {worst}",
        {"tokens drawn per rule": draws},
    )


def invariance(subject: Subject) -> Evidence:
    """One greedy request alone, again and again, and then among others, in batches of all sizes.

    What rounding allows is taken from the reference: twice MARGIN times the CPU's own largest error
    in the same dtype, for two results that may each be off by that. Logprobs may differ by so much,
    and tokens from the first place on where the exact ones of the two are as close.
    vllm-ascend#12610.
    """
    arch = tiny_model.architecture(hidden=64, vocab=509)
    length = subject.at(8, 24)
    crowds = _CROWDS[: subject.at(2, 3)]
    measures: list[Measure] = []
    other_bits = 0
    for dtype, repeats in ((torch.float32, subject.at(3, 12)), (torch.bfloat16, subject.at(2, 8))):
        tensors = tiny_model.weights(arch, subject.seed)
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        engine, own = (
            tiny_model.engine(arch, tensors, place, dtype, slots=64)
            for place in (subject.device, CPU)
        )
        alone, reference = (_alone(each, length) for each in (engine, own))
        prompt = tiny_model.prompt(_ASKED, arch.vocab)
        band = 2 * MARGIN[dtype] * _error(arch, tensors, prompt, reference)
        crowded = {crowd: _among(own, length, *crowd) for crowd in crowds}
        spread = max(_differ(reference, crowded[crowd][crowd[1]]) for crowd in crowds)
        name = short(dtype)
        again = {f"{name}, time {n + 1}": _alone(engine, length) for n in range(1, repeats)}
        other_bits += sum(answer != alone for answer in again.values())
        among = {}
        for (others, place), mine in crowded.items():
            case = f"{name}, number {place + 1} of {others + 1}"
            answers = _among(engine, length, others, place)
            among[case] = answers[place]
            differ, lead = _neighbours(arch, tensors, _prompts(arch, others, place), mine, answers)
            measures.append(Measure(f"{case}: any answer against the CPU's", differ, band))
            measures.append(Measure(f"{case}: lead where one changed", lead, band))
        exact = _exact(arch, tensors, prompt, alone)
        for case, answer in (again | among).items():
            differ, lead = _differ(alone, answer), _lead(alone, answer, exact)
            measures.append(Measure(f"{case}: difference of logprobs", differ, band, spread))
            measures.append(Measure(f"{case}: lead of the token that changed", lead, band))
    return judged(
        measures,
        "an answer is the same alone, again and in larger batches, up to rounding",
        "an answer depends on what else is in the batch: {count} of {total} figures are beyond "
        "rounding, worst: {worst}",
        {"repeats alone that differ in any bit": other_bits},
    )


def _draw(logits: Tensor, count: int, rules: Sequence[Sampling], seed: int) -> _Draws:
    """`count` tokens of one row of logits [V], the rules taking turns."""
    parts = []
    for start in range(0, count, _DRAWS):
        rows = range(start, min(count, start + _DRAWS))
        noise = [Noise(seed, "sampler", row).at(0) for row in rows]
        chosen = [rules[row % len(rules)] for row in rows]
        tokens, logprobs = sample(logits.expand(len(rows), -1), chosen, noise)
        parts.append((tokens.cpu(), logprobs.cpu().double()))
    tokens, logprobs = (torch.cat(column) for column in zip(*parts, strict=True))
    return _Draws(tokens, logprobs)


def _judged(
    case: str, found: _Draws, own: _Draws, logits: Tensor, rule: Sampling
) -> Iterator[Measure]:
    """`logits` [V] in float64; `own`: what the CPU drew."""
    probabilities = expected(logits, rule)
    known = (found.tokens >= 0) & (found.tokens < len(logits))
    tokens = found.tokens.where(known, 0)
    outside = (~known | (probabilities[tokens] == 0)).sum().item()
    yield Measure(f"{case}: tokens that the rule leaves out", outside, 0)
    if rule.temperature > 0:
        counts = tokens.bincount(minlength=len(logits))
        yield Measure(
            f"{case}: -log10 p of chi-square", improbability(counts, probabilities), _IMPROBABLE
        )
    unlike = (found.tokens != own.tokens).double().mean().item()
    yield Measure(f"{case}: share of draws unlike the CPU's", unlike, _EDGES)
    # Greedy tokens are reported with what they have at temperature 1.
    stated = probabilities if rule.temperature > 0 else logits.softmax(0)
    off, rounding = (
        (drawn.logprobs - stated[chosen].log()).abs().nan_to_num(torch.inf).max().item()
        for drawn, chosen in ((found, tokens), (own, own.tokens))
    )
    limit = MARGIN[torch.float32] * max(rounding, _LOGPROB)
    yield Measure(f"{case}: largest error of a logprob", off, limit, rounding)


def expected(logits: Tensor, rule: Sampling) -> Tensor:
    """Probability of each token [V] fp64 under the rule: temperature, top-k, then top-p."""
    if rule.temperature == 0:
        return torch.zeros_like(logits).index_fill_(0, logits.argmax(), 1.0)
    ranked, order = (logits / rule.temperature).softmax(0).sort(descending=True)
    if rule.top_k:
        ranked[rule.top_k :] = 0
    before = ranked.cumsum(0) - ranked
    if rule.top_p < 1:
        ranked = ranked.where(before < rule.top_p * ranked.sum(), 0)
    return torch.zeros_like(logits).index_copy_(0, order, ranked / ranked.sum())


def improbability(counts: Tensor, probabilities: Tensor) -> float:
    """-log10 of the p-value of Pearson's chi-square; counts [V], probabilities [V] fp64.

    The least likely tokens share cells, so that each expects at least 5 draws.
    """
    ranked, order = (probabilities * counts.sum()).sort(descending=True)
    cells: list[list[float]] = []  # expected and found
    rest = [0.0, 0.0]
    for expects, found in zip(ranked.tolist(), counts[order].tolist(), strict=True):
        rest = [rest[0] + expects, rest[1] + found]
        if rest[0] >= _EXPECTED:
            cells.append(rest)
            rest = [0.0, 0.0]
    if not cells:
        return 0.0
    cells[-1] = [cells[-1][0] + rest[0], cells[-1][1] + rest[1]]
    table = torch.tensor(cells, dtype=torch.float64)
    statistic = ((table[:, 1] - table[:, 0]) ** 2 / table[:, 0]).sum()
    freedom = torch.tensor(max(1, len(cells) - 1), dtype=torch.float64)
    # Beyond 1e-300, where doubles end.
    p = torch.special.gammaincc(freedom / 2, statistic / 2).clamp(min=1e-300)
    return -p.log10().item()


def _described(rule: Sampling) -> str:
    if rule.temperature == 0:
        return "greedy"
    parts = [f"temperature {rule.temperature:g}"]
    parts += [f"top-k {rule.top_k}"] if rule.top_k else []
    parts += [f"top-p {rule.top_p:g}"] if rule.top_p < 1 else []
    return ", ".join(parts)


def _alone(engine: PortableEngine, length: int) -> Completion:
    prompt = tiny_model.prompt(_ASKED, engine.limits.vocab)
    return engine.generate([tiny_model.request(prompt, "n0", 1, length, temperature=0.0)])[0][0]


def _among(engine: PortableEngine, length: int, others: int, place: int) -> list[Completion]:
    """The answers to `_prompts`."""
    requests = [
        tiny_model.request(prompt, f"n{number}", 1, length, temperature=0.0)
        for number, prompt in enumerate(_prompts(engine.decoder.arch, others, place))
    ]
    return [group[0] for group in engine.generate(requests)]


def _prompts(arch: Architecture, others: int, place: int) -> list[list[int]]:
    """As number `place` that of the request which is also asked alone; others of many lengths."""
    prompts = [tiny_model.prompt(3 + 5 * other, arch.vocab, 1) for other in range(others)]
    return [*prompts[:place], tiny_model.prompt(_ASKED, arch.vocab), *prompts[place:]]


def _neighbours(
    arch: Architecture,
    tensors: dict[str, Tensor],
    prompts: Sequence[list[int]],
    mine: Sequence[Completion],
    found: Sequence[Completion],
) -> tuple[float, float]:
    """Of all answers of a batch, against the CPU's: the largest `_differ`, the largest `_lead`."""
    differ = lead = 0.0
    for prompt, one, other in zip(prompts, mine, found, strict=True):
        differ = max(differ, _differ(one, other))
        if one.tokens != other.tokens:
            lead = max(lead, _lead(one, other, _exact(arch, tensors, prompt, one)))
    return differ, lead


def _exact(
    arch: Architecture, tensors: dict[str, Tensor], prompt: list[int], answer: Completion
) -> Tensor:
    """Log-probabilities [tokens, V] fp64 at every place of the answer."""
    rows = tiny_model.distributions(tiny_model.exact(arch, tensors), [*prompt, *answer.tokens[:-1]])
    return rows[len(prompt) - 1 :]


def _error(
    arch: Architecture, tensors: dict[str, Tensor], prompt: list[int], answer: Completion
) -> float:
    """The largest error of the answer's logprobs, in nats."""
    chosen = torch.tensor(answer.tokens)[:, None]
    exact = _exact(arch, tensors, prompt, answer).gather(1, chosen)[:, 0]
    return (exact - torch.tensor(answer.logprobs)).abs().max().item()


def _common(one: Completion, other: Completion) -> int:
    """How many first tokens are the same."""
    same = [a == b for a, b in zip(one.tokens, other.tokens, strict=True)]
    return same.index(False) if False in same else len(same)


def _differ(one: Completion, other: Completion) -> float:
    """The largest difference of logprobs over the tokens before the first other one."""
    count = _common(one, other)
    pairs = zip(one.logprobs[:count], other.logprobs[:count], strict=True)
    return max((abs(a - b) for a, b in pairs), default=0.0)


def _lead(one: Completion, other: Completion, exact: Tensor) -> float:
    """How far apart the two different tokens are at the first place that has any, in nats by the
    exact log-probabilities [tokens, V]; 0 where there is no such place.
    """
    place = _common(one, other)
    if place == len(one.tokens):
        return 0.0
    row = exact[place]
    return abs(row[one.tokens[place]] - row[other.tokens[place]]).item()
