"""How many chips hold a model, for each role: memory per chip, and the parallelism it implies.

    generator: weights, and the cache of what it decodes       ──> chips of a replica, slots
    learner:   weights, gradients, masters, moments, activations ──> tensor, context, expert, stages

Powers of two: up to the domain of fast links the weights' matrices are split (tensor), beyond it
layers are (stages of a pipeline); experts are spread over what copies there are.
"""

from typing import NamedTuple

from interlock.plan.chips import ChipSpec
from interlock.plan.shapes import ModelShape

_USABLE = 0.9  # of a chip's memory, as vLLM takes; the rest is the runtime's. assumed
_CACHE_BYTES = 2.0
_LEAST_CACHE = 0.15  # of the usable memory that a generator keeps for its cache, at least; assumed
# Per weight of the learner: bfloat16 copy 2, gradient in float32 4, master and two moments 12.
_LEARNER_BYTES = 18.0
_ADAPTER_BYTES = 2.0  # the frozen weights in bfloat16
_KEPT_PER_LAYER = 2.0  # bytes per hidden element and token: a layer's input, the rest recomputed
_AT_WORK = 34.0  # bytes per hidden element and token of the one layer that is being recomputed
_LOGITS = 1024 * 8.0  # tokens times bytes: logits and their gradient, a chunk at a time
_MOST_TENSOR = 8
_MOST = 2**20


class MemoryUse(NamedTuple):
    """Bytes per chip of one role."""

    weights: float
    optimizer: float  # gradients, masters and moments
    cache: float  # keys and values
    activations: float
    usable: float

    @property
    def total(self) -> float:
        return self.weights + self.optimizer + self.cache + self.activations

    @property
    def fits(self) -> bool:
        return self.total <= self.usable


def generator_chips(shape: ModelShape, chip: ChipSpec, weight_bytes: float) -> int:
    """Chips of the smallest replica: the weights, and some room for the cache."""
    room = chip.memory * _USABLE * (1 - _LEAST_CACHE)
    chips = 1
    while shape.params * weight_bytes / chips > room and chips < _MOST:
        chips *= 2
    return chips


def room_for(
    shape: ModelShape, chip: ChipSpec, chips: int, weight_bytes: float, tokens: float
) -> float:
    """Completions of so many tokens each that a replica's cache holds at the same time."""
    free = chips * chip.memory * _USABLE - shape.params * weight_bytes
    return max(1.0, free / (tokens * shape.kv_elements * _CACHE_BYTES))


def generator_memory(
    shape: ModelShape, chip: ChipSpec, chips: int, weight_bytes: float, rows: float, tokens: float
) -> MemoryUse:
    cache = rows * tokens * shape.kv_elements * _CACHE_BYTES / chips
    at_work = rows * (shape.hidden * _AT_WORK + shape.vocab * 4.0) / chips
    return MemoryUse(
        shape.params * weight_bytes / chips, 0.0, cache, at_work, chip.memory * _USABLE
    )


def learner_memory(
    shape: ModelShape, chip: ChipSpec, chips: int, tokens: float, adapter: float = 0.0
) -> MemoryUse:
    """With everything sharded over all chips (FSDP, ZeRO-3); `tokens` a chip computes at a time.

    `adapter`: weights of one, which alone learn; 0: all do.
    """
    if adapter:
        weights, optimizer = shape.params * _ADAPTER_BYTES, adapter * _LEARNER_BYTES
    else:
        weights = 2.0 * shape.params
        optimizer = (_LEARNER_BYTES - 2.0) * shape.params
    kept = tokens * shape.hidden * (shape.layers * _KEPT_PER_LAYER + _AT_WORK)
    logits = _LOGITS * shape.vocab
    # Beside its share a chip holds the layer at work whole, and the next one as it arrives.
    gathered = 2.0 * 2.0 * shape.params / shape.layers if chips > 1 else 0.0
    if shape.experts:  # experts are not gathered but sent tokens
        gathered = min(gathered, 2.0 * 2.0 * (shape.params - shape.routed) / shape.layers)
    return MemoryUse(
        weights / chips, optimizer / chips, 0.0, kept + logits + gathered, chip.memory * _USABLE
    )


def must_recompute(
    shape: ModelShape, chip: ChipSpec, chips: int, tokens: float, split: int, adapter: float = 0.0
) -> bool:
    """Whether all activations of one sequence, split over so many chips, leave no room."""
    kept = tokens * shape.hidden * shape.layers * _AT_WORK / split
    held = learner_memory(shape, chip, chips, 0.0, adapter)
    return kept + held.weights + held.optimizer > chip.memory * _USABLE


def learner_layout(shape: ModelShape, chip: ChipSpec, chips: int) -> tuple[int, int, int, int]:
    """Tensor, context, expert and pipeline degrees that spread the model no further than needed.

    What is wanted is that a copy's share fits: its chips are tensor * stages, experts spread over
    the copies.
    """
    room = chip.memory * _USABLE * 0.7  # the rest for activations; assumed
    tensor = stages = expert = 1
    most = max(1, min(_MOST_TENSOR, chip.domain, chips))
    plain = shape.params - shape.routed

    def share() -> float:
        # Masters and moments are spread over all copies as well (ZeRO-1).
        held = (plain / (tensor * stages) + shape.routed / (tensor * stages * expert)) * 6.0
        return held + shape.params * 12.0 / chips

    while share() > room:
        if shape.experts and expert * 2 <= min(shape.experts, 16, chips // (tensor * stages)):
            expert *= 2
        elif tensor * 2 <= most and tensor * 2 * stages <= chips and not shape.experts:
            tensor *= 2
        elif stages * 2 <= min(shape.layers, chips // (tensor * expert)):
            stages *= 2
        else:
            break
    return tensor, 1, expert, stages


def least_learners(
    shape: ModelShape, chip: ChipSpec, tokens: float, adapter: float = 0.0
) -> int | None:
    """The fewest chips, as a power of two, that hold the learner; None: no number does."""
    chips = 1
    while chips <= _MOST:
        if learner_memory(shape, chip, chips, tokens, adapter).fits:
            return chips
        chips *= 2
    return None
