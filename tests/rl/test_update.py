"""From groups to an update: what is masked, what the ratio is, and what moves."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from openmimo.config.schema import ModelConfig, OptimizerConfig, RLConfig
from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Request
from openmimo.judge.verdict import Status
from openmimo.model.mimo import MiMo
from openmimo.rewards.verdict import Verdict
from openmimo.rl.update import PAD, gather_samples, grpo_update, micro_batches, token_logp
from openmimo.rollout.records import Group, Prompt

USED = 50
SCORES: list[list[float | None]] = [[1, 0, 0.5, 0], [0, None, 1, 1], [1, 0, None, None]]


def make_model(seed: int = 0) -> MiMo:
    """More rows in the head than may be sampled, none of them unlikely."""
    config = ModelConfig(
        vocab_size=61, hidden_size=24, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=6, max_position_embeddings=64,
        initializer_range=0.3,
    )  # fmt: skip
    model = MiMo(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model.eval()


def sampled(model: MiMo, scores: Sequence[Sequence[float | None]] = SCORES) -> list[Group]:
    """Groups of the real engine: prompts and answers of many lengths, with the given scores."""
    engine = Engine(model, slots=5, max_length=40, used_vocab=USED)
    groups = []
    for number, line in enumerate(scores):
        prompt = [(7 * number + i) % USED for i in range(1 + 5 * number)]
        group = Group(Prompt({"domain": "math"}, prompt, range(len(line))))
        requests = [
            Request(
                id=n, prompt_ids=prompt, max_new_tokens=12, seed=99 * number + n, stop_ids=[3, 4, 5]
            )
            for n in range(len(line))
        ]
        group.completions = list(engine.run(requests))
        group.results = [
            Verdict(score, Status.JUDGE_ERROR if score is None else Status.OK) for score in line
        ]
        groups.append(group)
    return groups


@pytest.fixture(scope="module")
def model() -> MiMo:
    return make_model()


@pytest.fixture(scope="module")
def groups(model: MiMo) -> list[Group]:
    groups = sampled(model)
    lengths = {len(c.token_ids) for group in groups for c in group.completions if c is not None}
    assert len(lengths) > 3
    return groups


def settings(**changes: Any) -> RLConfig:
    """A clip that never bites, so that an SGD step shows the gradient."""
    return RLConfig(optimizer=OptimizerConfig(clip=1e9, weight_decay=0.0), **changes)


def test_samples_side_by_side(groups: list[Group]) -> None:
    samples = gather_samples(groups)
    row = 0
    for number, group in enumerate(groups):
        for completion, score in zip(group.completions, group.scores, strict=True):
            assert completion is not None
            prompt, answer = list(group.prompt.ids), completion.token_ids.tolist()
            start, end = len(prompt), len(prompt) + len(answer)
            assert samples.ids[row, :end].tolist() == prompt + answer
            assert (samples.ids[row, end:] == PAD).all()
            assert samples.lengths[row] == end
            assert samples.prompt[row] == number
            expected = torch.zeros(samples.ids.shape[1])
            expected[start:end] = 0.0 if score is None else 1.0
            assert torch.equal(samples.mask[row], expected)
            assert np.array_equal(samples.old_logp[row, start:end], completion.log_probs)
            row += 1
    assert row == len(samples.ids) == 12


def test_advantages_leave_unscored_samples_out(groups: list[Group]) -> None:
    advantages = gather_samples(groups).advantages.view(3, 4)
    assert advantages[0, 0] > 0 > advantages[0, 1]
    assert advantages[0].sum() == pytest.approx(0, abs=1e-6)
    assert advantages[1, 1] == advantages[2, 2] == advantages[2, 3] == 0
    root = 0.5**0.5  # two scores: (1 - 0.5) / std of (1, 0)
    assert advantages[2].tolist() == pytest.approx([root, -root, 0, 0], abs=1e-4)


def test_log_probabilities_are_those_of_the_engine(model: MiMo, groups: list[Group]) -> None:
    """The ratio of an on-policy update is 1, although the head has rows that are never sampled."""
    samples = gather_samples(groups)
    logp, entropy = token_logp(model, samples.ids, samples.mask, USED)
    ratio = (logp - samples.old_logp * samples.mask).exp()
    assert (ratio - 1).abs().max() < 1e-4
    assert not logp[samples.mask == 0].any()
    assert not entropy[samples.mask == 0].any()
    assert (entropy[samples.mask > 0] > 0).all()
    assert entropy.max() <= np.log(USED) + 1e-5
    everything, _ = token_logp(model, samples.ids, samples.mask)
    assert (everything < logp - 1e-3).any(), "no mass on the unused rows: nothing was tested"


def test_rows_are_cut_without_losing_a_token(model: MiMo, groups: list[Group]) -> None:
    samples = gather_samples(groups)
    whole, _ = token_logp(model, samples.ids, samples.mask, USED)
    index = torch.tensor([2, 0])
    part = samples.rows(index)
    assert part.ids.shape[1] == samples.lengths[index].max() < samples.ids.shape[1]
    logp, _ = token_logp(model, part.ids, part.mask, USED)
    torch.testing.assert_close(logp, whole[index, : part.ids.shape[1]])


@pytest.mark.parametrize("tokens", [1, 40, 100, 10_000])
def test_micro_batches_hold_every_row_once(tokens: int) -> None:
    lengths = torch.tensor([9, 3, 30, 7, 7, 12, 30, 1])
    parts = list(micro_batches(lengths, tokens))
    assert sorted(torch.cat(parts).tolist()) == list(range(8))
    for part in parts:
        assert len(part) == 1 or int(lengths[part].max()) * len(part) <= tokens


def gradient(
    model: MiMo, groups: list[Group], **changes: Any
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """What one SGD step of size 1 moves, and the update's metrics."""
    trained = copy.deepcopy(model)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.0)
    metrics = grpo_update(trained, optimizer, groups, settings(**changes), 1.0, USED)
    before = dict(model.named_parameters())
    with torch.no_grad():
        return {name: before[name] - p for name, p in trained.named_parameters()}, metrics


@pytest.mark.parametrize("loss_agg", ["prompt_token_mean", "batch_token_mean"])
def test_micro_batches_change_nothing(model: MiMo, groups: list[Group], loss_agg: str) -> None:
    expected, metrics = gradient(model, groups, loss_agg=loss_agg, tokens_per_microbatch=10_000)
    assert expected["lm_head.weight"].abs().max() > 1e-3
    for tokens in (1, 60):
        found, other = gradient(model, groups, loss_agg=loss_agg, tokens_per_microbatch=tokens)
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-4)
        assert other == pytest.approx(metrics, rel=1e-4, abs=1e-6)


def test_the_gradient_is_that_of_the_formula(model: MiMo, groups: list[Group]) -> None:
    """On-policy the surrogate's gradient is that of advantage x log-probability (Eq. 1)."""
    reference = copy.deepcopy(model)
    total = torch.zeros(())
    for group in groups:
        scored = [n for n, score in enumerate(group.scores) if score is not None]
        scores = np.array([group.scores[n] for n in scored], dtype=np.float64)
        advantages = (scores - scores.mean()) / (scores.std(ddof=1) + 1e-6)
        terms = []
        for n, advantage in zip(scored, advantages, strict=True):
            completion = group.completions[n]
            assert completion is not None
            start = len(group.prompt.ids)
            ids = torch.tensor([[*group.prompt.ids, *completion.token_ids.tolist()]])
            logp = reference(ids)[0, :, :USED].log_softmax(-1)
            terms += [advantage * logp[t - 1, ids[0, t]] for t in range(start, ids.shape[1])]
        total = total - torch.stack(terms).mean() / len(groups)
    total.backward()
    found, metrics = gradient(model, groups)
    for name, parameter in reference.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-3)
    assert metrics["ratio_max"] == pytest.approx(1, abs=1e-4)
    assert metrics["clip_low"] == metrics["clip_high"] == 0
    assert metrics["approx_kl"] == pytest.approx(0, abs=1e-6)


def test_an_unscored_sample_counts_nowhere(model: MiMo, groups: list[Group]) -> None:
    """Whatever it said: its tokens are in no gradient and in no normaliser."""
    expected, metrics = gradient(model, groups)
    changed = [copy.copy(group) for group in groups]
    other = sampled(make_model(seed=1))
    changed[1].completions = [*groups[1].completions]
    changed[1].completions[1] = other[2].completions[3]
    found, other_metrics = gradient(model, changed)
    assert other_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-6)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-4)


def test_mtp_layers_get_no_gradient(model: MiMo, groups: list[Group]) -> None:
    trained = copy.deepcopy(model)

    class Keep(torch.optim.SGD):
        """Steps, and leaves the gradients for the test to see."""

        def zero_grad(self, set_to_none: bool = True) -> None:
            return

    grpo_update(trained, Keep(trained.parameters(), lr=0.0), groups, settings(), 1.0, USED)
    for name, parameter in trained.named_parameters():
        assert (parameter.grad is None) == ("mtp_layers" in name), name


def test_an_update_makes_good_answers_likelier(model: MiMo, groups: list[Group]) -> None:
    trained = copy.deepcopy(model)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.0)
    for _ in range(3):
        grpo_update(trained, optimizer, groups, settings(), 0.05, USED)
    samples = gather_samples(groups)
    with torch.no_grad():
        logp, _ = token_logp(trained, samples.ids, samples.mask, USED)
    gain = ((logp - samples.old_logp) * samples.mask).sum(dim=1)
    assert (gain * samples.advantages).sum() > 0


def test_nothing_scored_is_an_error(model: MiMo) -> None:
    with pytest.raises(ValueError, match="no tokens to train on"):
        gradient(model, sampled(model, [[None, None]]))
