"""Decoding with a cache gives what a full forward pass gives, whatever was in the cache before."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from openmimo.model.cache import CacheView, KVCache
from openmimo.model.mimo import MiMo

MakeModel = Callable[..., MiMo]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}

# A prefill, single tokens, a chunk, single tokens; together 24 tokens.
STEPS = [7, 1, 1, 1, 6, 1, 1, 6]


def fresh_cache(model: MiMo, layers: int, rows: int = 2) -> KVCache:
    cache = KVCache(model.config, layers=layers, rows=rows, max_length=32)
    # What was there before must not matter.
    cache.keys.normal_()
    cache.values.normal_()
    return cache


def positions_of(start: int, length: int, rows: int = 2) -> Tensor:
    return torch.arange(start, start + length).expand(rows, length)


@torch.no_grad()
def decode(model: MiMo, ids: Tensor, steps: list[int], cache: KVCache) -> tuple[Tensor, Tensor]:
    """Trunk hidden states and the logits of MTP layer 0 of ids[:, :-1], step by step.

    The cache's last layer is the MTP layer's.
    """
    hidden, drafts, start = [], [], 0
    for step in steps:
        positions, end = positions_of(start, step), start + step
        view = CacheView(cache, slice(None), end)
        hidden.append(model.hidden(ids[:, start:end], positions, view))
        view = CacheView(cache, slice(None), end, first_layer=model.config.num_hidden_layers)
        ahead = ids[:, start + 1 : end + 1]
        drafts.append(model.mtp_draft(0, hidden[-1], ahead, positions, view))
        start = end
    return torch.cat(hidden, 1), model.lm_head(torch.cat(drafts, 1))


@torch.no_grad()
def full(model: MiMo, ids: Tensor) -> tuple[Tensor, Tensor]:
    positions = positions_of(0, ids.shape[1] - 1)
    hidden = model.hidden(ids[:, :-1], positions)
    return hidden, model.lm_head(model.mtp_draft(0, hidden, ids[:, 1:], positions))


@pytest.fixture
def longer_ids() -> Tensor:
    return torch.randint(97, (2, 25), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("steps", [STEPS, [24], [1] * 24])
def test_decoding_equals_the_full_pass(
    make_model: MakeModel, longer_ids: Tensor, steps: list[int]
) -> None:
    model = make_model()
    cache = fresh_cache(model, model.config.num_hidden_layers + 1)
    hidden, drafts = decode(model, longer_ids, steps, cache)
    expected_hidden, expected_drafts = full(model, longer_ids)
    torch.testing.assert_close(hidden, expected_hidden, **CLOSE)
    torch.testing.assert_close(drafts, expected_drafts, **CLOSE)


@torch.no_grad()
def test_rejected_tokens_are_overwritten(make_model: MakeModel, longer_ids: Tensor) -> None:
    model = make_model()
    layers = model.config.num_hidden_layers
    cache = fresh_cache(model, layers + 1)
    decode(model, longer_ids[:, :11], [10], cache)
    wrong = (longer_ids[:, 10:15] + 1) % 97
    positions = positions_of(10, 5)
    hidden = model.hidden(wrong, positions, CacheView(cache, slice(None), 15))
    model.mtp_draft(0, hidden, wrong, positions, CacheView(cache, slice(None), 15, layers))
    # Only two true tokens follow, then more; the rejected entries beyond them stay in the cache.
    expected_hidden, expected_drafts = full(model, longer_ids)
    for start, end in ((10, 12), (12, 13), (13, 24)):
        positions = positions_of(start, end - start)
        view = CacheView(cache, slice(None), 24)  # longer than needed: padding is invisible
        hidden = model.hidden(longer_ids[:, start:end], positions, view)
        torch.testing.assert_close(hidden, expected_hidden[:, start:end], **CLOSE)
        view = CacheView(cache, slice(None), 24, first_layer=layers)
        draft = model.mtp_draft(0, hidden, longer_ids[:, start + 1 : end + 1], positions, view)
        torch.testing.assert_close(model.lm_head(draft), expected_drafts[:, start:end], **CLOSE)


@torch.no_grad()
def test_rows_at_different_positions(make_model: MakeModel, longer_ids: Tensor) -> None:
    # Continuous batching: two sequences of unequal length take one step together, out of order.
    model = make_model()
    cache = fresh_cache(model, model.config.num_hidden_layers, rows=5)
    expected = full(model, longer_ids)[0]
    lengths, rows = [9, 4], torch.tensor([3, 1])
    for sequence, (length, row) in enumerate(zip(lengths, rows, strict=True)):
        view = CacheView(cache, row[None], length)
        model.hidden(longer_ids[sequence, :length][None], positions_of(0, length, 1), view)
    at = torch.tensor(lengths)
    step = longer_ids[torch.arange(2), at][:, None]
    hidden = model.hidden(step, at[:, None], CacheView(cache, rows, 10))
    torch.testing.assert_close(hidden[:, 0], expected[torch.arange(2), at], **CLOSE)


@torch.no_grad()
def test_copied_rows_continue_like_their_source(make_model: MakeModel, longer_ids: Tensor) -> None:
    # A group of samples shares one prefill.
    model = make_model()
    cache = fresh_cache(model, model.config.num_hidden_layers, rows=4)
    view = CacheView(cache, slice(0, 2), 8)
    model.hidden(longer_ids[:, :8], positions_of(0, 8), view)
    cache.copy_rows(torch.tensor([0, 1]), torch.tensor([3, 2]), 8)
    view = CacheView(cache, torch.tensor([3, 2]), 12)
    hidden = model.hidden(longer_ids[:, 8:12], positions_of(8, 4), view)
    torch.testing.assert_close(hidden, full(model, longer_ids)[0][:, 8:12], **CLOSE)


def test_bytes(make_model: MakeModel) -> None:
    config = make_model().config
    cache = KVCache(config, layers=2, rows=3, max_length=5, dtype=torch.bfloat16)
    assert cache.bytes == 2 * 2 * 3 * config.num_key_value_heads * 5 * config.head_dim * 2
