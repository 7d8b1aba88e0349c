"""The loss against a naive reference in plain Python, and by hand."""

import math

import pytest
import torch
from torch import Tensor

from openmimo.rl.loss import LossAggregation, grpo_loss, merge_metrics, token_weights

LOW, HIGH = 0.2, 0.28
AGGREGATIONS: list[LossAggregation] = ["prompt_token_mean", "batch_token_mean"]


class Update:
    """Seven answers of very different lengths to three prompts, rows of a prompt not adjacent."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        rng = torch.Generator().manual_seed(0)
        self.prompt = torch.tensor([4, 9, 4, 2, 9, 4, 2])
        lengths = [3, 11, 1, 7, 2, 5, 12]
        self.mask = torch.tensor([[float(t < n) for t in range(12)] for n in lengths])
        self.mask[3, 2] = 0.0  # a hole, as a masked tool output would leave
        self.old = -torch.rand(7, 12, generator=rng, dtype=dtype)
        self.now = self.old + 0.4 * torch.randn(7, 12, generator=rng, dtype=dtype)
        self.advantages = torch.randn(7, generator=rng, dtype=dtype)
        self.entropy = torch.rand(7, 12, generator=rng, dtype=dtype)

    def weights(self, aggregation: LossAggregation) -> Tensor:
        return token_weights(self.mask, self.prompt, aggregation)


def naive(update: Update, aggregation: LossAggregation) -> dict[str, float]:
    """Eq. 1 read aloud, one token at a time."""
    per_prompt: dict[int, list[dict[str, float]]] = {}
    for row in range(len(update.mask)):
        advantage = float(update.advantages[row])
        for t in range(update.mask.shape[1]):
            if update.mask[row, t] == 0:
                continue
            log_ratio = float(update.now[row, t] - update.old[row, t])
            ratio = math.exp(log_ratio)
            limited = min(max(ratio, 1 - LOW), 1 + HIGH)
            token = {
                "loss": -min(ratio * advantage, limited * advantage),
                "clip_low": float(advantage < 0 and ratio < 1 - LOW),
                "clip_high": float(advantage > 0 and ratio > 1 + HIGH),
                "approx_kl": ratio - 1 - log_ratio,
                "entropy": float(update.entropy[row, t]),
                "ratio_max": ratio,
            }
            per_prompt.setdefault(int(update.prompt[row]), []).append(token)

    def mean(tokens: list[dict[str, float]], key: str) -> float:
        return sum(token[key] for token in tokens) / len(tokens)

    everything = [token for tokens in per_prompt.values() for token in tokens]
    result = {"ratio_max": max(token["ratio_max"] for token in everything)}
    for key in ("loss", "clip_low", "clip_high", "approx_kl", "entropy"):
        if aggregation == "batch_token_mean":
            result[key] = mean(everything, key)
        else:
            result[key] = sum(mean(tokens, key) for tokens in per_prompt.values()) / 3
    return result


def in_parts(
    update: Update, aggregation: LossAggregation, cuts: list[int]
) -> tuple[float, Tensor, dict[str, float]]:
    """Loss, gradient and metrics of the update, cut into micro-batches of these row counts."""
    now = update.now.clone().requires_grad_()
    total, parts = 0.0, []
    for rows in torch.arange(7).split(cuts):
        loss, metrics = grpo_loss(
            now[rows],
            update.old[rows],
            update.advantages[rows],
            update.weights(aggregation)[rows],
            eps_low=LOW,
            eps_high=HIGH,
            entropy=update.entropy[rows],
        )
        loss.backward()
        total += loss.item()
        parts.append(metrics)
    assert now.grad is not None
    return total, now.grad, merge_metrics(parts)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_equals_the_naive_reference(aggregation: LossAggregation) -> None:
    update = Update()
    loss, _, metrics = in_parts(update, aggregation, [7])
    expected = naive(update, aggregation)
    assert loss == pytest.approx(expected.pop("loss"), rel=1e-6)
    assert metrics == pytest.approx(expected, rel=1e-6)
    assert metrics["clip_low"] > 0
    assert metrics["clip_high"] > 0


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("cuts", [[1] * 7, [3, 4], [5, 1, 1]])
def test_micro_batches_do_not_matter(aggregation: LossAggregation, cuts: list[int]) -> None:
    update = Update()
    loss, grad, metrics = in_parts(update, aggregation, [7])
    parts_loss, parts_grad, parts_metrics = in_parts(update, aggregation, cuts)
    assert parts_loss == pytest.approx(loss, rel=1e-9)
    torch.testing.assert_close(parts_grad, grad, rtol=1e-9, atol=1e-12)
    # The shares of clipped tokens are sums of float32 weights.
    assert parts_metrics == pytest.approx(metrics, rel=1e-6)


def test_weights_by_hand() -> None:
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    prompt = torch.tensor([0, 0, 5])
    by_prompt = token_weights(mask, prompt, "prompt_token_mean")
    torch.testing.assert_close(by_prompt[:, 0], torch.tensor([1 / 6, 1 / 6, 1 / 2]))
    by_batch = token_weights(mask, prompt, "batch_token_mean")
    torch.testing.assert_close(by_batch, mask / 4)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_weights_sum_to_one_also_with_an_empty_group(aggregation: LossAggregation) -> None:
    update = Update()
    update.mask[update.prompt == 9] = 0.0
    weights = update.weights(aggregation)
    assert weights.sum() == pytest.approx(1.0)
    assert not weights[update.mask == 0].any()


def test_an_update_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        token_weights(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), "batch_token_mean")


def one_token(ratio: float, advantage: float) -> tuple[float, float]:
    """Loss and its derivative by log-probability for a single token."""
    logp = torch.tensor([[math.log(ratio)]], requires_grad=True)
    loss, _ = grpo_loss(
        logp,
        torch.zeros(1, 1),
        torch.tensor([advantage]),
        torch.ones(1, 1),
        eps_low=LOW,
        eps_high=HIGH,
    )
    loss.backward()
    assert logp.grad is not None
    return loss.item(), logp.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.25, 1.0, -1.25, -1.25),  # above 1 + eps_low, still inside the higher bound
        (1.35, 1.0, -1.28, 0.0),  # beyond it: clipped
        (0.70, 1.0, -0.70, -0.70),  # a good token that became rare is never clipped
        (0.85, -1.0, 0.85, 0.85),
        (0.75, -1.0, 0.80, 0.0),  # clipped at 1 - 0.2, not at 1 - 0.28
        (1.50, -1.0, 1.50, 1.50),  # a bad token that became likely is never clipped
    ],
)
def test_clip_higher_by_hand(ratio: float, advantage: float, loss: float, slope: float) -> None:
    assert one_token(ratio, advantage) == pytest.approx((loss, slope), abs=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_on_policy_gradient_is_the_policy_gradient(aggregation: LossAggregation) -> None:
    update = Update()
    update.now = update.old.clone()
    _, grad, metrics = in_parts(update, aggregation, [7])
    expected = -update.advantages[:, None] * update.weights(aggregation)
    torch.testing.assert_close(grad, expected, check_dtype=False)
    assert metrics["ratio_max"] == 1.0
    assert metrics["clip_low"] == metrics["clip_high"] == metrics["approx_kl"] == 0.0


def test_garbage_at_masked_places_is_harmless() -> None:
    clean, dirty = Update(), Update()
    for values in (dirty.now, dirty.old, dirty.entropy):
        values[dirty.mask == 0] = float("nan")
    dirty.old[0, 5] = float("-inf")
    expected, got = (in_parts(each, "prompt_token_mean", [7]) for each in (clean, dirty))
    assert got[0] == expected[0]
    torch.testing.assert_close(got[1], expected[1])
    assert got[2] == expected[2]
