"""How long the parts of a step take: rooflines with the constants of constants.py.

    decode_s      one decoding step of a replica        ──> generation_s  all completions of a step
    forward_s     log-probabilities of given tokens
    update_s      forward, backward, optimizer
    publication_s weights from the learner to generators

Everything is per replica or per group of chips that work alike, in seconds, bytes and FLOP.
"""

from collections.abc import Callable
from typing import NamedTuple

from interlock.plan.chips import ChipSpec
from interlock.plan.constants import Rates
from interlock.plan.lengths import AnswerLengths, depths, second_moment, unfinished
from interlock.plan.shapes import ModelShape

_CACHE_BYTES = 2.0  # of an element of keys and values
_SENT_BYTES = 2.0  # of an element that chips of one replica pass on
_NODES_PER_TOKEN = 4  # that DeepSeek-V3's router lets a token go to; of others assumed
_OPTIMIZER_BYTES = 34.0  # moved per weight: masters and two moments read and written, 24; gradient
MOST_SPLIT = 16  # chips that share a sequence's tokens, at the most
_GRADIENT_BYTES = 6.0  # sent per weight: gradients reduced in float32, weights gathered in bfloat16


_MOST_SHARE = 0.9  # of a memory's bandwidth, however slow it is; assumed
_USUAL = 2e12  # bytes/s of the memory whose share the constant is


class GeneratorReplica(NamedTuple):
    """Chips that hold one copy of the weights and decode together."""

    shape: ModelShape
    chip: ChipSpec
    chips: int
    slots: float  # completions that it decodes at the same time, at most
    weight_bytes: float = 2.0
    expert: bool = False  # experts spread over all chips, attention copied to each (EP with DP)


class StepLoad(NamedTuple):
    """What one step generates and learns from."""

    prompts: float
    completions: float  # in all, over all prompts
    prompt_tokens: float  # mean
    lengths: AnswerLengths
    packed: bool = False  # a prompt is learned from once, not with each of its completions

    @property
    def tokens(self) -> float:
        """That the learner computes."""
        prompts = self.prompts if self.packed else self.completions
        return prompts * self.prompt_tokens + self.completions * self.lengths.mean

    @property
    def context(self) -> float:
        """Mean of the tokens before a token that is learned from, times the tokens: E[L^2] / 2."""
        given, mean = self.prompt_tokens, self.lengths.mean
        square = given**2 + 2 * given * mean + second_moment(self.lengths)
        return self.completions * square / 2


class Learners(NamedTuple):
    """Chips that update one copy of the masters."""

    shape: ModelShape
    chip: ChipSpec
    chips: int
    tensor: int = 1
    stages: int = 1  # of a pipeline
    expert: int = 1
    context: int = 1
    weight_bytes: float = 2.0
    recompute: bool = True
    adapter: float = 0.0  # weights of one (LoRA), which alone have gradients; 0: all have
    bucket: float = 0.0  # sequences per optimizer step; 0: all of a step's


def _peak(chip: ChipSpec, weight_bytes: float) -> float:
    return chip.flops_8bit or chip.flops if weight_bytes <= 1 else chip.flops


def moving(chip: ChipSpec, rates: Rates) -> float:
    """Bytes/s that are reached: of a faster memory a smaller share, as each layer is as short."""
    share = rates.memory * (_USUAL / chip.bandwidth) ** rates.slope
    return chip.bandwidth * min(max(_MOST_SHARE, rates.memory), share)


def shared_s(chip: ChipSpec, chips: int, sent: float, rates: Rates) -> float:
    """One all-reduce of `sent` bytes over so many chips: latency, and a ring's volume.

    What leaves the domain of fast links goes over the slow ones (a ring over domains).
    """
    if chips <= 1:
        return 0.0
    near = min(chips, chip.domain)
    volume = 2.0 * (near - 1) / near * sent / (chip.scale_up * rates.link)
    if chips <= chip.domain:
        return rates.hop_s + volume
    domains = chips / chip.domain
    # Every chip of a domain sends its share of the sum.
    far = 2.0 * (domains - 1) / domains * sent / near / (chip.scale_out * rates.link)
    return rates.far_hop_s + volume + far


def routed_s(chip: ChipSpec, chips: int, sent: float, rates: Rates) -> float:
    """One all-to-all in which every chip sends `sent` bytes to experts on the others."""
    if chips <= 1:
        return 0.0
    if chips <= chip.domain:
        return rates.hop_s + sent / (chip.scale_up * rates.link)
    outside = 1.0 - chip.domain / chips
    return rates.far_hop_s + sent * outside / (chip.scale_out * rates.link)


def decode_s(of: GeneratorReplica, rows: float, context: float, rates: Rates) -> float:
    """One step that gives each of `rows` completions its next token, after `context` tokens.

    max(bytes / bandwidth, FLOP / peak) + per layer: launches, and two all-reduces.
    """
    return decoding(of, rates)(rows, context)


def decoding(of: GeneratorReplica, rates: Rates) -> Callable[[float, float], float]:
    """`decode_s` of one replica: (rows, context) -> seconds, for many of them."""
    shape, chip, chips = of.shape, of.chip, of.chips
    always = shape.always * of.weight_bytes
    if of.expert:  # each chip reads all that is no expert
        always *= chips
    # Each expert has few rows: its weights are read less well than those that all rows share.
    routed = shape.routed * of.weight_bytes / rates.routed
    share = shape.per_token / shape.experts if shape.experts else 0.0
    rate = chips * moving(chip, rates)
    peak = chips * _peak(chip, of.weight_bytes) * rates.products
    cache, scores = shape.kv_elements * _CACHE_BYTES, shape.layers * shape.decoding
    sent = shape.hidden * _SENT_BYTES
    layers = shape.layers * rates.layer_s + rates.token_s

    def moved_and_computed(rows: float, context: float) -> float:
        # Completions of one problem go to the same experts: fewer are hit than by strangers.
        hit = routed * (1.0 - (1.0 - share) ** (rows * rates.alike)) if routed else 0.0
        moved = (always + hit + rows * context * cache) / rate
        return max(moved, 2.0 * rows * (shape.active + scores * context) / peak)

    def together(rows: float, context: float) -> float:
        passed = 2.0 * shape.layers * shared_s(chip, chips, rows * sent, rates)
        return moved_and_computed(rows, context) + passed + layers + rows * rates.row_s

    def apart(rows: float, context: float) -> float:
        # Two halves of the rows take turns: one is sent while the other is computed.
        hops = min(shape.per_token, _NODES_PER_TOKEN)
        passed = routed_s(chip, chips, rows * sent * hops / chips, rates)
        longest = max(moved_and_computed(rows, context), 2.0 * shape.layers * passed)
        return longest + layers + rows / chips * rates.row_s

    return apart if of.expert else together


def prefill_s(of: GeneratorReplica, tokens: float, rates: Rates) -> float:
    flops = 2.0 * tokens * of.shape.active
    return flops / (of.chips * _peak(of.chip, of.weight_bytes) * rates.products)


def generation_s(of: GeneratorReplica, replicas: float, load: StepLoad, rates: Rates) -> float:
    """All completions of one step, nobody refilling: the sum over depths of what a step takes.

    More completions than slots are decoded one after another at full slots first, and the last
    ones of them have the tail to themselves.
    """
    each = load.completions / replicas
    together = max(1.0, min(each, of.slots))
    mean = load.lengths.mean
    queued = max(0.0, each - together) * mean / together
    total = prefill_s(of, load.prompts / replicas * load.prompt_tokens, rates)
    step_s = decoding(of, rates)
    if queued:
        # As many tokens have long answers behind them as long answers have tokens.
        before = second_moment(load.lengths) / (2 * mean)
        total += queued * step_s(together, load.prompt_tokens + before)
    for stretch in depths(load.lengths):
        going = unfinished(stretch.alive, together)
        if going < 1e-4:
            break
        rows = max(1.0, together * stretch.alive / going)
        total += stretch.tokens * going * step_s(rows, load.prompt_tokens + stretch.at)
    return total


def refilled_s(of: GeneratorReplica, replicas: float, load: StepLoad, rates: Rates) -> float:
    """As much, with slots that are refilled at once: no tail, the mean length sets it."""
    each = load.completions / replicas
    together = max(1.0, min(each, of.slots))
    context = load.prompt_tokens + second_moment(load.lengths) / (2 * load.lengths.mean)
    total = prefill_s(of, load.prompts / replicas * load.prompt_tokens, rates)
    step = decode_s(of, together, context, rates)
    return total + each / together * load.lengths.mean * step


def busy(of: Learners, sequences: float) -> float:
    """Chips that have something to do: a copy of the model has one sequence at the least."""
    copy = max(of.tensor * of.context, MOST_SPLIT) * of.stages
    return min(float(of.chips), max(1.0, sequences) * copy)


def _passes_s(
    of: Learners, load: StepLoad, times: tuple[float, float], chips: float, rates: Rates
) -> float:
    """So many times the products of a forward pass, of weights and of attention, on `chips`."""
    linear, attending = times
    shape, peak = of.shape, chips * _peak(of.chip, of.weight_bytes)
    products = 2.0 * linear * shape.active * load.tokens / (peak * rates.learning)
    scores = 2.0 * attending * shape.layers * shape.attention * load.context
    # What is read and written between the products: its share grows as a model gets narrower.
    inner = (shape.active_inner + 4.0 * shape.hidden) * (2.0 if of.adapter else 1.0)
    spread = shape.per_token * shape.hidden * rates.dispatch if shape.experts else 0.0
    layers = shape.layers * (inner * rates.elements + spread)
    moved = linear * (layers + shape.vocab * rates.elements) * load.tokens
    between = moved / (chips * moving(of.chip, rates))
    return products + scores / (peak * rates.attention) + between


def bubble(of: Learners, load: StepLoad) -> float:
    """How much longer a pipeline takes for filling and draining: 1 + (stages - 1) / batches."""
    if of.stages <= 1:
        return 1.0
    width = max(1.0, of.chips / (of.stages * of.tensor * of.context))
    batches = max(1.0, (of.bucket or load.completions) / width)
    return 1.0 + (of.stages - 1) / batches


def forward_s(of: Learners, load: StepLoad, rates: Rates) -> float:
    """Log-probabilities of a step's tokens by the learner's own weights."""
    passes = _passes_s(of, load, (1.0, 1.0), busy(of, load.completions), rates)
    return rates.scoring * passes * bubble(of, load)


def update_s(of: Learners, load: StepLoad, updates: float, rates: Rates) -> float:
    """Forward, backward and the optimizer's steps on all tokens of one step.

    4 passes of the weights: forward, twice that backward, and once more what was not kept; with an
    adapter no gradient of the weights. Flash attention goes backward in 2.5 of its forward passes.
    """
    again = 1.0 if of.recompute else 0.0
    linear = (2.0 if of.adapter else 3.0) + again
    chips = busy(of, of.bucket or load.completions / max(1.0, updates))
    passes = _passes_s(of, load, (linear, 3.5 + again), chips, rates) * bubble(of, load)
    trained = of.adapter or of.shape.params
    optimizer = trained * _OPTIMIZER_BYTES / (of.chips * moving(of.chip, rates))
    return passes + updates * (optimizer + _gradients_s(of, trained, rates) + rates.update_s)


def _gradients_s(of: Learners, trained: float, rates: Rates) -> float:
    """Gradients reduced and weights gathered, between copies of the same part of the weights."""
    parts = of.tensor * of.stages * (of.expert if of.shape.experts else 1)
    if of.chips <= 1 or of.chips <= parts:
        return 0.0
    link = of.chip.scale_up if of.chips <= of.chip.domain else of.chip.scale_out
    return trained / parts * _GRADIENT_BYTES / (link * rates.link)


def publication_s(sent: float, link: float, latency: float = 0.0) -> float:
    """So many bytes over a link of so many bytes/s, behind a latency."""
    return latency + sent / link
