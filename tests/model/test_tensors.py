"""The check that no weight is infinite or NaN."""

import pytest
import torch

from openmimo.model.tensors import all_finite


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_number_is_found_anywhere(dtype: torch.dtype, bad: float) -> None:
    # Past 100,000 numbers, several vectors wide: another code path than a handful.
    for size in (1, 7, 33, 100_003):
        values = torch.randn(size).to(dtype)
        assert all_finite(values)
        for place in {0, size // 2, size - 1}:
            broken = values.clone()
            broken[place] = bad
            assert not all_finite(broken)
            assert not all_finite(broken.reshape(-1, 1))


def test_no_numbers_and_the_largest() -> None:
    assert all_finite(torch.empty(0, 4))
    assert all_finite(torch.tensor([torch.finfo(torch.bfloat16).max], dtype=torch.bfloat16))
