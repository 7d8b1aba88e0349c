"""The head and its cross entropy in one pass, a few tokens at a time.

The logits of all tokens would be the largest tensors of training: 8192 tokens by 151,680 in float32
are 5 GB, and a loss keeps several of them. Here the logits of `chunk` tokens become their losses
and their gradients at once, and are gone. (Liger's kernel does the same on CUDA, but knows one
weight for all tokens, and here the main loss and the MTP losses share one pass.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class HeadLoss(NamedTuple):
    """Losses of N tokens.

    Attributes:
        total: weighted sum of the losses, a scalar, float32 (float64 for float64 inputs).
        losses: cross entropies in nats, [N], detached; the dtype of `total`.
        top: the most likely tokens, int64 [N].
    """

    total: Tensor
    losses: Tensor
    top: Tensor


def head_loss(x: Tensor, weight: Tensor, labels: Tensor, scale: Tensor, chunk: int) -> HeadLoss:
    """Cross entropy of the logits x @ weight.T, softmax in float32 at least.

    Args:
        x: inputs of the head, [N, D].
        weight: [V, D], of the same dtype; a plain tensor (of a sharded model, the gathered one).
        labels: int64 [N], all valid.
        scale: weight of each token's loss in `total`, [N].
        chunk: tokens whose logits are in memory at once.
    """
    return HeadLoss(*_HeadLoss.apply(x, weight, labels, scale, chunk))


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, labels: Tensor, scale: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(x.dtype, torch.float32)
        learns_x, learns_weight, *_ = ctx.needs_input_grad
        grad_x = torch.empty_like(x) if learns_x else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if learns_weight else None
        losses = torch.empty(len(x), dtype=wide, device=x.device)
        top = torch.empty_like(labels)
        buffer = x.new_empty(min(chunk, len(x)), len(weight))
        for start in range(0, len(x), chunk):
            part = slice(start, start + chunk)
            inputs, wanted = x[part], labels[part, None]
            logits = torch.mm(inputs, weight.t(), out=buffer[: len(inputs)]).to(wide)
            torch.argmax(logits, dim=-1, out=top[part])
            # From here on in place: exp(logits - max), then the gradient of the loss.
            logits.sub_(logits.gather(1, top[part, None]))
            label_logits = logits.gather(1, wanted)
            norm = logits.exp_().sum(dim=-1, keepdim=True)
            losses[part] = (norm.log() - label_logits)[:, 0]
            if grad_x is None and grad_weight is None:
                continue
            share = scale[part, None].to(wide)
            grads = logits.mul_(share / norm).scatter_add_(1, wanted, -share).to(x.dtype)
            if grad_x is not None:
                torch.mm(grads, weight, out=grad_x[part])
            if grad_weight is not None and grad_weight.dtype == x.dtype:
                grad_weight.addmm_(grads.t(), inputs)
            elif grad_weight is not None:
                grad_weight += grads.t() @ inputs
            del logits, grads  # or they would be in memory beside the next chunk's
        ctx.save_for_backward(grad_x, None if grad_weight is None else grad_weight.to(weight.dtype))
        ctx.mark_non_differentiable(losses, top)
        return losses @ scale.to(wide), losses, top

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad_x, grad_weight = ctx.saved_tensors
        return (
            None if grad_x is None else grad_x * grad.to(grad_x.dtype),
            None if grad_weight is None else grad_weight * grad.to(grad_weight.dtype),
            None,
            None,
            None,
        )
