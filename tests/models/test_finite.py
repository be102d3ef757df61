"""What is not finite is found wherever it lies; torch's own `isfinite` is the oracle."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interlock.models.finite import finite


@given(
    st.lists(
        st.floats(width=16) | st.sampled_from([0.0, -0.0, 65504.0, -65504.0, 6e-8]), max_size=40
    ),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_it_says_what_isfinite_says(values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values, dtype=dtype)
    assert finite(tensor) is bool(tensor.isfinite().all())


NEAR = [65504.0, 65519.0, 65520.0, 3.3895e38, 3.3961e38, 3.3963e38, 3.4028e38]


@given(
    st.lists(st.floats(width=32) | st.sampled_from([*NEAR, *(-x for x in NEAR)]), max_size=9),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_in_a_narrower_dtype_it_says_what_the_cast_would(
    values: list[float], dtype: torch.dtype
) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    assert finite(tensor, dtype) is bool(tensor.to(dtype).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_value_of_many_is_found(dtype: torch.dtype, bad: float) -> None:
    tensor = torch.linspace(-1, 1, 257 * 300).reshape(257, 300).to(dtype)
    assert finite(tensor)
    for row, column in ((0, 0), (128, 17), (256, 299)):
        broken = tensor.clone()
        broken[row, column] = bad
        assert not finite(broken), (row, column)
