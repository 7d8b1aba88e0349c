"""The GRPO loss of the MiMo recipe: a clipped surrogate, clip-higher, no KL term.

The loss is a plain sum over tokens, each with a weight fixed before the forward pass for the whole
update. So it does not matter how the update is cut into micro-batches.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

LossAggregation = Literal["prompt_token_mean", "batch_token_mean"]


def token_weights(mask: Tensor, prompt: Tensor, aggregation: LossAggregation) -> Tensor:
    """Weights of all tokens of one update (every micro-batch, every rank); they sum to 1.

    mask [N, T]: 1 for response tokens to train on, else 0. prompt [N], integer: which prompt each
    row answers. Returns float32 [N, T].

    - prompt_token_mean: mean over the tokens of one prompt's group, then mean over prompts (MiMo
      report, Eq. 1).
    - batch_token_mean: mean over all tokens of the update (verl, DAPO).

    Raises ValueError if the mask is empty: such an update must be skipped, not averaged.
    """
    mask = mask.float()
    row_tokens = mask.sum(dim=1)
    if not row_tokens.any():
        raise ValueError("this update has no tokens to train on")
    if aggregation == "batch_token_mean":
        return mask / row_tokens.sum()
    _, group = prompt.unique(return_inverse=True)
    group_tokens = torch.zeros(int(group.max()) + 1, device=mask.device)
    group_tokens.index_add_(0, group, row_tokens)
    groups = (group_tokens > 0).sum()
    return mask / (group_tokens[group].clamp(min=1) * groups)[:, None]


def grpo_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    eps_low: float,
    eps_high: float,
    entropy: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One micro-batch's part of the update's loss; the parts add up to the loss.

    logp, old_logp [B, T]: log-probabilities of the sampled tokens now and when they were sampled,
    at temperature 1. advantages [B], one a sample. weights [B, T] from `token_weights`; where they
    are 0 the other inputs may hold anything. entropy [B, T] is only reported.

    Returns the scalar loss and its metrics, detached scalars, each a mean over tokens weighted as
    the loss is (`merge_metrics` joins micro-batches):
    - clip_low: tokens with a negative advantage and a ratio below 1 - eps_low (no gradient);
    - clip_high: tokens with a positive advantage and a ratio above 1 + eps_high (no gradient);
    - approx_kl: mean of ratio - 1 - log(ratio), an estimate of KL(old || now);
    - ratio_max: the largest ratio, not a mean;
    - entropy, if given.
    """
    counted = weights > 0
    log_ratio = torch.where(counted, logp - old_logp, 0.0)
    ratio = log_ratio.exp()
    advantage = advantages[:, None]
    clipped = ratio.clamp(1 - eps_low, 1 + eps_high)
    surrogate = torch.minimum(ratio * advantage, clipped * advantage)
    loss = -(weights * surrogate).sum()

    with torch.no_grad():
        metrics = {
            "clip_low": (weights * ((advantage < 0) & (ratio < 1 - eps_low))).sum(),
            "clip_high": (weights * ((advantage > 0) & (ratio > 1 + eps_high))).sum(),
            "approx_kl": (weights * (ratio - 1 - log_ratio)).sum(),
            "ratio_max": torch.where(counted, ratio, 0.0).max(),
        }
        if entropy is not None:
            metrics["entropy"] = (weights * torch.where(counted, entropy, 0.0)).sum()
    return loss, metrics


def merge_metrics(parts: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Metrics of a whole update from those of its micro-batches."""
    return {
        key: (max if key == "ratio_max" else sum)(float(part[key]) for part in parts)
        for key in parts[0]
    }
