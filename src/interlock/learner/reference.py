"""The policy as it was, which a KL is against.

decoder ─┬─ all its weights learn ─> a copy, in the compute dtype
         └─ an adapter learns ─────> a copy of that, beside the same frozen weights
"""

import copy

from interlock.learner.distributed import sharding
from interlock.learner.distributed.ranks import Ranks
from interlock.models import adapters
from interlock.models.decoder import Decoder


def frozen_copy(decoder: Decoder, ranks: Ranks) -> Decoder:
    """The decoder as it is now, in its compute dtype, to which every weight is cast at its use.

    Of one with an adapter, that alone is copied.
    """
    if ranks.size > 1:
        return sharding.frozen_copy(decoder, ranks)
    if decoder.adapter is not None:
        beside = decoder.shared()
        adapters.attach(beside, decoder.adapter, decoder.dtype)
        adapters.set_adapter(beside, adapters.adapter_tensors(decoder))
        return beside.requires_grad_(False)
    frozen = copy.deepcopy(decoder)
    for parameter in frozen.parameters():
        if parameter.requires_grad:  # the others stay fp32, see models/decoder.py
            parameter.data = parameter.data.to(decoder.dtype)
    return frozen.requires_grad_(False)
