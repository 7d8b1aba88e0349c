"""Losses and gradients over packed rows, against every document alone and by perturbation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openmimo.model.mimo import MiMo
from openmimo.training.batch import IGNORE, Batch, Segment, batch_rows
from openmimo.training.loss import LossParts, Objective, TrainingLoss, backward_step, count_targets

LAYERS = (0, 1, 2)
PAD = 279
A = Segment(np.array([5, 9, 5, 7, 11, 3]))
B = Segment(np.array([21, 25, 22, 29, 21, 23, 24, 28]), loss_from=4)  # 4 tokens of prompt
C = Segment(np.array([41, 40]))  # too short for any MTP layer
D = Segment(np.array([60, 64, 61, 65, 63, 66, 60]), loss_from=1)


@pytest.fixture
def model(make_model: Callable[..., MiMo]) -> MiMo:
    return make_model()


@pytest.fixture
def batch() -> Batch:
    return batch_rows([[A, B, C], [D], [D, A]], 18, PAD)


def alone(model: MiMo, segment: Segment, ahead: int) -> list[Tensor]:
    """Cross entropies of one unpacked document's targets that lie `ahead` (1 is the main loss)."""
    ids = torch.from_numpy(segment.ids)[None]
    length = ids.shape[1]
    if length <= ahead:
        return []
    positions = torch.arange(length)[None]
    hidden = model.hidden(ids, positions)
    if ahead == 1:
        logits = model.logits(hidden)[0]
    else:
        layer = ahead - 2
        # The inputs end early, since x_{t+1+layer} must exist.
        kept = length - 1 - layer
        draft = model.mtp_draft(layer, hidden[:, :kept], ids[:, 1 + layer :], positions[:, :kept])
        logits = model.lm_head(draft)[0]
    return [
        F.cross_entropy(logits[t], ids[0, t + ahead])
        for t in range(length - ahead)
        if t + ahead >= segment.loss_from
    ]


def loss_parts(model: MiMo, batch: Batch, objective: Objective, weight: float = 1.0) -> LossParts:
    counts = count_targets(batch, objective)
    parts: LossParts = TrainingLoss(model, objective, 4096)(batch, counts, weight)
    return parts


def gradients(model: MiMo) -> dict[str, Tensor]:
    """Gradients so far, and a clean slate."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def test_packed_losses_and_gradient_are_those_of_each_document_alone(
    model: MiMo, batch: Batch
) -> None:
    """Every loss is divided by its own number of targets."""
    means = [
        torch.stack([e for document in (A, B, C, D, D, A) for e in alone(model, document, ahead)])
        for ahead in (1, 2, 3, 4)
    ]
    main, *mtp = (entropies.mean() for entropies in means)
    assert len({len(entropies) for entropies in means}) == 4
    # In this test the copies are not detached, since `alone` does not detach them.
    (main + 0.3 * sum(mtp) / 3).backward()
    expected = gradients(model)
    found = backward_step(model, batch, LAYERS, 0.3, 10_000, detach_after=3)
    assert [found[0], *found[1]] == pytest.approx([main.item(), *map(Tensor.item, mtp)], rel=1e-5)
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grad, expected[name], atol=1e-6, rtol=1e-3)


def test_targets_are_counted_for_each_loss(batch: Batch) -> None:
    # A, B, C, D, D, A; B loses its prompt only, D has its first token as prompt.
    assert count_targets(batch, Objective(LAYERS)).tolist() == [
        5 + 4 + 1 + 6 + 6 + 5,
        4 + 4 + 0 + 5 + 5 + 4,
        3 + 4 + 0 + 4 + 4 + 3,
        2 + 4 + 0 + 3 + 3 + 2,
    ]


@pytest.mark.parametrize("other", [1, 2])
def test_another_document_changes_neither_loss_nor_gradient(model: MiMo, other: int) -> None:
    """Documents before and after A, with all their tokens as prompt, are exchanged."""

    def around(tokens: list[int]) -> Batch:
        context = Segment(np.array(tokens), loss_from=len(tokens))
        row = [context, A, context] if other == 1 else [A, context, context]
        return batch_rows([row], 20, PAD)

    results = []
    for tokens in ([100, 101, 102, 103], [150, 9, 5, 151]):
        loss = loss_parts(model, around(tokens), Objective(LAYERS)).total
        loss.backward()
        results.append((loss.detach(), gradients(model)))
    (loss, grads), (other_loss, other_grads) = results
    assert torch.equal(loss, other_loss)
    assert grads.keys() == other_grads.keys()
    assert all(torch.equal(grads[name], other_grads[name]) for name in grads)
    assert not grads["model.embed_tokens.weight"][100:].any()


@contextmanager
def watched_drafts(model: MiMo) -> Iterator[list[Tensor]]:
    """The head inputs of all MTP layers, which keep their gradients."""
    drafts: list[Tensor] = []

    def keep(_module: object, _inputs: object, output: Tensor) -> None:
        output.retain_grad()
        drafts.append(output)

    hooks = [layer.final_layernorm.register_forward_hook(keep) for layer in model.mtp_layers]
    yield drafts
    for hook in hooks:
        hook.remove()


def test_prompt_and_padding_get_no_mtp_gradient(model: MiMo, batch: Batch) -> None:
    """A draft has a gradient exactly where the token that it guesses is a target."""
    with watched_drafts(model) as drafts:
        backward_step(model, batch, LAYERS, 0.3, tokens_per_microbatch=10_000)
    assert len(drafts) == 3
    for layer, draft in enumerate(drafts):
        assert draft.grad is not None
        reached = draft.grad.abs().sum(dim=-1) > 0
        assert torch.equal(reached, batch.labels(2 + layer) != IGNORE)
    # Padding is seen by nothing that has a target.
    assert not gradients(model)["model.embed_tokens.weight"][PAD].any()


def test_only_prompts_give_no_gradient_and_no_nan(model: MiMo) -> None:
    batch = batch_rows([[Segment(A.ids, loss_from=6)]], 8, PAD)
    assert backward_step(model, batch, LAYERS, 0.3, 64) == (0.0, [0.0] * 3)
    assert not any(grad.any() for grad in gradients(model).values())


def test_the_weight_scales_the_mean_over_layers(model: MiMo, batch: Batch) -> None:
    def run(layers: tuple[int, ...], weight: float) -> dict[str, Tensor]:
        backward_step(model, batch, layers, weight, 10_000)
        return gradients(model)

    main = run(LAYERS, 0.0)
    single = [run((layer,), 1.0) for layer in LAYERS]
    for name, grad in run(LAYERS, 0.6).items():
        parts = [(one[name] - main[name]) for one in single if name in one]
        # A layer that did not take part has no gradient of its own.
        torch.testing.assert_close(grad, main[name] + 0.2 * sum(parts), atol=1e-5, rtol=1e-3)


def test_micro_batches_change_nothing(model: MiMo, batch: Batch) -> None:
    whole = backward_step(model, batch, LAYERS, 0.3, 10_000)
    expected = gradients(model)
    for tokens in (1, 40):
        main, mtp = backward_step(model, batch, LAYERS, 0.3, tokens)
        assert [main, *mtp] == pytest.approx([whole[0], *whole[1]], rel=1e-6)
        for name, grad in gradients(model).items():
            torch.testing.assert_close(grad, expected[name], atol=1e-6, rtol=1e-4)


def test_copies_do_not_move_the_trunk(model: MiMo, batch: Batch) -> None:
    """Layer 0 is part of the objective; from layer 1 on the hidden state is detached."""
    loss_parts(model, batch, Objective((1, 2), main=False)).total.backward()
    assert not any(name.startswith("model.layers.") for name in gradients(model))
    loss_parts(model, batch, Objective((0,), main=False)).total.backward()
    assert gradients(model)["model.layers.0.mlp.up_proj.weight"].any()


@pytest.mark.parametrize("main", [True, False])
def test_agreement_is_that_of_greedy_drafts(model: MiMo, batch: Batch, main: bool) -> None:
    """Counted document by document; without the main loss, against the targets.

    The head knows only few tokens, or the random layers would never agree.
    """
    with torch.no_grad():
        known = torch.randn(5, 16, generator=torch.Generator().manual_seed(2))
        model.lm_head.weight.zero_()[[3, 7, 24, 60, 66]] = known
    expected = [0, 0, 0]
    for layer in LAYERS:
        for document in (A, B, D, D, A):
            ids = torch.from_numpy(document.ids)[None]
            positions = torch.arange(ids.shape[1])[None]
            hidden = model.hidden(ids, positions)
            trunk = model.logits(hidden)[0].argmax(-1)
            kept = ids.shape[1] - 1 - layer
            draft = model.mtp_draft(
                layer, hidden[:, :kept], ids[:, 1 + layer :], positions[:, :kept]
            )
            guess = model.lm_head(draft)[0].argmax(-1)
            for t in range(max(0, document.loss_from - 2 - layer), kept - 1):
                wanted = trunk[t + 1 + layer] if main else ids[0, t + 2 + layer]
                expected[layer] += int(guess[t] == wanted)
    counts = count_targets(batch, Objective(LAYERS)).tolist()[1:]
    assert all(0 < agreed < count for agreed, count in zip(expected, counts, strict=True))
    assert loss_parts(model, batch, Objective(LAYERS, main=main)).agree.tolist() == expected
