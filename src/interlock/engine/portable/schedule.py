"""For whom an engine divides its steps: for those who want all of it soon, or the first of it.

a training run   whole prompts, several together; nothing kept that would change a bit
serving          a prompt at once, in parts beside what runs; what was computed is kept
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """What a scheduler does first. As it is by default, equal calls give equal bits.

    `patience`: steps that a free slot is held back at the most, so that several prompts are
    prefilled together: larger matrix products, and what they begin with in common is computed once.
    `prefill_chunk`: tokens of prompts computed in a step beside what is decoded; 0: whole prompts.
    `prefix_cache_mb`: of keys and values kept, so that what begins alike is not computed again; 0:
    none. What is found there was rounded in other company.
    """

    patience: int = 8
    prefill_chunk: int = 0
    prefix_cache_mb: int = 0


EXACT = Schedule()
SERVING = Schedule(patience=0, prefill_chunk=256, prefix_cache_mb=512)
