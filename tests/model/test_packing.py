"""Documents packed into one row do not see each other, forwards and backwards."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from openmimo.model.masks import document_mask, shifted_within_document
from openmimo.model.mimo import MiMo

MakeModel = Callable[..., MiMo]
A, B = slice(0, 10), slice(10, 24)
POSITIONS = torch.cat([torch.arange(10), torch.arange(14)]).expand(2, 24)
LAYERS = [None, 0, 1, 2]  # the trunk and the MTP layers


def logits(model: MiMo, ids: Tensor, positions: Tensor, layer: int | None) -> Tensor:
    hidden = model.hidden(ids, positions)
    if layer is None:
        return model.logits(hidden)
    ahead = shifted_within_document(ids, positions, 1 + layer, fill=0)
    return model.lm_head(model.mtp_draft(layer, hidden, ahead, positions))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_packed_document_equals_the_document_alone(
    make_model: MakeModel, ids: Tensor, layer: int | None
) -> None:
    model = make_model()
    packed = logits(model, ids, POSITIONS, layer)
    for document in (A, B):
        alone = logits(model, ids[:, document], POSITIONS[:, document], layer)
        torch.testing.assert_close(packed[:, document], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("changed", "kept"), [(A, B), (B, A)])
def test_changing_one_document_leaves_the_other(
    make_model: MakeModel, ids: Tensor, layer: int | None, changed: slice, kept: slice
) -> None:
    model = make_model()
    other = ids.clone()
    other[:, changed] = (other[:, changed] + 1) % 97
    before, after = (logits(model, x, POSITIONS, layer) for x in (ids, other))
    assert torch.equal(before[:, kept], after[:, kept])
    assert not torch.allclose(before[:, changed], after[:, changed])


@pytest.mark.parametrize("layer", LAYERS)
def test_the_loss_of_one_document_has_no_gradient_in_the_other(
    make_model: MakeModel, ids: Tensor, layer: int | None
) -> None:
    # The two documents use different tokens, so the embedding's gradient tells them apart.
    model = make_model()
    ids = ids % 40
    ids[:, B] += 50
    logits(model, ids, POSITIONS, layer)[:, A].square().sum().backward()
    touched = model.model.embed_tokens.weight.grad.abs().sum(dim=1) > 0
    assert touched[ids[:, A].unique()].all()
    assert not touched[50:].any()


@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    cut=st.integers(0, 4),
    shift=st.integers(0, 6),
)
def test_masks_and_shifts_follow_the_documents(lengths: list[int], cut: int, shift: int) -> None:
    # A row may begin inside a document, whose first `cut` tokens are in another row.
    document = [i for i, length in enumerate(lengths) for _ in range(length)]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    positions[:, : lengths[0]] += cut
    total = len(document)
    mask = document_mask(positions)[0, 0]
    values = torch.arange(total)[None] + 100
    shifted = shifted_within_document(values, positions, shift, fill=-1)[0]
    for t in range(total):
        for s in range(total):
            assert mask[t, s] == (s <= t and document[s] == document[t])
        inside = t + shift < total and document[t + shift] == document[t]
        assert shifted[t] == (100 + t + shift if inside else -1)
