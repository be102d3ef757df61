"""The identity of a set of weights."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256, in hex, over the names, dtypes, shapes and bits of `tensors`, in the order of names.

    Equal for equal tensors on any device, of any strides and in any order of insertion.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        # No two sets of tensors give one stream: JSON shows its own end, and then how much follows.
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
