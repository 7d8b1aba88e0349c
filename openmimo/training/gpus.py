"""What GPUs hold and how fast they multiply, from their vendors' data sheets.

`bfloat16` is the peak of dense products with float32 sums: sheets also print twice as much, "with
sparsity". `float32` is that of plain float32, which is what torch computes unless it is allowed
TF32. Sheets: NVIDIA "A100 Tensor Core GPU", "A10", "H100 Tensor Core GPU", "H200 Tensor Core GPU",
"HGX B200" (an eighth of the board), "L4", "L40S"; the white papers of the GA102 (RTX 3090), Ada
(RTX 4090) and RTX Blackwell (RTX 5090) architectures; AMD "Instinct MI300X" and "MI325X".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from openmimo.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: what users call it.
        memory: bytes; the sheet's gigabytes times 10^9, which is up to 6 % less than the driver
            reports. That much is lost where the allocator's blocks do not fit together.
        bfloat16: peak operations a second of dense products.
        float32: the same in plain float32.
        device: pattern of its name as `torch.cuda.get_device_name()` gives it.
    """

    name: str
    memory: float
    bfloat16: float
    float32: float
    device: str

    def peak(self, dtype: str) -> float:
        """Operations a second in `dtype`, float32 or bfloat16."""
        return self.bfloat16 if dtype == "bfloat16" else self.float32


_G, _T = 1e9, 1e12

# A device's name is matched from the top, so the narrower patterns come first.
GPUS = (
    Gpu("A100-40", 40 * _G, 312 * _T, 19.5 * _T, r"A100.*40GB"),
    Gpu("A100-80", 80 * _G, 312 * _T, 19.5 * _T, r"A100"),
    Gpu("A10", 24 * _G, 125 * _T, 31.2 * _T, r"A10$"),
    Gpu("H100-NVL", 94 * _G, 835.5 * _T, 60 * _T, r"H100 NVL"),
    Gpu("H100-PCIe", 80 * _G, 756.5 * _T, 51 * _T, r"H100 PCIe"),
    Gpu("H100", 80 * _G, 989.4 * _T, 66.9 * _T, r"H100"),
    Gpu("H200", 141 * _G, 989.4 * _T, 66.9 * _T, r"H200"),
    Gpu("B200", 180 * _G, 2250 * _T, 75 * _T, r"\bB200"),
    Gpu("L40S", 48 * _G, 362 * _T, 91.6 * _T, r"L40S"),
    Gpu("L4", 24 * _G, 121 * _T, 30.3 * _T, r"L4$"),
    Gpu("RTX-3090", 24 * _G, 71 * _T, 35.6 * _T, r"RTX 3090$"),
    Gpu("RTX-4090", 24 * _G, 165.2 * _T, 82.6 * _T, r"RTX 4090$"),
    Gpu("RTX-5090", 32 * _G, 209.5 * _T, 104.8 * _T, r"RTX 5090$"),
    Gpu("MI300X", 192 * _G, 1307.4 * _T, 163.4 * _T, r"MI300X"),
    Gpu("MI325X", 256 * _G, 1307.4 * _T, 163.4 * _T, r"MI325X"),
)


def find_gpu(name: str) -> Gpu:
    """The GPU that a user names, in any case, with `-`, `_` or a space.

    Raises:
        UserError: it is not in the table.
    """
    for gpu in GPUS:
        if _plain(gpu.name) == _plain(name):
            return gpu
    known = ", ".join(gpu.name for gpu in GPUS)
    raise UserError(
        f"no GPU {name!r} in the table: it has {known}; for another one give --peak TFLOPS and "
        "--memory GB from its data sheet"
    )


def gpu_of_device(device_name: str) -> Gpu | None:
    """The table's row for a device as torch names it; None if it has none."""
    return next((gpu for gpu in GPUS if re.search(gpu.device, device_name)), None)


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")
