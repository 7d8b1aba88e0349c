"""The attention back-ends agree, with each other and with every document alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from openmimo.model.attention import (
    Attend,
    Flex,
    Masked,
    PerDocument,
    Varlen,
    attention,
    has_varlen,
)

HEADS, KV_HEADS, WIDTH = 6, 2, 16
LENGTHS = {
    "packed": [[3, 1, 9, 11], [24], [16, 8]],
    "one document a row": [[24], [24], [24]],
    "one row": [[5, 19]],
}
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def positions_of(rows: list[list[int]], cut: int = 0) -> Tensor:
    """`cut` tokens of each row's first document are in another row."""
    found = [torch.cat([torch.arange(length) for length in row]) for row in rows]
    for row, positions in zip(rows, found, strict=True):
        positions[: row[0]] += cut
    return torch.stack(found)


def inputs(rows: int, length: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v and the gradient of the output, [rows, length, heads, WIDTH]."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(rows, length, heads, WIDTH, generator=generator).to(dtype)
        for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)
    ]


def results(attend: Attend, tensors: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of q, k and v."""
    *qkv, grad = tensors
    qkv = [x.clone().requires_grad_() for x in qkv]
    out = attend(*qkv)
    return [out.detach(), *torch.autograd.grad(out, qkv, grad)]


def by_hand(rows: list[list[int]], tensors: list[Tensor]) -> list[Tensor]:
    """Softmax over each document's own tokens, written out."""
    *qkv, grad = tensors
    q, k, v = (x.clone().requires_grad_() for x in qkv)
    out = torch.zeros_like(q)
    for row, lengths in enumerate(rows):
        start = 0
        for length in lengths:
            for t in range(start, start + length):
                for head in range(HEADS):
                    group = head // (HEADS // KV_HEADS)
                    scores = k[row, start : t + 1, group] @ q[row, t, head] / WIDTH**0.5
                    out[row, t, head] = scores.softmax(0) @ v[row, start : t + 1, group]
            start += length
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad)]


@pytest.mark.parametrize("cut", [0, 2])
@pytest.mark.parametrize("rows", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("make", [Masked, PerDocument])
def test_output_and_gradients_on_the_cpu(
    make: Callable[[Tensor], Attend], rows: list[list[int]], cut: int
) -> None:
    positions = positions_of(rows, cut)
    tensors = inputs(*positions.shape)
    for found, expected in zip(
        results(make(positions), tensors), by_hand(rows, tensors), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", LENGTHS.values(), ids=LENGTHS.keys())
def test_flex_attention_forward(rows: list[list[int]]) -> None:
    """Uncompiled; it has no backward pass on a CPU."""
    positions = positions_of(rows)
    q, k, v, _ = inputs(*positions.shape)
    with torch.no_grad():
        found, expected = Flex(positions)(q, k, v), Masked(positions)(q, k, v)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@cuda
@pytest.mark.parametrize("rows", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("make", [Varlen, Flex, Masked])
def test_output_and_gradients_on_cuda(
    make: Callable[[Tensor], Attend], rows: list[list[int]]
) -> None:
    """In bfloat16, against float32 on the CPU."""
    if make is Varlen and not has_varlen():
        pytest.skip("this torch has no varlen_attn (2.10 and later do)")
    positions = positions_of(rows)
    tensors = inputs(*positions.shape, torch.bfloat16)
    expected = results(Masked(positions), [x.float() for x in tensors])
    found = results(make(positions.cuda()), [x.cuda() for x in tensors])
    for ours, exact in zip(found, expected, strict=True):
        assert (ours.cpu().float() - exact).norm() < 0.01 * exact.norm()


def test_the_choice_follows_device_and_type() -> None:
    assert isinstance(attention(positions_of([[4, 4]]), torch.float32), PerDocument)
    if torch.cuda.is_available():
        positions = positions_of([[4, 4]]).cuda()
        assert isinstance(attention(positions, torch.float32), Masked)
        half = attention(positions, torch.bfloat16)
        assert isinstance(half, Varlen if has_varlen() else Flex)
