"""Thinking and answer are told apart, whatever the pieces of the text."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.inference.thinking import ThinkSplitter, without_thinking

from ..texts import pieces

# Few characters, so that tags often appear, whole and in part.
TAGGED = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</th", "think>", " ", "\n", "a", "é", "\u3000"]),
    max_size=8,
).map("".join)


def split(text):
    """The same on a whole text, with a regular expression."""
    start = re.match(r"\s*<think>", text)
    if not start:
        return "", text
    reasoning, _, answer = text[start.end() :].partition("</think>")
    return reasoning.strip(), answer.lstrip()


@given(pieces(TAGGED))
def test_thinking_is_split_off_whatever_the_pieces(parts):
    splitter = ThinkSplitter()
    fed = [*map(splitter.feed, parts), splitter.finish()]
    both = tuple(map("".join, zip(*fed, strict=True)))
    assert both == split("".join(parts))
    assert without_thinking("".join(parts)) == both[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no thinking", ("", "no thinking")),
        ("<think>\nwell\n</think>\n\n42", ("well", "42")),
        ("<think>\n\n</think>\n42", ("", "42")),
        ("<think>cut of", ("cut of", "")),
        ("a <think> b </think>", ("", "a <think> b </think>")),
        ("<think>a</think>b</think>", ("a", "b</think>")),
    ],
)
def test_the_forms_that_models_write(text, expected):
    splitter = ThinkSplitter()
    first, last = splitter.feed(text), splitter.finish()
    assert (first[0] + last[0], first[1] + last[1]) == expected


def test_thinking_is_streamed_and_not_collected():
    splitter = ThinkSplitter()
    assert splitter.feed("<think>\nfirst") == ("first", "")
    assert splitter.feed(" second </th") == (" second", "")
    assert splitter.feed("ings") == (" </things", "")
    assert splitter.feed("</think>yes") == ("", "yes")
