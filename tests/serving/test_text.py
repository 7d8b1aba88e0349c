"""The text layer: any cutting of the stream gives what the whole text gives."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from openmimo.serving.text import AnswerText, StopStrings
from openmimo.tokenizer import Tokenizer

from ..texts import pieces

# Few characters, so that stop strings often appear, whole and in part.
STOP_TEXT = st.text("ab", max_size=12)
OVERLAPPING = ["b", "ab", "ba", "abb", "aab", "abab", "bb"]
STOPS = st.lists(st.sampled_from(OVERLAPPING), max_size=3)


def cut(text, stops):
    """Character by character: the answer ends when its last characters are a stop string."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[: end - max(map(len, ended))]
    return text


@given(pieces(STOP_TEXT), STOPS)
def test_stop_strings_cut_at_the_first_whatever_the_pieces(parts, stops):
    matcher = StopStrings(stops)
    fed = "".join(map(matcher.feed, parts)) + matcher.finish()
    assert fed == cut("".join(parts), stops)
    assert matcher.stopped == any(stop in "".join(parts) for stop in stops)


def test_stop_strings_within_stop_strings():
    """Every short text in two pieces, every pair: chance seldom hits on those that overlap."""
    texts = ["".join(text) for n in range(7) for text in itertools.product("ab", repeat=n)]
    for text, stops in itertools.product(texts, itertools.combinations(OVERLAPPING, 2)):
        for at in range(0, len(text) + 1, 2):
            matcher = StopStrings(stops)
            fed = matcher.feed(text[:at]) + matcher.feed(text[at:]) + matcher.finish()
            assert fed == cut(text, stops)


@given(pieces(STOP_TEXT), STOPS)
def test_only_a_possible_stop_is_held_back(parts, stops):
    matcher, given_, returned = StopStrings(stops), "", ""
    for part in parts:
        given_ += part
        returned += matcher.feed(part)
        if matcher.stopped:
            return
        held = given_[len(returned) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


@given(data=st.data())
def test_answers_are_the_decoded_tokens_cut_at_the_stop(tokenizer, data):
    """Characters of several tokens included; and each token's offset is where it begins."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    ids += tokenizer.encode(data.draw(st.sampled_from(["", "naïve €", "the cat"])))
    stops = data.draw(st.lists(st.sampled_from(["a", "ï", "at", "€", "\ufffd"]), max_size=2))
    text, fed, offsets = AnswerText(tokenizer, stops), "", []
    for token_id in ids:
        offsets.append(text.decoded)
        fed += text.feed(token_id)
        assert len(fed) == text.released
        if text.stopped:
            break
    fed += text.finish()
    assert fed == cut(tokenizer.decode(ids), stops)
    assert offsets == sorted(offsets)
    whole = tokenizer.decode(ids)
    for token_id, offset in zip(ids, offsets, strict=False):
        name = tokenizer.token_name(token_id)
        if not name.startswith(("bytes:", "<|")) and "\ufffd" not in whole:
            assert whole[offset : offset + len(name)] == name


def test_names_of_tokens_differ(tokenizer: Tokenizer):
    names = [tokenizer.token_name(token_id) for token_id in range(tokenizer.vocab_size)]
    assert len(set(names)) == tokenizer.vocab_size
    assert tokenizer.token_name(tokenizer.eos_id) == "<|im_end|>"
    assert "bytes:\\xe2" in names
