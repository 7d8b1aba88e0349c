"""vLLM in a process of its own, driven from this one (`AsyncLLM`).

    pip install vllm           # on a machine without a GPU: docs/vllm.md
    with VllmEngine(folder, slots=64, max_length=4096) as engine: ...

`vllm_remote` is the form for a server. This file and `vllm_worker` are the only ones that touch
vLLM; it is imported when an engine is made.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import torch

from openmimo.errors import UserError
from openmimo.inference.protocol import FinishReason, Request
from openmimo.inference.vllm_client import Delta, VllmClient
from openmimo.inference.vllm_common import (
    Counters,
    make_prompt,
    make_tokens,
    read_counters,
    sampling_settings,
)
from openmimo.model.checkpoint import open_model
from openmimo.model.folder import dtype_name

WORKER_EXTENSION = "openmimo.inference.vllm_worker.WorkerExtension"


class VllmEngine(VllmClient):
    """vLLM on an exported folder.

    Args:
        folder: what `mimo export --to vllm` wrote.
        slots: sequences decoded at once.
        max_length: longest prompt plus answer, in tokens; at most the folder's context.
        used_vocab: ids from this one on are never sampled; default: all may be.
        drafts: tokens to draft a step with the MTP layer, 0 or 1.
        dtype: to compute in; default: that of the folder. (vLLM's own default turns float32 into
            a half.)
        cache_bytes: memory for the caches; default: vLLM's choice, most of what is free.
        timeout: seconds; the longest wait for the next token, or for an answer to a call.
        more: further arguments of vLLM's AsyncEngineArgs.

    Raises:
        UserError: vLLM is not installed or does not start, or a value is impossible.
    """

    def __init__(
        self,
        folder: Path,
        *,
        slots: int,
        max_length: int,
        used_vocab: int | None = None,
        drafts: int = 0,
        dtype: torch.dtype | None = None,
        cache_bytes: int | None = None,
        timeout: float = 600.0,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        config, files = open_model(folder)
        if drafts not in (0, 1) or drafts > config.num_nextn_predict_layers:
            layers = config.num_nextn_predict_layers
            raise UserError(
                f"{drafts} drafts: vLLM drafts with the first MTP layer alone, so 0 or 1, and "
                f"{folder} has {layers}"
            )
        _environment()
        try:
            from vllm import AsyncEngineArgs, AsyncLLMEngine  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"vLLM cannot be imported ({error}); docs/vllm.md says how to install it"
            ) from error
        settings: dict[str, Any] = {
            "model": str(folder),
            "skip_tokenizer_init": True,
            "trust_remote_code": True,
            "dtype": dtype_name(dtype or files.dtype),
            "max_num_seqs": slots,
            "max_model_len": max_length,
            "logprobs_mode": "processed_logprobs",  # vllm_worker says why
            "worker_extension_cls": WORKER_EXTENSION,
            "kv_cache_memory_bytes": cache_bytes,
            "disable_log_stats": False,  # the counters
            "enable_log_requests": False,
        }
        if drafts:
            settings["speculative_config"] = {"method": "mtp", "num_speculative_tokens": drafts}
        super().__init__("vLLM", timeout)
        try:
            self._llm = self._call(_make(settings | dict(more or {})))
            self._start(
                config, slots=slots, max_length=max_length, used_vocab=used_vocab, drafts=drafts
            )
        except BaseException:
            self.close()
            raise

    async def _stream(self, request: Request) -> AsyncIterator[Delta]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        prompt = TokensPrompt(prompt_token_ids=list(request.prompt_ids))
        settings = SamplingParams(
            **sampling_settings(request), detokenize=False, output_kind=RequestOutputKind.DELTA
        )
        many = request.alternatives
        async for output in self._llm.generate(prompt, settings, f"{request.id}"):
            scored = None
            if output.prompt_logprobs:
                scored = make_prompt(
                    request.prompt_ids, [_values(each) for each in output.prompt_logprobs], many
                )
            part = output.outputs[0]
            values = [_values(each) for each in part.logprobs or []]
            reason: FinishReason | None = part.finish_reason
            yield Delta(make_tokens(part.token_ids, values, many), reason, scored)

    async def _rpc(self, method: str, *args: str) -> None:
        await self._llm.collective_rpc(method, timeout=self._timeout, args=args)

    async def _pause(self) -> None:
        await self._llm.pause_generation(mode="keep", clear_cache=False)

    async def _resume(self) -> None:
        if not await self._llm.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("its caches could not be reset")
        await self._llm.resume_generation()

    async def _counters(self) -> Counters:
        from prometheus_client import generate_latest

        return read_counters(generate_latest().decode())

    async def _stop(self) -> None:
        if hasattr(self, "_llm"):
            self._llm.shutdown()
            del self._llm  # its __del__ fails when the interpreter ends


async def _make(settings: dict[str, Any]) -> Any:
    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    # Compiled code on a CPU takes no new weights (vllm_worker).
    settings = {"enforce_eager": current_platform.is_cpu()} | settings
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**settings))


def _environment() -> None:
    """Settings that vLLM reads when it is imported."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # vllm_worker extends V1


def _values(log_probs: Mapping[int, Any] | None) -> dict[int, float]:
    return {i: value.logprob for i, value in (log_probs or {}).items()}
