"""The text layer: any cutting of the stream gives what the whole text gives."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.serving.text import AnswerText, StopStrings, ThinkSplitter, opens_thinking
from openmimo.tokenizer import Tokenizer

# Few characters, so that stop strings and tags often appear, whole and in part.
STOP_TEXT = st.text("ab", max_size=12)
OVERLAPPING = ["b", "ab", "ba", "abb", "aab", "abab", "bb"]
STOPS = st.lists(st.sampled_from(OVERLAPPING), max_size=3)
TAGGED = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</th", "think>", " ", "\n", "a", "é", "\u3000"]),
    max_size=8,
).map("".join)


@st.composite
def pieces(draw, text):
    """`text` in pieces, some of them empty."""
    whole = draw(text)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=3)))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


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


def split(text, opened):
    """The same on a whole text, with a regular expression."""
    start = re.match(r"\s*<think>", text)
    if not (start or opened):
        return "", text
    reasoning, _, answer = text[start.end() if start else 0 :].partition("</think>")
    return reasoning.strip(), answer.lstrip()


@given(pieces(TAGGED), st.booleans())
def test_thinking_is_split_off_whatever_the_pieces(parts, opened):
    splitter = ThinkSplitter(opened)
    fed = [*map(splitter.feed, parts), splitter.finish()]
    both = tuple(map("".join, zip(*fed, strict=True)))
    assert both == split("".join(parts), opened)


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("no thinking", False, ("", "no thinking")),
        ("<think>\nwell\n</think>\n\n42", False, ("well", "42")),
        ("well\n</think>\n42", True, ("well", "42")),
        ("<think>\n\n</think>\n42", False, ("", "42")),
        ("<think>cut of", False, ("cut of", "")),
        ("a <think> b </think>", False, ("", "a <think> b </think>")),
        ("<think>a</think>b</think>", False, ("a", "b</think>")),
    ],
)
def test_the_forms_that_models_write(text, opened, expected):
    splitter = ThinkSplitter(opened)
    first, last = splitter.feed(text), splitter.finish()
    assert (first[0] + last[0], first[1] + last[1]) == expected


def test_thinking_is_streamed_and_not_collected():
    splitter = ThinkSplitter()
    assert splitter.feed("<think>\nfirst") == ("first", "")
    assert splitter.feed(" second </th") == (" second", "")
    assert splitter.feed("ings") == (" </things", "")
    assert splitter.feed("</think>yes") == ("", "yes")


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


def test_a_prompt_may_open_the_thinking(tokenizer):
    def prompt(text: str) -> list[int]:
        return [*tokenizer.chat_prompt("the cat"), *tokenizer.encode(text)]

    assert opens_thinking(tokenizer, prompt("<think>\n"))
    assert not opens_thinking(tokenizer, prompt(""))
    assert not opens_thinking(tokenizer, tokenizer.chat_prompt("say <think>"))


def test_names_of_tokens_differ(tokenizer: Tokenizer):
    names = [tokenizer.token_name(token_id) for token_id in range(tokenizer.vocab_size)]
    assert len(set(names)) == tokenizer.vocab_size
    assert tokenizer.token_name(tokenizer.eos_id) == "<|im_end|>"
    assert "bytes:\\xe2" in names
