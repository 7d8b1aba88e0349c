"""From the fields of a body to requests for the engine. Pure but for the random seed."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from openmimo.inference.protocol import LEAST_TEMPERATURE, Request
from openmimo.inference.sampling import sample_seed
from openmimo.serving.fields import ChatFields, CompletionFields, SamplingFields
from openmimo.serving.prompts import chat_ids, completion_ids, count_prompts, too_long
from openmimo.tokenizer import Tokenizer
from openmimo.web.errors import ApiError


@dataclass(frozen=True)
class Limits:
    """What one call may ask for.

    context: tokens of prompt and answer together.
    samples: n.
    requests: prompts x n; more could never be queued.
    """

    context: int
    samples: int
    requests: int


@dataclass(frozen=True, eq=False)
class Call:
    """One HTTP request, ready for the engine.

    prompts: token ids.
    requests: the n samples of the first prompt, then those of the second...
    stops: stop strings.
    logprobs: None, or how many alternatives to each token are reported.
    echo: the prompt is part of the text.
    max_tokens: as it was asked for; 0 although the engine generates at least one.
    """

    prompts: list[list[int]]
    requests: list[Request]
    stops: list[str]
    logprobs: int | None
    stream: bool
    include_usage: bool
    max_tokens: int
    echo: bool = False

    @property
    def in_pieces(self) -> bool:
        """Whether text is needed before the answer is complete."""
        return self.stream or bool(self.stops)


def chat_call(fields: ChatFields, tokenizer: Tokenizer, limits: Limits) -> Call:
    """The call of a chat body.

    Raises:
        ApiError: it exceeds a limit.
        UserError: the tokenizer has no chat form.
    """
    _check(fields, 1, limits)
    prompt = chat_ids(fields.messages, tokenizer, limits.context)
    room = limits.context - len(prompt)
    wanted = fields.max_completion_tokens or fields.max_tokens or max(room, 1)
    logprobs = fields.top_logprobs if fields.logprobs else None
    return _call(fields, [prompt], wanted, logprobs, False, tokenizer, limits)


def completion_call(fields: CompletionFields, tokenizer: Tokenizer, limits: Limits) -> Call:
    """The call of a completions body; raises ApiError if it exceeds a limit."""
    _check(fields, count_prompts(fields.prompt), limits)
    prompts = completion_ids(fields.prompt, tokenizer, limits.context)
    return _call(
        fields, prompts, fields.max_tokens, fields.logprobs, fields.echo, tokenizer, limits
    )


def _call(
    fields: SamplingFields,
    prompts: list[list[int]],
    max_tokens: int,
    logprobs: int | None,
    echo: bool,
    tokenizer: Tokenizer,
    limits: Limits,
) -> Call:
    new_tokens = max(max_tokens, 1)
    longest = max(map(len, prompts))
    if longest + new_tokens > limits.context:
        what = f"{longest} prompt tokens and {new_tokens} new ones make {longest + new_tokens}"
        param = "messages" if isinstance(fields, ChatFields) else "prompt"
        raise too_long(what, limits.context, param)
    stop_ids = set(fields.stop_token_ids)
    if not fields.ignore_eos:
        stop_ids |= {tokenizer.eos_id, tokenizer.doc_end_id}
    seed = secrets.randbits(62) if fields.seed is None else fields.seed
    requests = [
        Request(
            id=0,  # the service numbers them
            prompt_ids=prompt,
            max_new_tokens=new_tokens,
            temperature=fields.temperature,
            top_p=fields.top_p,
            top_k=max(fields.top_k, 0),  # -1 is vLLM's word for all
            min_p=fields.min_p,
            # The first sample is what the engine makes of this seed, the others differ from it.
            seed=sample_seed(seed, sample) if sample else seed,
            stop_ids=tuple(sorted(stop_ids)),
            alternatives=logprobs or 0,
            score_prompt=echo and logprobs is not None,
        )
        for prompt in prompts
        for sample in range(fields.n)
    ]
    options = fields.stream_options
    return Call(
        prompts, requests, fields.stop, logprobs, fields.stream,
        bool(options and options.include_usage), max_tokens, echo,
    )  # fmt: skip


def _check(fields: SamplingFields, prompts: int, limits: Limits) -> None:
    """What is known before the prompts are read."""
    if 0 < fields.temperature < LEAST_TEMPERATURE:
        message = (
            f"temperature is {fields.temperature}; use 0 (greedy) or at least {LEAST_TEMPERATURE}"
        )
        raise ApiError(400, message, "temperature")
    if fields.n > limits.samples:
        raise ApiError(400, f"n is {fields.n}; this server allows {limits.samples}", "n")
    if (count := prompts * fields.n) > limits.requests:
        raise ApiError(
            400,
            f"prompts times n is {prompts} x {fields.n} = {count} answers; this server holds "
            f"{limits.requests} at once, so split the call",
            "prompt",
        )
