"""Token ids of prompts, without reading to the end what is far too long for the model.

8 MB of digits would take the tokenizer a minute and 4 GB. So a long text is counted in pieces
first, and refused where they already make more tokens than the context has.
"""

from __future__ import annotations

from collections.abc import Sequence

from openmimo.inference.thinking import without_thinking
from openmimo.serving.fields import Message
from openmimo.tokenizer import Tokenizer
from openmimo.web.errors import ApiError

PIECE = 50_000
"""Characters counted at once. A shorter text is not worth counting twice."""

EDGE = 50
"""Tokens that a piece may have more than its part of the whole: words are cut at its ends."""


def chat_ids(messages: Sequence[Message], tokenizer: Tokenizer, context: int) -> list[int]:
    """The prompt of a conversation, which may still be longer than `context` tokens, but not far.

    Raises:
        ApiError: it is far longer.
        UserError: the tokenizer has no chat form.
    """
    roles = {"developer": "system"}  # OpenAI's newer name
    turns = [
        {
            "role": roles.get(message.role, message.role),
            "content": without_thinking(message.text)
            if message.role == "assistant"
            else message.text,
        }
        for message in messages
    ]
    _check_length([turn["content"] for turn in turns], tokenizer, context, "messages")
    return tokenizer.chat_prompt(turns)


def completion_ids(
    prompt: str | Sequence[str | int | list[int]], tokenizer: Tokenizer, context: int
) -> list[list[int]]:
    """The prompts of a completions body, none of them far longer than `context` tokens.

    Raises:
        ApiError: one is far longer, empty, or has an id that is no token; or there is none.
    """
    prompts = []
    for each in _prompts(prompt):
        if isinstance(each, str):
            _check_length([each], tokenizer, context, "prompt")
        prompts.append(tokenizer.encode(each) if isinstance(each, str) else each)
    if not prompts or not all(prompts):
        raise ApiError(400, "a prompt has no tokens: give at least one", "prompt")
    if (largest := max(map(max, prompts))) >= tokenizer.vocab_size:
        message = f"token id {largest} is outside 0..{tokenizer.vocab_size - 1}"
        raise ApiError(400, message, "prompt")
    return prompts


def count_prompts(prompt: str | Sequence[str | int | list[int]]) -> int:
    """How many prompts a completions body has."""
    return len(_prompts(prompt))


def _prompts(prompt: str | Sequence[str | int | list[int]]) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [[token for token in prompt if isinstance(token, int)]]
    return [each for each in prompt if not isinstance(each, int)]


def _check_length(texts: Sequence[str], tokenizer: Tokenizer, context: int, param: str) -> None:
    if sum(map(len, texts)) <= PIECE:
        return
    least = 0
    for text in texts:
        for start in range(0, len(text), PIECE):
            least += max(0, len(tokenizer.encode(text[start : start + PIECE])) - EDGE)
            if least > context:
                raise too_long(f"more than {least} prompt tokens", context, param)


def too_long(what: str, context: int, param: str) -> ApiError:
    """What a client is told whose prompt and answer do not fit."""
    message = f"{what}, but the context has {context}; shorten the prompt or lower max_tokens"
    return ApiError(400, message, param, "context_length_exceeded")
