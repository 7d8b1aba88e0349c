"""A vLLM server (`vllm serve`) as an inference engine, over HTTP.

    VLLM_SERVER_DEV_MODE=1 VLLM_USE_V2_MODEL_RUNNER=0 vllm serve FOLDER --trust-remote-code \\
        --worker-extension-cls openmimo.inference.vllm_worker.WorkerExtension \\
        --logprobs-mode processed_logprobs
    with RemoteVllm("http://localhost:8000", slots=64) as engine: ...

A file of its own, as it needs no vLLM, only httpx: the server may have another environment or, but
for new weights, another machine.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from openmimo.errors import UserError
from openmimo.inference.protocol import FinishReason, Request
from openmimo.inference.vllm_client import Delta, RefusedError, VllmClient
from openmimo.inference.vllm_common import (
    Counters,
    make_prompt,
    make_tokens,
    read_counters,
    sampling_settings,
)
from openmimo.model.checkpoint import load_config

_HOW = "docs/vllm.md says how to start the server"
_FOR_ALL = (401, 403, 404)
"""Any request would get these: the key is wrong, or the model is gone."""
_ACCEPTED = "spec_decode_num_accepted_tokens_per_pos/"
_ID = "token_id:"
"""How the server writes tokens with `return_tokens_as_token_ids`."""


class RemoteVllm(VllmClient):
    """A running server. `close` leaves it running.

    Args:
        url: of the server, without /v1.
        folder: the model folder that it serves; default: the path that the server names.
        slots: requests sent at once, the server's --max-num-seqs; more wait here.
        api_key: the server's --api-key.
        used_vocab: ids from this one on are never sampled; default: all may be.
        timeout: seconds; the longest wait for the next token, or for an answer to a call.

    Raises:
        UserError: the server is out of reach, was not started as above, or drafts more than one
            token a step.
    """

    def __init__(
        self,
        url: str,
        *,
        folder: Path | None = None,
        slots: int,
        api_key: str | None = None,
        used_vocab: int | None = None,
        timeout: float = 600.0,
    ) -> None:
        super().__init__(f"the vLLM server {url}", timeout)
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=timeout,
            limits=httpx.Limits(),  # `_turns` is the limit: calls must not wait for requests
        )
        self._turns = asyncio.Semaphore(slots)
        try:
            model = self._call(self._get("/v1/models"))["data"][0]
            self._model = model["id"]
            folder = folder or Path(model["root"])
            if not folder.is_dir():
                raise UserError(f"{self._name} serves {folder}, which is not here: name a copy")
            self._call(self._check_log_probs())
            self._start(
                load_config(folder),
                slots=slots,
                max_length=model["max_model_len"],
                used_vocab=used_vocab,
                drafts=self._call(self._count_drafts()),
            )
        except BaseException:
            self.close()
            raise

    async def _stream(self, request: Request) -> AsyncIterator[Delta]:
        body = {
            "model": self._model,
            "prompt": list(request.prompt_ids),
            "add_special_tokens": False,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            # The server gives a prompt's scores only with a whole answer.
            "stream": not request.score_prompt,
            **sampling_settings(request),
        }
        stream = self._http.stream("POST", "/v1/completions", json=body)
        async with self._turns, stream as response:
            if response.status_code != httpx.codes.OK:
                kind = RefusedError if _is_of_one_request(response.status_code) else UserError
                raise kind(self._refusal(request, await _why(response)))
            if request.score_prompt:
                yield self._read(await response.aread(), request)
                return
            async for line in response.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield self._read(line.removeprefix("data: "), request)

    def _read(self, text: str | bytes, request: Request) -> Delta:
        """One message; an error in the middle of a stream has its status inside."""
        answer = json.loads(text)
        error = answer.get("error", {})
        if _is_of_one_request(error.get("code")):
            raise RefusedError(self._refusal(request, error["message"]))
        return _delta(answer, request)

    def _refusal(self, request: Request, why: str) -> str:
        return f"request {request.id}: {self._name} refuses it: {why}"

    async def _rpc(self, method: str, *args: str) -> None:
        await self._post("/collective_rpc", {"method": method, "args": args})

    async def _pause(self) -> None:
        await self._post("/pause?mode=keep&clear_cache=false")

    async def _resume(self) -> None:
        reset = await self._post("/reset_prefix_cache?reset_running_requests=true")
        if not reset["success"]:
            raise RuntimeError("its caches could not be reset")
        await self._post("/resume")

    async def _counters(self) -> Counters:
        response = await self._http.get("/metrics")
        response.raise_for_status()
        return read_counters(response.text)

    async def _stop(self) -> None:
        await self._http.aclose()

    async def _count_drafts(self) -> int:
        """A server has one of these counters for each token that it drafts a step."""
        drafts = sum(name.startswith(_ACCEPTED) for name in await self._counters())
        if drafts > 1:
            raise UserError(
                f"{self._name} drafts {drafts} tokens a step with one MTP layer, which was trained "
                f"for the first alone: start it with num_speculative_tokens 1; {_HOW}"
            )
        return drafts

    async def _check_log_probs(self) -> None:
        """One token at two temperatures: equal log-probs are those before the temperature."""
        found = []
        for temperature in (1.0, 2.0):
            request = Request("check", [0], 1, temperature=temperature, alternatives=1)
            async for delta in self._stream(request):
                found += delta.tokens.top_log_probs.flatten().tolist()
        if len(found) != 2 or found[0] == found[1]:
            raise UserError(
                f"{self._name} reports log-probs without the temperature: it needs "
                f"--logprobs-mode processed_logprobs; {_HOW}"
            )

    async def _get(self, path: str) -> Any:
        response = await self._http.get(path)
        return await self._content(path, response)

    async def _post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        response = await self._http.post(path, json=body)
        return await self._content(path, response)

    async def _content(self, path: str, response: httpx.Response) -> Any:
        if response.status_code == httpx.codes.NOT_FOUND:
            raise UserError(f"{self._name} has no {path}, so no VLLM_SERVER_DEV_MODE=1; {_HOW}")
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise UserError(f"{self._name} wants another API key: pass its --api-key")
        if response.status_code != httpx.codes.OK:
            raise UserError(f"{self._name} failed at {path}: {await _why(response)}; {_HOW}")
        return response.json() if response.content else None


def _delta(answer: dict[str, Any], request: Request) -> Delta:
    """One message of the completions API."""
    if "error" in answer:
        raise RuntimeError(answer["error"]["message"])
    choice = answer["choices"][0]
    many = request.alternatives
    ids: list[int] = choice["token_ids"] or []
    values = []
    if ids:
        scores = choice["logprobs"]
        for i, own, top in zip(ids, scores["token_logprobs"], scores["top_logprobs"], strict=True):
            values.append({_id(text): value for text, value in (top or {}).items()} | {i: own})
    reason: FinishReason | None = choice["finish_reason"]
    scored = None
    if request.score_prompt:
        given = [
            each and {int(i): value["logprob"] for i, value in each.items()}
            for each in choice["prompt_logprobs"]
        ]
        scored = make_prompt(request.prompt_ids, given, many)
    return Delta(make_tokens(ids, values, many), reason, scored)


def _is_of_one_request(status: object) -> bool:
    """Whether an error says nothing about other requests."""
    return isinstance(status, int) and 400 <= status < 500 and status not in _FOR_ALL


def _id(text: str) -> int:
    return int(text.removeprefix(_ID))


async def _why(response: httpx.Response) -> str:
    """The server's own words, if it has any."""
    text = (await response.aread()).decode(errors="replace")
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text or response.reason_phrase
