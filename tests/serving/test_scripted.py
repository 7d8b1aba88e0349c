"""Replies to what a scripted engine says: thinking, and log-probs that are known."""

from pathlib import Path

import openai
import pytest

FIRST = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import scripted"
CHAT = [{"role": "user", "content": "hello"}]
THOUGHT = "The user says <b>hello</b>.\n\nI think."
ANSWER = "Hello <img src=x onerror=\"document.title='broken'\"> naïve € cat!"

SAID = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"


@pytest.fixture(scope="module")
def scripted(start):
    with start(first=FIRST) as server:
        yield server


@pytest.fixture(scope="module")
def client(scripted):
    with openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_thinking_is_apart_from_the_answer(client):
    reply = client.chat.completions.create(model="tiny", messages=CHAT)
    assert reply.choices[0].message.reasoning_content == THOUGHT
    assert reply.choices[0].message.content == ANSWER
    thought, answer = "", ""
    for chunk in client.chat.completions.create(model="tiny", messages=CHAT, stream=True):
        delta = chunk.choices[0].delta
        thought += getattr(delta, "reasoning_content", None) or ""
        answer += delta.content or ""
        assert not (answer and getattr(delta, "reasoning_content", None) and not delta.content)
    assert (thought, answer) == (THOUGHT, ANSWER)


def test_a_completion_is_not_split(client):
    reply = client.completions.create(model="tiny", prompt="<think>", max_tokens=1000)
    assert reply.choices[0].text == SAID


def test_stop_strings_work_inside_the_thinking(client):
    reply = client.chat.completions.create(model="tiny", messages=CHAT, stop="</b>.\n\nI th")
    assert reply.choices[0].message.reasoning_content == "The user says <b>hello"
    assert reply.choices[0].message.content == ""
    assert reply.choices[0].finish_reason == "stop"


def test_alternatives_in_chat(client, tokenizer):
    reply = client.chat.completions.create(
        model="tiny", messages=CHAT, logprobs=True, top_logprobs=2, max_tokens=4
    )
    content = reply.choices[0].logprobs.content
    assert [entry.logprob for entry in content] == [0, -0.25, -0.5, -0.75]
    first = tokenizer.encode("<think>")[0]
    assert [top.token for top in content[0].top_logprobs] == [
        tokenizer.token_name(first), tokenizer.token_name(first + 1)
    ]  # fmt: skip
    assert [top.logprob for top in content[2].top_logprobs] == [-0.5, -1.5]
    assert bytes(content[0].bytes) == tokenizer.token_bytes(first)


@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_echo_scores_the_prompt(client, tokenizer, max_tokens):
    """What lm-eval reads: one entry a token, none before the first."""
    prompts = [tokenizer.encode("the naïve cat"), tokenizer.encode("mat")]
    reply = client.completions.create(
        model="tiny", prompt=prompts, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0
    )
    for prompt, choice in zip(prompts, reply.choices, strict=True):
        scores, count = choice.logprobs, len(prompt)
        assert len(scores.tokens) == count + max_tokens
        assert scores.token_logprobs[0] is None
        assert scores.top_logprobs[0] is None
        assert scores.token_logprobs[1:count] == [-n / 4 for n in range(1, count)]
        assert scores.token_logprobs[count:] == [-n / 4 for n in range(max_tokens)]
        for token, alternatives in zip(scores.tokens[1:], scores.top_logprobs[1:], strict=True):
            assert max(alternatives, key=alternatives.get) == token
        assert choice.text == tokenizer.decode([*prompt, *tokenizer.encode(SAID)[:max_tokens]])
        for token, offset in zip(scores.tokens, scores.text_offset, strict=True):
            if not token.startswith("bytes:"):
                assert choice.text[offset : offset + len(token)] == token


def test_a_stop_string_keeps_the_scores_of_the_prompt(client, tokenizer):
    reply = client.completions.create(
        model="tiny", prompt="the cat", echo=True, logprobs=0, max_tokens=1000, stop="user"
    )
    scores = reply.choices[0].logprobs
    assert reply.choices[0].text == "the cat<think>\nThe "
    assert scores.token_logprobs[1] == -0.25
    assert max(scores.text_offset) < len(reply.choices[0].text)
