"""Weights on their way to engines on a Ray cluster: put into its object store once, read by all."""

import warnings
from collections.abc import Mapping
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openmimo.cluster import session
from openmimo.inference.protocol import Weights
from openmimo.model.mimo import MiMo

Packed = dict[str, tuple[str, tuple[int, ...], NDArray[np.uint8]]]
"""By name: dtype, shape, bytes. Ray lets the actors of a node read NumPy's memory where it is, and
NumPy has no bfloat16."""


class WeightStore:
    """The newest weights, shared by several engines; safe to use from threads.

    A mapping is a snapshot: the same object is put into the store once, whoever asks. A model may
    have changed since, so it is put there each time.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._weights: Mapping[str, Tensor] | None = None
        self._reference: Any = None

    def reference(self, weights: Weights) -> Any:
        """Ray's reference to `weights`, packed."""
        if isinstance(weights, MiMo):
            return session.ray().put(pack(weights.state_dict()))
        with self._lock:
            if weights is not self._weights:
                self._weights, self._reference = None, None  # room in the store
                self._reference = session.ray().put(pack(weights))
                self._weights = weights
            return self._reference


def pack(weights: Mapping[str, Tensor]) -> Packed:
    """Tensors, on whatever device, as bytes."""
    packed: Packed = {}
    for name, tensor in weights.items():
        flat = tensor.detach().cpu().contiguous().flatten()
        dtype = str(tensor.dtype).removeprefix("torch.")
        packed[name] = dtype, tuple(tensor.shape), flat.view(torch.uint8).numpy()
    return packed


def unpack(packed: Packed) -> dict[str, Tensor]:
    """The tensors; they share the memory of `packed` and must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return {
            name: torch.from_numpy(array).view(getattr(torch, dtype)).view(shape)
            for name, (dtype, shape, array) in packed.items()
        }
