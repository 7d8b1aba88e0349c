"""The chunked head and loss against plain ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openmimo.training.head_loss import head_loss

TOKENS, WIDTH, VOCAB = 23, 16, 41


def inputs(dtype: torch.dtype, tokens: int = TOKENS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, labels, scale; the logits are far apart, up to about 40."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    weight = 3 * torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(VOCAB, (tokens,), generator=generator)
    scale = torch.rand(tokens, generator=generator)
    return x.requires_grad_(), weight.requires_grad_(), labels, scale


def plain(x: Tensor, weight: Tensor, labels: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    losses = F.cross_entropy((x @ weight.t()).float(), labels, reduction="none")
    return (losses * scale).sum(), losses


@pytest.mark.parametrize("chunk", [1, 7, 23, 100])
def test_losses_and_gradients_are_the_plain_ones(chunk: int) -> None:
    x, weight, labels, scale = inputs(torch.float32)
    total, losses = plain(x, weight, labels, scale)
    expected = torch.autograd.grad(3 * total, (x, weight))
    found = head_loss(x, weight, labels, scale, chunk)
    torch.testing.assert_close(found.total, total, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.losses, losses.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.top, (x @ weight.t()).argmax(dim=-1))
    for grad, wanted in zip(
        torch.autograd.grad(3 * found.total, (x, weight)), expected, strict=True
    ):
        torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-5)


def test_gradcheck() -> None:
    x, weight, labels, scale = inputs(torch.float64, tokens=5)
    assert torch.autograd.gradcheck(
        lambda x, weight: head_loss(x, weight, labels, scale, 2).total, (x, weight)
    )


def test_bfloat16_is_as_exact_as_its_logits() -> None:
    """Softmax and the sum over chunks are float32: in chunks of one nothing is lost."""
    x, weight, labels, scale = inputs(torch.bfloat16, tokens=400)
    wide = [t.detach().float().requires_grad_() for t in (x, weight)]
    reference, _ = plain(*wide, labels, scale)
    expected = torch.autograd.grad(reference, wide)
    found = head_loss(x, weight, labels, scale, 1)
    assert found.total.dtype == found.losses.dtype == torch.float32
    torch.testing.assert_close(found.total, reference, rtol=2e-3, atol=0)
    for grad, wanted in zip(torch.autograd.grad(found.total, (x, weight)), expected, strict=True):
        assert grad.dtype == torch.bfloat16
        assert (grad - wanted).norm() < 0.006 * wanted.norm()


@pytest.mark.parametrize("frozen", ["x", "weight", "both"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    x, weight, labels, scale = inputs(torch.float32)
    x.requires_grad_(frozen == "weight")
    weight.requires_grad_(frozen == "x")
    total, _ = plain(x, weight, labels, scale)
    found = head_loss(x, weight, labels, scale, 7)
    torch.testing.assert_close(found.total, total)
    if frozen == "both":
        assert not found.total.requires_grad
        return
    learns = x if frozen == "weight" else weight
    wanted = torch.autograd.grad(total, learns)[0]
    found.total.backward()
    assert learns.grad is not None
    torch.testing.assert_close(learns.grad, wanted, rtol=1e-5, atol=1e-5)


def test_no_tokens_are_no_loss() -> None:
    x, weight, labels, scale = inputs(torch.float32, tokens=0)
    found = head_loss(x, weight, labels, scale, 7)
    found.total.backward()
    assert found.total == 0
    assert weight.grad is not None
    assert not weight.grad.any()
