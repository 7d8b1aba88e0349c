"""What a request, its tokens and the counters are called in vLLM, in process as over HTTP."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from openmimo.errors import UserError
from openmimo.inference.protocol import EngineStats, Request, Tokens

VLLM_LEAST_TEMPERATURE = 0.01
"""vLLM silently raises any lower one but 0 to this."""

Counters = dict[str, float]


def sampling_settings(request: Request) -> dict[str, Any]:
    """The arguments of vLLM's SamplingParams, which are also fields of its completions API.

    All are named, as a server takes what is left out from generation_config.json.
    """
    return {
        "max_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "seed": request.seed % 2**63,  # -1 would mean no seed
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": list(request.stop_ids),
        "ignore_eos": True,  # only stop_ids end an answer
        "logprobs": request.alternatives,  # 0: only the token's own
        "prompt_logprobs": request.alternatives if request.score_prompt else None,
    }


def check_request(request: Request, *, max_length: int, vocab_size: int, drafts: int) -> None:
    """Raise UserError if vLLM can never serve the request, or would serve another one."""

    def refuse(why: str) -> None:
        raise UserError(f"request {request.id}: {why}")

    prompt, new = len(request.prompt_ids), request.max_new_tokens
    if prompt + new > max_length:
        refuse(
            f"{prompt} prompt tokens and {new} new ones make {prompt + new}, but vLLM's max_length "
            f"is {max_length}; shorten one or raise max_length"
        )
    if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= vocab_size:
        refuse(
            f"the prompt has a token id outside 0..{vocab_size - 1}; was it made with another "
            "tokenizer?"
        )
    if 0 < request.temperature < VLLM_LEAST_TEMPERATURE:
        refuse(
            f"temperature is {request.temperature}; vLLM would take {VLLM_LEAST_TEMPERATURE} "
            "instead: use that, or 0"
        )
    if request.score_prompt and request.temperature not in (0, 1):
        refuse("vLLM scores prompts at temperature 1 alone; use temperature 1 (or 0)")
    if drafts and request.temperature:
        if request.min_p:
            refuse("vLLM does not know min_p together with drafts; leave one out")
        if request.top_k and request.top_p == 1:  # max() of no rows, where no row has a draft
            refuse(
                "top_k without top_p kills a drafting vLLM 0.32 on a CPU; give top_p, or no drafts"
            )


def make_tokens(
    ids: Sequence[int], log_probs: Sequence[Mapping[int, float]], alternatives: int
) -> Tokens:
    """Tokens from what vLLM reports at each position.

    Args:
        ids: n tokens.
        log_probs: for each of them the log-probs of some ids: its own and the likeliest ones.
        alternatives: how many of the likeliest to keep.
    """
    top = [sorted(each.items(), key=_best_first)[:alternatives] for each in log_probs]
    shape = (len(ids), alternatives)
    return Tokens(
        np.array(ids, np.int32),
        np.array([each[i] for i, each in zip(ids, log_probs, strict=True)], np.float32),
        np.array([[i for i, _ in each] for each in top], np.int32).reshape(shape),
        np.array([[value for _, value in each] for each in top], np.float32).reshape(shape),
    )


def make_prompt(
    ids: Sequence[int], log_probs: Sequence[Mapping[int, float] | None], alternatives: int
) -> Tokens:
    """A prompt's tokens from vLLM's `prompt_logprobs`, whose first entry is None."""
    rest = make_tokens(ids[1:], [each or {} for each in log_probs[1:]], alternatives)
    first = Tokens(
        np.array(ids[:1], np.int32),
        np.full(1, np.nan, np.float32),
        np.full((1, alternatives), -1, np.int32),
        np.full((1, alternatives), np.nan, np.float32),
    )
    return join_tokens([first, rest])


def join_tokens(parts: Sequence[Tokens], start: int = 0) -> Tokens:
    """The tokens of all parts one after the other, from number `start` on."""
    names = ("token_ids", "log_probs", "top_ids", "top_log_probs")
    return Tokens(*(np.concatenate([getattr(part, n) for part in parts])[start:] for n in names))


def _best_first(item: tuple[int, float]) -> tuple[float, int]:
    return -item[1], item[0]


_SAMPLE = re.compile(r"^(vllm:\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_POSITION = re.compile(r'position="(\d+)"')


def read_counters(text: str) -> Counters:
    """vLLM's counters out of Prometheus's text, without "vllm:" and "_total".

    Processes of one server are added up. A counter with a position label becomes NAME/POSITION.
    """
    counters: Counters = {}
    for name, labels, value in _SAMPLE.findall(text):
        key = name.removeprefix("vllm:").removesuffix("_total")
        if position := _POSITION.search(labels):
            key = f"{key}/{position[1]}"
        counters[key] = counters.get(key, 0.0) + float(value)
    return counters


def engine_stats(now: Counters, start: Counters, *, slots: int, drafts: int) -> EngineStats:
    """What vLLM has counted since `start`, as far as it means the same.

    A row of a step gives one token and those that were accepted, which gives row_steps. vLLM
    thinks of a draft as offered wherever it was checked, at the end of an answer too. Unknown, so
    left alone: steps (and with them the occupancy), cache_bytes, saved_seconds.
    """

    def count(name: str) -> int:
        return int(now.get(name, 0) - start.get(name, 0))

    accepted = [count(f"spec_decode_num_accepted_tokens_per_pos/{i}") for i in range(drafts)]
    offered = count("spec_decode_num_drafts")
    generated, shared = count("generation_tokens"), count("prompt_tokens_cached")
    return EngineStats(
        slots,
        row_steps=generated - sum(accepted),
        generated_tokens=generated,
        prefilled_tokens=count("prompt_tokens") - shared,
        shared_tokens=shared,
        drafting=drafts,
        drafts_offered=[offered] * drafts,
        drafts_reached=[offered, *accepted][:drafts],
        drafts_accepted=accepted,
    )
