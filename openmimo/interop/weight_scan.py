"""What is odd about the values of a model's weights; one tensor is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from openmimo.errors import UserError
from openmimo.model.layout import EMBEDDING, HEAD, Shape

NAMED = 5
"""Tensors with the same oddity that are named one by one."""
_NOT_FINITE = "values are NaN or infinite"
_PART = 2**24  # numbers looked at at once: a large matrix needs no second copy of itself


def scan(shapes: Mapping[str, Shape], read: Callable[[str], Tensor]) -> tuple[list[str], list[str]]:
    """Sentences about NaN and infinities, zeros, rows that are constant, and equal embeddings.

    Args:
        shapes: the tensors' names and shapes.
        read: gives one of them; where it raises UserError, that becomes a sentence too.

    Returns:
        All sentences, and those of them for which the model cannot be used.
    """
    odd: dict[str, list[str]] = {}
    refused: set[str] = set()
    fatal: set[str] = set()
    for name in sorted(shapes):
        try:
            tensor = read(name)
        except UserError as error:
            odd.setdefault(str(error), []).append(name)
            refused.add(name)
            fatal.add(str(error))
            continue
        for kind in oddities(tensor):
            odd.setdefault(kind, []).append(name)
            if kind.endswith(_NOT_FINITE):
                fatal.add(kind)
    sentences = {kind: f"{_some(names)}: {kind}" for kind, names in odd.items()}
    found = list(sentences.values())
    alike = shapes.get(EMBEDDING, 0) == shapes.get(HEAD) and not refused & {EMBEDDING, HEAD}
    if alike and torch.equal(read(EMBEDDING), read(HEAD)):
        found.append("embedding and head are equal: the model was tied")
    return found, [sentence for kind, sentence in sentences.items() if kind in fatal]


def oddities(tensor: Tensor) -> list[str]:
    """What is odd about one tensor."""
    if not tensor.numel():
        return ["empty"]
    rows = tensor.reshape(len(tensor), -1) if tensor.ndim > 1 else tensor.reshape(1, -1)
    strange = constant = zero = 0
    for part in rows.split(max(1, _PART // rows.shape[1])):
        strange += int((~torch.isfinite(part)).sum())
        zero += int((part == 0).all(dim=1).sum())
        constant += int((part == part[:, :1]).all(dim=1).sum())
    found = [f"{strange:,} {_NOT_FINITE}"] if strange else []
    if zero == len(rows):
        return [*found, "all zero"]
    if tensor.ndim > 1 and zero:
        found.append(f"{zero:,} rows are all zero")
    if tensor.ndim > 1 and constant > zero:
        found.append(f"{constant - zero:,} rows hold one value")
    return found


def _some(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
