"""The server as its clients meet it: the official openai client, and plain HTTP."""

import asyncio
import copy
import json
import time

import httpx
import openai
import pytest

from openmimo.inference.protocol import Request
from openmimo.inference.sampling import sample_seed
from openmimo.serving.serve import ServeSettings, build_engine

CHAT = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def offline(model, tokenizer):
    """Answers of the engine itself, without a server."""
    engine = build_engine(copy.deepcopy(model), tokenizer, ServeSettings(slots=4), 1024)
    stops = (tokenizer.eos_id, tokenizer.doc_end_id)

    def answer(prompt, tokens, seed=0, stop_ids=stops, **settings):
        request = Request(0, prompt, tokens, seed=seed, stop_ids=stop_ids, **settings)
        return engine.run([request])[0]

    return answer


def test_chat_answers_as_the_engine_does(client, tokenizer, offline):
    reply = client.chat.completions.create(
        model="tiny", messages=CHAT, max_tokens=40, seed=3, temperature=0.8, top_p=0.9,
        logprobs=True,
    )  # fmt: skip
    expected = offline(tokenizer.chat_prompt(CHAT), 40, 3, temperature=0.8, top_p=0.9)
    choice = reply.choices[0]
    assert choice.message.content == tokenizer.decode(expected.token_ids.tolist())
    assert choice.finish_reason == expected.finish_reason
    assert [entry.logprob for entry in choice.logprobs.content] == pytest.approx(
        expected.log_probs.tolist(), abs=1e-4
    )
    names = [tokenizer.token_name(token) for token in expected.token_ids.tolist()]
    assert [entry.token for entry in choice.logprobs.content] == names
    assert reply.usage.prompt_tokens == len(tokenizer.chat_prompt(CHAT))
    assert reply.usage.completion_tokens == len(expected.token_ids)


def test_a_stream_gives_the_same_as_one_reply(client):
    asked = {
        "model": "tiny", "messages": CHAT, "max_tokens": 60, "seed": 5, "n": 3, "logprobs": True,
        "stop": ["a", "at"],
    }  # fmt: skip
    whole = client.chat.completions.create(**asked)
    texts, scores, reasons, usage = [""] * 3, [[], [], []], [None] * 3, None
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options=options):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            if choice.logprobs:
                scores[choice.index] += choice.logprobs.content
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    for streamed, choice in zip(scores, whole.choices, strict=True):
        expected = choice.logprobs.content
        assert [s.token for s in streamed] == [e.token for e in expected]
        # Rounding depends on what else a step computes.
        assert [s.logprob for s in streamed] == pytest.approx(
            [e.logprob for e in expected], abs=1e-4
        )
    assert usage == whole.usage


def test_samples_of_a_prompt_differ_and_repeat_with_their_seed(client, tokenizer, offline):
    asked = {"model": "tiny", "prompt": "the cat", "max_tokens": 20, "n": 3, "seed": 9}
    reply = client.completions.create(**asked)
    assert reply.usage.prompt_tokens == len(tokenizer.encode("the cat"))  # once for all samples
    texts = [choice.text for choice in reply.choices]
    assert len(set(texts)) == 3
    assert texts == [choice.text for choice in client.completions.create(**asked).choices]
    for index, text in enumerate(texts):
        seed = sample_seed(9, index) if index else 9
        expected = offline(tokenizer.encode("the cat"), 20, seed)
        assert text == tokenizer.decode(expected.token_ids.tolist())
    del asked["seed"]
    assert texts != [choice.text for choice in client.completions.create(**asked).choices]


def test_all_forms_of_a_prompt(client, tokenizer):
    ids = [tokenizer.encode("the cat"), tokenizer.encode("a mat")]

    def texts(prompt):
        asked = {"model": "tiny", "prompt": prompt, "max_tokens": 8, "temperature": 0}
        reply = client.completions.create(**asked)
        assert [choice.index for choice in reply.choices] == list(range(len(reply.choices)))
        return [choice.text for choice in reply.choices]

    both = texts(["the cat", "a mat"])
    assert texts(ids) == both
    assert texts("the cat") == texts(ids[0]) == both[:1]


def test_a_stop_string_cuts_and_frees_the_slot(client, server, tokenizer, offline):
    asked = {"model": "tiny", "prompt": "the cat", "max_tokens": 1000, "seed": 2}
    full = offline(tokenizer.encode("the cat"), 60, 2, ()).token_ids.tolist()
    text = tokenizer.decode(full)
    stop = text[30:33]
    before = server.metric("generated_tokens_total")
    reply = client.completions.create(
        **asked, stop=["never \x00 there", stop], logprobs=0, extra_body={"ignore_eos": True}
    )
    choice = reply.choices[0]
    assert choice.text == text[: text.index(stop)]
    assert choice.finish_reason == "stop"
    assert reply.usage.completion_tokens < 60
    assert len(choice.logprobs.tokens) <= reply.usage.completion_tokens
    assert all(offset < len(choice.text) for offset in choice.logprobs.text_offset)
    assert_idle(server)
    assert server.metric("generated_tokens_total") - before < 500


def test_stop_token_ids_end_an_answer_without_being_part_of_it(client, tokenizer, offline):
    tokens = offline(tokenizer.encode("mat"), 50, 4, ()).token_ids.tolist()
    extra = {"stop_token_ids": [tokens[5]], "ignore_eos": True}
    asked = {"model": "tiny", "prompt": "mat", "max_tokens": 50, "seed": 4}
    reply = client.completions.create(**asked, extra_body=extra)
    first = tokens.index(tokens[5])
    assert reply.choices[0].text == tokenizer.decode(tokens[:first])
    assert reply.usage.completion_tokens == first + 1
    assert reply.choices[0].finish_reason == "stop"


def test_echo_repeats_the_prompt_and_max_tokens_0_adds_nothing(client):
    asked = {"model": "tiny", "prompt": "the cat", "temperature": 0, "echo": True}
    reply = client.completions.create(**asked, max_tokens=0)
    assert reply.choices[0].text == "the cat"
    assert reply.usage.completion_tokens == 0
    longer = client.completions.create(**asked, max_tokens=5)
    assert longer.choices[0].text.startswith("the cat")
    streamed = client.completions.create(**asked, max_tokens=5, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == longer.choices[0].text


def test_an_answer_may_fill_the_context_by_default(client, tokenizer):
    text = "cat "
    while len(tokenizer.encode(text)) < 900:
        text += "cat "
    reply = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": text}],
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    assert reply.usage.total_tokens == 1024
    assert reply.choices[0].finish_reason == "length"


def test_parts_roles_and_fields_without_effect_are_taken(client):
    asked = {"model": "tiny", "temperature": 0, "max_tokens": 10}
    plain = client.chat.completions.create(
        messages=[{"role": "system", "content": "sat"}, *CHAT], **asked
    )
    first = plain.choices[0].message
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]
    same = client.chat.completions.create(
        messages=[{"role": "developer", "content": "sat"}, {"role": "user", "content": parts}],
        user="me", store=False, metadata={"a": "b"}, frequency_penalty=0, logit_bias={}, tools=[],
        response_format={"type": "text"}, **asked,
    )  # fmt: skip
    assert same.choices[0].message.content == first.content
    # An answer as the client received it is a turn of the next request.
    again = [*CHAT, first.model_dump(), {"role": "user", "content": "and?"}]
    assert client.chat.completions.create(messages=again, **asked).choices


def test_the_thinking_of_earlier_answers_is_left_out(client):
    """Whether it comes back apart or in the text."""

    def size(answer):
        messages = [*CHAT, {"role": "assistant", **answer}, *CHAT]
        reply = client.chat.completions.create(model="tiny", messages=messages, max_tokens=1)
        return reply.usage.prompt_tokens

    plain = size({"content": "mat"})
    assert size({"content": "mat", "reasoning_content": "the cat"}) == plain
    assert size({"content": "<think>\nthe cat\n</think>\n\nmat"}) == plain
    assert size({"content": "mat <think>the cat</think>"}) > plain


def test_usage_tells_what_was_in_the_cache(client):
    """Of each prompt once, though the samples of a new one share its reading too."""
    one, two = [[(7 * n + start) % 250 for n in range(40)] for start in (0, 100)]

    def cached(prompt, **more):
        options = {"stream_options": {"include_usage": True}} if "stream" in more else {}
        asked = {"model": "tiny", "prompt": prompt, "max_tokens": 3, "n": 2, **more, **options}
        reply = client.completions.create(**asked)
        if "stream" in more:
            *_, reply = reply
        return reply.usage.prompt_tokens_details.cached_tokens

    assert cached(one) == 0
    assert cached(one) == cached(one, stream=True) == 39
    assert cached([two, one]) == 39
    assert cached([*one, *two]) == 40


def test_null_asks_for_nothing(server):
    nulls = dict.fromkeys(("max_tokens", "stop", "suffix", "logit_bias", "best_of", "unheard_of"))
    reply = server.client.post("/v1/completions", json={"prompt": "a", **nulls})
    assert reply.status_code == 200
    assert reply.json()["usage"]["completion_tokens"] <= 16


@pytest.mark.parametrize(
    ("path", "change", "status", "param", "words"),
    [
        ("completions", {"presence_penalty": 0.5}, 400, "presence_penalty", "not supported"),
        ("completions", {"logit_bias": {"5": 1}}, 400, "logit_bias", "not supported"),
        ("completions", {"suffix": "end"}, 400, "suffix", "not supported"),
        ("completions", {"temprature": 0.5}, 400, "temprature", "did you mean temperature"),
        ("completions", {"temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        ("completions", {"temperature": "hot"}, 400, "temperature", "hot"),
        ("completions", {"temperature": 1e-300}, 400, "temperature", "use 0 (greedy)"),
        ("completions", {"stop_token_ids": [2**70]}, 400, "stop_token_ids.0", "less than"),
        ("completions", {"stop_token_ids": [5] * 200}, 400, "stop_token_ids", "at most 126"),
        ("completions", {"n": 17}, 400, "n", "allows 16"),
        ("completions", {"prompt": ["a"] * 300}, 400, "prompt", "split the call"),
        ("completions", {"prompt": ["a"] * 40, "n": 7}, 400, "prompt", "40 x 7 = 280 answers"),
        ("completions", {"prompt": []}, 400, "prompt", "at least one"),
        ("completions", {"prompt": ["a", 3]}, 400, "prompt", "must be a string"),
        ("completions", {"prompt": [3, 100000]}, 400, "prompt", "outside 0..29"),
        ("completions", {"max_tokens": 1024}, 400, "prompt", "context has 1024"),
        ("completions", {"max_tokens": 0}, 400, None, "echo"),
        ("completions", {"stop": list("abcde")}, 400, "stop", "at most 4"),
        ("completions", {"stop": [""]}, 400, "stop.0", "at least 1"),
        ("completions", {"stream_options": {}}, 400, None, "stream=true"),
        ("completions", {"model": "gpt"}, 404, "model", "only 'tiny'"),
        ("chat/completions", {"messages": []}, 400, "messages", "at least 1"),
        ("chat/completions", {"tools": [{}]}, 400, "tools", "not supported"),
        ("chat/completions", {"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
        ("chat/completions", {"top_logprobs": 3}, 400, None, "logprobs=true"),
        ("chat/completions", {"prompt": "a"}, 400, "prompt", "unknown field"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            400, "messages.0.content", "images",
        ),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "cat " * 3000}]},
            400, "messages", "context has 1024",
        ),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "7" * 90_000}]},
            400, "messages", "more than",
        ),
        ("completions", {"prompt": ["a", "7" * 90_000]}, 400, "prompt", "more than"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(server, path, change, status, param, words):
    body = {"prompt": "a"} if path == "completions" else {"messages": CHAT}
    reply = server.client.post(f"/v1/{path}", json={**body, **change})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (status, param)
    assert words in error["message"]
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b'"text"', b'{"prompt": "\xff"}', b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "\\ud800"}', b"[" * 50_000, b'{"n": ' + b"9" * 10_000 + b"}", b"\x00",
    ],
)  # fmt: skip
def test_bodies_that_are_no_json_object_are_refused(server, body):
    for path in ("/v1/completions", "/v1/chat/completions"):
        reply = server.client.post(path, content=body)
        assert reply.status_code == 400
        assert reply.json()["error"]["type"] == "invalid_request_error"


def test_paths_and_methods(server):
    assert server.client.get("/health").json() == {"status": "ok"}
    listed = server.client.get("/v1/models").json()["data"]
    assert [entry["id"] for entry in listed] == ["tiny"]
    assert server.client.get("/v1/models/tiny").json() == listed[0]
    missing = server.client.get("/v1/models/some/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    for reply, status in (
        (server.client.get("/v1/nothing"), 404),
        (server.client.get("/v1/models/"), 404),
        (server.client.post("/v1/completions/", json={"prompt": "a"}), 404),
        (server.client.get("/v1/completions"), 405),
        (server.client.post("/health"), 405),
    ):
        assert reply.status_code == status
        assert reply.json()["error"]["message"]


def test_the_asynchronous_client_and_many_at_once(server, tokenizer, offline):
    """More requests than slots; each gets what it would get alone."""

    async def ask_all():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:

            async def ask(seed):
                stream = await client.completions.create(
                    model="tiny", prompt="the cat", max_tokens=30, seed=seed, stream=True
                )
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*map(ask, range(20)))

    for seed, text in enumerate(asyncio.run(ask_all())):
        expected = offline(tokenizer.encode("the cat"), 30, seed)
        assert text == tokenizer.decode(expected.token_ids.tolist())
    assert_idle(server)


def test_metrics_count_what_happened(server):
    def read():
        text = server.client.get("/metrics").text
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if line[:1] != "#")
        return {name: float(value) for name, value in lines}

    before = read()
    body = {"prompt": "the cat", "max_tokens": 30, "ignore_eos": True, "stream": True}
    server.client.post("/v1/completions", json=body)
    server.client.post("/v1/completions", json={})
    deadline = time.monotonic() + 20  # the counters are read now and then
    while (after := read())["openmimo_generated_tokens_total"] == before.get(
        "openmimo_generated_tokens_total", 0
    ) or after["openmimo_active"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)

    def gained(name):
        return after[name] - before.get(name, 0)

    assert gained("openmimo_generated_tokens_total") == 30
    label = 'openmimo_requests_total{endpoint="/v1/completions",outcome='
    assert gained(label + '"completed"}') == gained(label + '"400"}') == 1
    assert gained("openmimo_time_to_first_token_seconds_count") == 1
    assert gained("openmimo_request_seconds_count") == 1
    assert 0 <= after['openmimo_mtp_acceptance{layer="1"}'] <= 1
    assert gained('openmimo_mtp_drafts_offered_total{layer="0"}') > 0
    assert after["openmimo_active"] == after["openmimo_waiting"] == 0


def test_a_body_that_is_too_large_is_refused_however_it_comes(server):
    large = json.dumps({"prompt": "a" * 200_000}).encode()

    def in_chunks():
        for start in range(0, len(large), 10_000):
            yield large[start : start + 10_000]

    for content in (large, in_chunks()):  # with a Content-Length, and without
        reply = server.client.post("/v1/completions", content=content)
        assert reply.status_code == 413
        assert reply.json()["error"]["code"] == "body_too_large"
    assert server.client.get("/health").status_code == 200


def test_a_client_that_leaves_frees_its_slot(server):
    body = {"prompt": "a", "max_tokens": 1000, "ignore_eos": True, "n": 4}
    label = 'requests_total{endpoint="/v1/completions",outcome="disconnected"}'
    before = server.metric(label)
    for stream in (True, False, True, False):
        leave(server, {**body, "stream": stream})
        assert_idle(server, seconds=1)
    assert server.metric(label) == before + 4


def leave(server, body):
    """Ask, and close the connection after a moment."""
    with httpx.Client(base_url=server.url, timeout=0.2) as client:
        try:
            with client.stream("POST", "/v1/completions", json=body) as reply:
                next(reply.iter_lines())
        except httpx.ReadTimeout:
            pass


def assert_idle(server, seconds=5.0):
    """All slots are free within a moment."""
    deadline = time.monotonic() + seconds
    while server.metric("active") + server.metric("waiting"):
        assert time.monotonic() < deadline, "requests still run"
        time.sleep(0.05)
