"""Prompts that are far too long are refused early, and no others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.errors import UserError
from openmimo.serving import prompts
from openmimo.serving.fields import Message
from openmimo.serving.prompts import chat_ids, completion_ids
from openmimo.web.errors import ApiError

WORDS = ["the cat sat", " on the mat", "7", "naïve", "€", " ", "\n\n", "other\tcat", "😀"]


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer):
        self._tokenizer, self.read = tokenizer, 0
        self.vocab_size = tokenizer.vocab_size

    def encode(self, text):
        self.read += len(text)
        return self._tokenizer.encode(text)

    def chat_prompt(self, turns):
        self.read += sum(len(turn["content"]) for turn in turns)
        return self._tokenizer.chat_prompt(turns)


def message(text, role="user"):
    return Message(role=role, content=text)


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=40), st.integers(1, 30))
def test_a_text_that_fits_is_never_refused(tokenizer, words, times):
    """However it is cut: here into pieces of a few words."""
    text = "".join(words) * times
    exact = tokenizer.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompts, "PIECE", 200)
        assert completion_ids(text, tokenizer, len(exact)) == [exact]
        turns = [message(text), message(text, "assistant"), message(text)]
        ids = chat_ids(turns, tokenizer, 3 * len(exact))
        assert len(ids) > 3 * len(exact)


@pytest.mark.parametrize("text", ["7" * 3_000_000, "the cat sat on the mat " * 200_000])
def test_little_of_a_huge_text_is_read(tokenizer, text):
    for refused in (
        lambda counting: completion_ids(["a", text], counting, 1000),
        lambda counting: chat_ids([message("a"), message(text)], counting, 1000),
    ):
        counting = Counting(tokenizer)
        with pytest.raises(ApiError, match="the context has 1000") as error:
            refused(counting)
        assert error.value.body()["error"]["code"] == "context_length_exceeded"
        assert counting.read <= 2 * prompts.PIECE


def test_many_short_messages_are_one_long_conversation(tokenizer):
    counting = Counting(tokenizer)
    with pytest.raises(ApiError, match="the context has 1000"):
        chat_ids([message("7" * 1000)] * 1000, counting, 1000)
    assert counting.read <= 3 * prompts.PIECE


def test_the_forms_of_a_prompt(tokenizer):
    assert completion_ids([3, 4], tokenizer, 9) == [[3, 4]]
    assert completion_ids([[3], [4]], tokenizer, 9) == [[3], [4]]
    assert completion_ids(["a", "b"], tokenizer, 9) == [tokenizer.encode(text) for text in "ab"]


def test_what_the_tokenizer_cannot_do_is_its_error(tokenizer):
    class Plain(Counting):
        def chat_prompt(self, turns):
            raise UserError("it is not for chat")

    with pytest.raises(UserError, match="not for chat"):
        chat_ids([message("a")], Plain(tokenizer), 100)
