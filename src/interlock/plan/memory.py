"""Bytes that each role takes of a chip, and one process that has both in turns.

    learner    optimizer, held ──── always ───┐   copies, gradients, activations ──┐ one after the
    generator  weights, cache ───── always ───┴─> copies, activations ─────────────┴ other

What a learner of ours holds is counted from its own layers (models/, learner/): every weight is
cast to the compute dtype where it is used, and the cast one is kept for the backward pass.
"""

from typing import NamedTuple

from interlock.plan.chips import ChipSpec
from interlock.plan.shapes import ModelShape

USABLE = 0.9  # of a chip's memory, as vLLM takes; the rest is the runtime's. assumed
_CACHE_BYTES = 2.0
_LEAST_CACHE = 0.15  # of the usable memory that a generator keeps for its cache, at least; assumed
_MASTER_BYTES = 12.0  # of a weight that learns: itself and two moments, in float32
_GRADIENT_BYTES = 4.0
_STATE_BYTES = 16.0  # per hidden element, token and layer: four in float32 (`kept_bytes`)
_REPEATED = 2.0  # times that keys and values are kept: a prompt's for each answer. assumed
_DECODED = 34.0  # bytes per hidden element of a row that is decoded; assumed
# Of a logit, by whether it is on a CPU and whether there is a teacher; counted from learner/losses:
# itself in float32, and on a CPU, which takes the softmax in small blocks, its gradient, elsewhere
# that of the whole chunk; a teacher's beside it, and what is between the two.
_LOGIT_BYTES = {
    (True, False): 6.0,
    (False, False): 12.0,
    (True, True): 10.0,
    (False, True): 32.0,
}
# Of an element of the vocabulary, by the same: its gradient before it is added to the others, and
# as a product; or, on a CPU, the vocabulary in float32.
_WORD_BYTES = {True: 8.0, False: 6.0}
_FUSED_ABOVE = 512.0  # keys, from which on the weights of attention are not kept
# Tokens, where the learner has it measured (chips/probe.py), and where an adapter learns.
MICRO_BATCH, ADAPTER_MICRO_BATCH = 512.0, 1024.0
MOST_CHIPS = 2**20
# Of a process on a CPU, all measured (bench/RESULTS.md): bytes before the first weight; 1,024
# products that oneDNN keeps compiled, one for each number of rows, 0.63 MB each; and what is held
# for what passes, over what it needs, as pieces that were freed do not fit.
_PROCESS, _COMPILED = 0.345e9, 0.645e9
_PIECES = 1.07


class MemoryUse(NamedTuple):
    """Of one role, bytes per chip."""

    weights: float = 0.0  # that do not learn here: a generator's, or those beside an adapter
    copies: float = 0.0  # in the form in which they are multiplied, while the role is at work
    gradients: float = 0.0
    optimizer: float = 0.0  # masters and moments
    held: float = 0.0  # a reference, teachers
    cache: float = 0.0  # keys and values
    activations: float = 0.0
    process: float = 0.0  # of a CPU, whose memory it is too: the program
    pieces: float = 0.0  # of a CPU: freed, and of no use for what comes next
    usable: float = 0.0

    @property
    def kept(self) -> float:
        """While another role of the same process is at work."""
        return self.weights + self.optimizer + self.held + self.cache + self.process

    @property
    def total(self) -> float:
        return self.kept + self.copies + self.gradients + self.activations + self.pieces

    @property
    def fits(self) -> bool:
        return self.total <= self.usable


def in_turns(learner: MemoryUse, generator: MemoryUse) -> float:
    """Of one process that has both roles, one after the other."""
    passing = max(learner.total - learner.kept, generator.total - generator.kept)
    return learner.kept + generator.kept - generator.process + passing


class LearnerLoad(NamedTuple):
    """What a learner's memory hangs on beside its model."""

    tokens: float  # that a chip computes at a time
    longest: float  # of one sequence
    adapter: float = 0.0  # weights of one, which alone learn; 0: all do
    recompute: bool = True
    held: float = 0.0  # bytes of frozen models in its process
    weight_bytes: float = 2.0  # of the compute dtype
    logits_chunk: float = 1024.0  # tokens whose logits are held at a time
    taught: bool = False  # it is compared with a teacher's distribution


def kept_bytes(shape: ModelShape, of: LearnerLoad) -> float:
    """Of one token in one layer, what the backward pass needs.

    In float32 what goes into both norms and what these scale; in the compute dtype what they give,
    queries and what attention gives, keys and values, gate and up and their product; and the
    weights of attention, where no fused kernel forgets them.
    """
    cached = _REPEATED * shape.kv_elements / shape.layers
    products = 2.0 * shape.hidden + shape.attention + cached + 3.0 * shape.active_inner
    scores = shape.heads * of.longest if of.longest <= _FUSED_ABOVE else 0.0
    return _STATE_BYTES * shape.hidden + of.weight_bytes * (products + scores)


def learner_memory(shape: ModelShape, chip: ChipSpec, chips: int, of: LearnerLoad) -> MemoryUse:
    """With everything sharded over all chips (FSDP, ZeRO-3)."""
    learns = of.adapter or shape.params
    frozen = shape.params * of.weight_bytes if of.adapter else 0.0
    # Of masters in float32 nothing is cast where that is the compute dtype.
    cast = 0.0 if of.weight_bytes >= 4.0 else learns * of.weight_bytes
    layer = of.tokens * kept_bytes(shape, of)
    layers = layer * shape.layers
    if of.recompute:
        layers = layer + of.tokens * 4.0 * shape.hidden * shape.layers
    logits = min(of.logits_chunk, of.tokens) * _LOGIT_BYTES[chip.host, of.taught]
    words = shape.vocab * logits
    if not of.adapter:
        words += shape.vocab * shape.hidden * _WORD_BYTES[chip.host] / chips
    # Beside its share a chip holds the layer at work whole, and the next one as it arrives.
    gathered = 2.0 * 2.0 * shape.params / shape.layers if chips > 1 else 0.0
    if shape.experts:  # experts are not gathered but sent tokens
        gathered = min(gathered, 2.0 * 2.0 * (shape.params - shape.routed) / shape.layers)
    return _on(
        chip,
        MemoryUse(
            weights=frozen / chips,
            copies=cast / chips,
            gradients=learns * _GRADIENT_BYTES / chips,
            optimizer=learns * _MASTER_BYTES / chips,
            held=of.held / chips,
            activations=layers + words + gathered,
        ),
        of.weight_bytes,
    )


def _on(chip: ChipSpec, use: MemoryUse, weight_bytes: float) -> MemoryUse:
    """With what the chip adds."""
    use = use._replace(usable=chip.memory * USABLE)
    if not chip.host:
        return use
    process = _PROCESS + (_COMPILED if weight_bytes < 4.0 else 0.0)
    return use._replace(process=process, pieces=(_PIECES - 1.0) * (use.total - use.kept))


def generator_chips(shape: ModelShape, chip: ChipSpec, weight_bytes: float) -> int:
    """Chips of the smallest replica: the weights, and some room for the cache."""
    room = chip.memory * USABLE * (1 - _LEAST_CACHE)
    chips = 1
    while shape.params * weight_bytes / chips > room and chips < MOST_CHIPS:
        chips *= 2
    return chips


def room_for(
    shape: ModelShape,
    chip: ChipSpec,
    chips: int,
    weight_bytes: float,
    tokens: float,
    taken: float = 0.0,
) -> float:
    """Completions of so many tokens each that a replica holds at the same time, as they decode.

    `taken`: bytes that another role has of these chips.
    """
    free = chips * chip.memory * USABLE - shape.params * weight_bytes - taken
    return max(1.0, free / (tokens * shape.kv_elements * _CACHE_BYTES + _row_bytes(shape)))


def _row_bytes(shape: ModelShape) -> float:
    """Of one row at work: what its layers pass on, and its logits in float32."""
    return shape.hidden * _DECODED + shape.vocab * 4.0


def generator_memory(
    shape: ModelShape,
    chip: ChipSpec,
    chips: int,
    weight_bytes: float,
    rows: float,
    tokens: float,
    shared: bool = False,
) -> MemoryUse:
    """`shared`: it multiplies by the learner's own weights."""
    packed = 0.0
    if chip.host:  # as the kernels of a CPU read them; the vocabulary in float32
        words = shape.vocab * shape.hidden
        packed = (shape.active - words) * weight_bytes + words * 4.0
    return _on(
        chip,
        MemoryUse(
            weights=0.0 if shared else shape.params * weight_bytes / chips,
            copies=packed / chips,
            cache=rows * tokens * shape.kv_elements * _CACHE_BYTES / chips,
            activations=rows * _row_bytes(shape) / chips,
        ),
        weight_bytes,
    )
