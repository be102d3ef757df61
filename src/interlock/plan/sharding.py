"""How many chips hold a learner, and the parallelism that it implies.

    ModelShape, ChipSpec ──learner_layout──> tensor, context, expert, stages
                         ──least_learners──> the fewest chips

Powers of two: up to the domain of fast links the weights' matrices are split (tensor), beyond it
layers are (stages of a pipeline); experts are spread over what copies there are. Bytes are counted
in memory.py.
"""

from interlock.plan.chips import ChipSpec
from interlock.plan.memory import MOST_CHIPS, USABLE, LearnerLoad, learner_memory
from interlock.plan.shapes import ModelShape

_AT_WORK = 34.0  # bytes per hidden element and token of a layer of Megatron's (arXiv:2205.05198)
_MOST_TENSOR = 8


def must_recompute(
    shape: ModelShape, chip: ChipSpec, chips: int, tokens: float, split: int, adapter: float = 0.0
) -> bool:
    """Whether all activations of one sequence, split over so many chips, leave no room."""
    kept = tokens * shape.hidden * shape.layers * _AT_WORK / split
    held = learner_memory(shape, chip, chips, LearnerLoad(0.0, 0.0, adapter))
    return kept + held.total - held.activations > chip.memory * USABLE


def learner_layout(shape: ModelShape, chip: ChipSpec, chips: int) -> tuple[int, int, int, int]:
    """Tensor, context, expert and pipeline degrees that spread the model no further than needed.

    What is wanted is that a copy's share fits: its chips are tensor * stages, experts spread over
    the copies.
    """
    room = chip.memory * USABLE * 0.7  # the rest for activations; assumed
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


def least_learners(shape: ModelShape, chip: ChipSpec, of: LearnerLoad) -> int | None:
    """The fewest chips, as a power of two, that hold the learner; None: no number does."""
    chips = 1
    while chips <= MOST_CHIPS:
        if learner_memory(shape, chip, chips, of).fits:
            return chips
        chips *= 2
    return None
