"""Answers in the making: the same whatever pieces the tokens come in."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.inference.protocol import Tokens
from openmimo.serving.samples import Sample
from openmimo.serving.service import News
from openmimo.serving.text import AnswerText


def news(ids, start, end, reason=None):
    part = np.array(ids[start:end], np.int32)
    return News(0, Tokens(part, -np.arange(start, end, dtype=np.float32)), reason)


def answer(tokenizer, ids, cuts, stops, reason):
    """(text, scores, tokens, finish_reason) of an answer that comes in pieces."""
    sample = Sample(AnswerText(tokenizer, stops), (tokenizer.eos_id,), scored=True)
    edges = [0, *sorted(cuts), len(ids)]
    deltas = [
        sample.add(news(ids, start, end, reason if number == len(cuts) else None))
        for number, (start, end) in enumerate(itertools.pairwise(edges))
    ]
    scores = [score for delta in deltas for score in delta.scores]
    text = "".join(delta.text for delta in deltas)
    return text, scores, sample.tokens, deltas[-1].finish_reason


@given(data=st.data())
def test_pieces_change_nothing(tokenizer, data):
    ids = [*tokenizer.encode("the cat sat on the naïve € mat"), tokenizer.eos_id]
    ids = ids[: data.draw(st.integers(1, len(ids)))]
    stops = data.draw(st.lists(st.sampled_from(["at", "t s", "€", "ï", "zz"]), max_size=2))
    cuts = data.draw(st.lists(st.integers(0, len(ids)), max_size=5))
    whole = answer(tokenizer, ids, [], stops, "length")
    assert answer(tokenizer, ids, cuts, stops, "length") == whole
    text, scores, tokens, reason = whole
    assert reason == ("stop" if any(stop in tokenizer.decode(ids) for stop in stops) else "length")
    assert [score.id for score in scores] == ids[: len(scores)]
    assert len(scores) <= tokens
    if reason == "length":
        assert tokens == len(scores) == len(ids)
    else:
        assert all(score.offset < len(text) for score in scores)


@pytest.mark.parametrize("late", [0, 5])
def test_tokens_after_a_stop_string_do_not_count(tokenizer, late):
    """The engine has made them before it heard of the stop string."""
    ids = tokenizer.encode("the cat")
    more = ids + [ids[0]] * late
    text, _, tokens, reason = answer(tokenizer, more, [], ["cat"], "aborted")
    assert (text, tokens, reason) == ("the ", len(ids), "stop")
