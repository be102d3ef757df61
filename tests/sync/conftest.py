from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.fixture
def same() -> Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], bool]:
    """Whether names, dtypes, shapes and all bits agree."""

    def compare(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
        return a.keys() == b.keys() and all(
            (a[n].dtype, a[n].shape, raw(a[n])) == (b[n].dtype, b[n].shape, raw(b[n])) for n in a
        )

    return compare


@pytest.fixture
def model() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "embed": torch.randn(64, 48, generator=generator).bfloat16(),
        "norm": torch.ones(48),
        "scale": torch.tensor(0.5),
        "none": torch.empty(0, 3, dtype=torch.float16),
        "steps": torch.arange(33),
    }


@pytest.fixture
def moved() -> Callable[[Mapping[str, Tensor], int], dict[str, Tensor]]:
    """A copy in which some elements of "embed" have other bits, and one of "steps"."""

    def move(tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        rng = np.random.default_rng(seed)
        new = {name: tensor.clone() for name, tensor in tensors.items()}
        where = rng.choice(new["embed"].numel(), size=30, replace=False)
        new["embed"].view(-1).view(torch.int16)[torch.from_numpy(where)] += 1
        new["steps"][seed % 33] += 1
        return new

    return move
