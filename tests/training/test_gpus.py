"""GPUs by the names that users and torch give them."""

import pytest

from openmimo.errors import UserError
from openmimo.training.gpus import GPUS, find_gpu, gpu_of_device


@pytest.mark.parametrize("name", ["H100", "h100", "rtx 4090", "RTX_4090", "a100-80"])
def test_names_of_users(name: str) -> None:
    assert find_gpu(name) in GPUS


@pytest.mark.parametrize("name", ["H1000", "", "100", "A100"])
def test_an_unknown_gpu_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match=r"H100.*MI300X.*--peak"):
        find_gpu(name)


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H100 NVL", "H100-NVL"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA A100 80GB PCIe", "A100-80"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        # Others of a similar name have other peaks.
        ("NVIDIA A10G", None),
        ("NVIDIA L40", None),
        ("NVIDIA GB200", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_names_of_torch(device: str, name: str | None) -> None:
    gpu = gpu_of_device(device)
    assert (gpu and gpu.name) == name


def test_peaks_are_those_without_sparsity() -> None:
    # Tensor cores that skip zeros have twice the number, and no model reaches that.
    assert find_gpu("H100").peak("bfloat16") == pytest.approx(989.4e12)
    assert find_gpu("H100").peak("float32") == pytest.approx(66.9e12)
