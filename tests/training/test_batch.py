"""Rows of packed segments: who stands where, what may be a target, and how rows are filled."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openmimo.training.batch import IGNORE, Batch, Segment, batch_rows, pack

X = IGNORE


def segment(first: int, length: int, loss_from: int = 0) -> Segment:
    return Segment(np.arange(first, first + length), loss_from)


def packed() -> Batch:
    """[10 11 12 | 20 21 22 23 24 | padding], and a row that one segment fills; 20 21 are prompt."""
    rows = [[segment(10, 3), segment(20, 5, loss_from=2)], [segment(30, 10)]]
    return batch_rows(rows, 10, pad_id=7)


def test_rows_by_hand() -> None:
    batch = packed()
    assert batch.ids.tolist() == [[10, 11, 12, 20, 21, 22, 23, 24, 7, 7], list(range(30, 40))]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 0, 1], list(range(10))]
    assert batch.targets.tolist() == [[10, 11, 12, X, X, 22, 23, 24, X, X], list(range(30, 40))]


def test_labels_by_hand() -> None:
    """The main loss predicts one ahead, MTP layer i predicts 2 + i ahead, none across a border."""
    batch = packed()
    expected = {
        1: [11, 12, X, X, 22, 23, 24, X, X, X],
        2: [12, X, X, 22, 23, 24, X, X, X, X],
        3: [X, X, X, 23, 24, X, X, X, X, X],
        4: [X, X, X, 24, X, X, X, X, X, X],
        5: [X] * 10,
        99: [X] * 10,
    }
    assert {shift: batch.labels(shift)[0].tolist() for shift in expected} == expected
    assert batch.labels(3)[1].tolist() == [33, 34, 35, 36, 37, 38, 39, X, X, X]


def test_a_segment_must_fit() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        batch_rows([[segment(0, 6), segment(0, 5)]], 10, pad_id=0)


@given(st.integers(1, 7), st.integers(1, 60))
def test_split_keeps_every_row_once_and_in_order(rows: int, tokens: int) -> None:
    batch = batch_rows([[segment(10 * row, 8)] for row in range(rows)], 8, pad_id=0)
    batch = replace(batch, hidden=batch.ids[..., None].float())
    parts = list(batch.split(tokens))
    for name in ("ids", "positions", "targets", "hidden"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(batch, name))
    assert all(part.ids.numel() <= max(tokens, 8) for part in parts)


@given(st.lists(st.integers(1, 20), max_size=40), st.integers(20, 50))
def test_packing_loses_nothing_and_holds_the_capacity(lengths: list[int], capacity: int) -> None:
    rows = pack(lengths, capacity)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    used = [sum(lengths[item] for item in row) for row in rows]
    assert all(0 < total <= capacity for total in used)
    # Best fit leaves at most one row half empty.
    assert sum(2 * total <= capacity for total in used) <= 1
    assert pack(lengths, capacity) == rows


@given(st.lists(st.integers(1, 20), max_size=40), st.integers(20, 30))
def test_packing_puts_each_item_where_it_leaves_least_space(
    lengths: list[int], capacity: int
) -> None:
    """As a search through all rows does it."""
    used: list[int] = []
    for need in sorted(lengths, reverse=True):
        fits = [row for row, total in enumerate(used) if total + need <= capacity]
        if not fits:
            used.append(need)
            continue
        used[max(fits, key=lambda row: used[row])] += need
    rows = pack(lengths, capacity)
    assert sorted(sum(lengths[item] for item in row) for row in rows) == sorted(used)


def test_packing_many_samples_takes_seconds() -> None:
    lengths = np.random.default_rng(0).geometric(1 / 900, size=200_000).clip(1, 32_768).tolist()
    began = time.process_time()
    rows = pack(lengths, 32_768)
    assert time.process_time() - began < 15
    assert sum(lengths) / (len(rows) * 32_768) > 0.999


def test_packing_refuses_what_fits_no_row() -> None:
    with pytest.raises(ValueError, match="21 tokens does not fit a row of 20"):
        pack([3, 21], 20)
    assert pack([], 20) == []
